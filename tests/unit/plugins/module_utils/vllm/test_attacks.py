# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user of a service, or who made its environment or model, may put there: root neither runs, follows nor awaits it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.hf_model import checkpoint, shape
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import context
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import program as program_file
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.program import Program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs other users' files")
DAEMON = 1
"""Id of a user that every host has."""
SECRET = {"max_position_embeddings": 4711}


@pytest.fixture(autouse=True)
def no_endless_wait():
    """Reading a pipe that nobody writes fails the test instead of hanging it."""

    def fail(*_words):
        raise AssertionError("it waits for something that never comes")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place():
    """A folder of the user `daemon` that everybody may enter."""
    path = Path(tempfile.mkdtemp(prefix="gpufleet-test-", dir="/tmp"))
    os.chown(path, DAEMON, DAEMON)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def secret(tmp_path):
    """A file that root alone may read."""
    path = tmp_path / "secret.json"
    path.write_text(json.dumps(SECRET))
    path.chmod(0o600)
    return path


# --- the environment


def environment(place, script):
    """An environment whose interpreter is a script of its owner's."""
    site = place / "lib/python3.11/site-packages"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm/__init__.py").touch()
    (place / "bin").mkdir()
    (place / "bin/python").write_text("#!/bin/sh\n" + script)
    (place / "bin/python").chmod(0o755)
    return Program(str(place), "daemon")


@pytest.mark.parametrize("user, uid", [("daemon", DAEMON), ("nosuchuser", (1 << 31) - 2)])
def test_the_interpreter_of_an_environment_runs_without_roots_rights(place, secret, monkeypatch, user, uid):
    monkeypatch.setenv("VAULT_TOKEN", "hush-hush")
    report = "id -u; id -g; id -G; cat %s; env; grep NoNewPrivs /proc/self/status; touch %s/mine"
    program = environment(
        place, "{ %s; } >$HOME/../home/report 2>&1; cat $HOME/report >&2; exit 1\n" % (report % (secret, place))
    )
    program.user = user
    (place / "mine").write_text("theirs")
    seen = []
    real = users.output_of
    monkeypatch.setattr(users, "output_of", lambda *given: seen.append(real(*given)) or seen[-1])
    with pytest.raises(Refused):
        program.parse({}, {"A": "b"})
    ((status, text),) = seen
    said = text.splitlines()
    assert said[0] == said[1] == said[2] == str(uid), said
    assert "4711" not in text and "hush" not in text and "A=b" in said


@pytest.mark.parametrize(
    "script",
    [
        "yes x",  # without an end
        "yes x >$HOME/full; sleep 600",
        "sleep 600 & sleep 600",
        "setsid sleep 5 & exit 0",  # holds its output open
        "printf 'ValueError: \\033]0;owned\\007\\033[2J%s\\n' $(head -c 100000 /dev/zero | tr '\\0' x) >&2; exit 1",
        "mkdir -p $HOME/a/b; ln -s %(canary)s $HOME/a/link; ln -s / $HOME/a/root; chmod 0 $HOME/a/b; exit 1",
        "rm -rf $HOME; ln -s %(folder)s $HOME; exit 1",
        "printf 'OPTIONS --\\033[2Jmodel\\n'; echo 'error: unrecognized arguments: --model' >&2; exit 1",
        "echo \"OPTIONS $(head -c 200000 /dev/zero | tr '\\0' '-')\"; echo 'error: unrecognized arguments: --x' >&2; exit 1",
    ],
)
def test_an_interpreter_that_misbehaves(place, tmp_path, monkeypatch, script):
    monkeypatch.setattr(program_file, "PARSE_LIMIT", 1.0)
    monkeypatch.setattr(program_file, "_SAYS", 1 << 20)
    canary = tmp_path / "canary"
    canary.write_text("whole")
    canary.chmod(0o600)
    made, real = [], tempfile.mkdtemp
    monkeypatch.setattr(program_file.tempfile, "mkdtemp", lambda **more: made.append(real(**more)) or made[-1])
    try:
        environment(place, script % {"canary": canary, "folder": tmp_path} if "%(" in script else script).parse({}, {})
    except Refused as error:
        assert str(error).isprintable() and len(str(error)) < 1000
    assert canary.read_text() == "whole" and canary.stat().st_mode & 0o777 == 0o600
    assert len(made) == 1 and not os.path.lexists(made[0])


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_names_of_variables_that_are_no_file(place, secret, kind):
    program = environment(place, "")
    put(place / "lib/python3.11/site-packages/vllm/envs.py", kind, secret)
    assert program.variables() == []


def test_a_version_with_control_characters(place):
    (place / "lib/python3.11/site-packages/vllm-\x1b[2J.dist-info").mkdir(parents=True)
    assert Program(str(place), "daemon").version() == ""


# --- the model


def put(path, kind, secret):
    """Put something of a kind at a path, as its owner could."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(8 << 30)
    else:
        to = {"link": secret, "device": "/dev/zero", "watchdog": "/dev/watchdog", "self": path}.get(kind)
        if kind == "pipe":
            to = path.with_name("pipe")
            os.mkfifo(to)
        path.symlink_to(to)


KINDS = ["fifo", "folder", "socket", "sparse", "link", "device", "watchdog", "self", "pipe"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("user", ["daemon", "nosuchuser"])
def test_what_may_lie_in_place_of_a_models_files(place, secret, kind, user):
    for name in ("config.json", "model.safetensors.index.json"):
        put(place / name, kind, secret)
        (place / "pipe").exists() and (place / "pipe").unlink()
    (place / "pipe").exists() or os.mkfifo(place / "pipe")
    assert checkpoint.config(str(place), user) == {}
    assert checkpoint.weight_bytes(str(place), user) == 0
    folder = place / "models--org--m"
    (folder / "refs").mkdir(parents=True)
    put(folder / "refs/main", kind, secret)
    assert checkpoint.locate("org/m", str(place), user) is None


@pytest.mark.parametrize("commit", ["../../../..", "/etc", "..", ".", "a/b", "\x1b[2J", "a\0b", ""])
def test_a_commit_leads_nowhere_else(place, commit):
    folder = place / "models--org--m"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots/a/b").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    assert checkpoint.locate("org/m", str(place), "daemon") is None


def test_the_cache_of_the_hub_is_made_of_links(place):
    snapshot = place / "models--org--m/snapshots/abc"
    for folder in (snapshot, place / "models--org--m/refs", place / "models--org--m/blobs"):
        folder.mkdir(parents=True)
    (place / "models--org--m/refs/main").write_text("abc")
    blob = place / "models--org--m/blobs/0123"
    blob.write_text(json.dumps({"max_position_embeddings": 8192}))
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    for folder, _below, files in os.walk(place):
        for path in [folder, *(os.path.join(folder, name) for name in files)]:
            os.chown(path, DAEMON, DAEMON, follow_symlinks=False)
    blob.chmod(0o600)
    found = checkpoint.locate("org/m", str(place), "daemon")
    assert found == str(snapshot)
    assert checkpoint.config(found, "daemon") == {"max_position_embeddings": 8192}
    assert checkpoint.config(found, "nobody") == {}, "who may not read it"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100000,
        '{"metadata": ' * 50000,
        '{"metadata": {"total_size": %s}}' % ("9" * (2 << 20)),
        '{"metadata": {"total_size": 1e999}}',
        '{"metadata": {"total_size": NaN}}',
        '{"metadata": {"total_size": -1}}',
        '{"metadata": {"total_size": "x"}}',
        '{"metadata": 5}',
        "\xff",
    ],
)
def test_json_that_is_meant_to_harm(place, text):
    for name in ("config.json", "model.safetensors.index.json"):
        (place / name).write_bytes(text.encode("latin-1"))
    assert isinstance(checkpoint.config(str(place), "daemon"), dict)
    assert checkpoint.weight_bytes(str(place), "daemon") == 0
    (place / "x.safetensors").symlink_to(place / "nowhere")
    assert checkpoint.weight_bytes(str(place), "daemon") == 0


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e300, -1, "x", None, True, []])
@pytest.mark.parametrize("original", [float("nan"), "4096", -5, [], None])
def test_a_config_that_is_meant_to_harm(factor, original):
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for release in ((), (0, 28, 0), (0, 33, 0)):
        assert context.read({"max_position_embeddings": 4096, "rope_scaling": scaling}, release).longest == 4096


@pytest.mark.parametrize("value", [float("nan"), "x", [], [None], {"a": 1}, -1, True, 10**14])
@pytest.mark.parametrize(
    "key", ["text_config", "rope_scaling", "quantization_config", "model_max_length", "num_experts"]
)
def test_values_of_other_types(key, value):
    config = {"num_attention_heads": 4, "max_position_embeddings": 4096, key: value}
    assert shape.read(config).heads == 4
    assert context.read(config).longest in (4096, 10**14)
    nested = {"quantization_config": {"quant_method": value, "weight_block_size": value, "kv_cache_scheme": value}}
    assert shape.read(nested).block >= 1
