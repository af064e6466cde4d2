# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units as people write them, and the variables that reproduce them."""

from __future__ import annotations

import os

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import adopt, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

UNIT = "/etc/systemd/system/ollama.service"
TEXT = "[Service]\nExecStart=/usr/local/bin/ollama serve\nUser=ollama\nEnvironment=PATH=/usr/bin OLLAMA_NO_CLOUD=1\n"


class FakeSystem(System):
    """A systemd whose files lie below a folder; the process has what the unit says."""

    def __init__(self, root):
        super().__init__(str(root))
        self.root_folder = root
        self.state = {"LoadState": "loaded", "UnitFileState": "enabled", "MainPID": "7", "NeedDaemonReload": "no"}
        self.more = {}

    def write(self, path, text, mode=0o644):
        file = self.root_folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def show(self, unit):
        return self.state

    def inherited(self):
        return {"LANG": "C.UTF-8"}

    def environ(self, pid):
        if not pid:
            return None
        merged = merge(self.load(["ollama.service"]))
        found = merged.environment(self.specifiers("ollama.service"), self.environment_files)
        return dict({name: value.text for name, value in found.items()}, **self.more)


@pytest.fixture
def host(tmp_path, monkeypatch, fakes):
    """`host(environment lines…)` adopts a unit with these; `.system` is its systemd, `.facts` its GPUs."""
    system = FakeSystem(tmp_path)
    run_facts = fakes.facts()
    for device in run_facts["devices"]:
        device["persistence_mode"] = True
    monkeypatch.setattr(adopt.gpu_facts, "gather", lambda timeout, python_paths: run.facts)

    def run(*lines, name="ollama"):
        if not (tmp_path / UNIT.lstrip("/")).exists() or lines:
            system.write(UNIT, TEXT + "".join("Environment=%s\n" % line for line in lines))
        return adopt.adopt({"name": name, "facts_timeout": 10.0}, False, print, system)

    run.system, run.facts = system, run_facts
    return run


TYPED = [
    ("OLLAMA_SCHED_SPREAD=1", {"ollama_sched_spread": True}),
    ("OLLAMA_SCHED_SPREAD=0", {"ollama_sched_spread": False}),
    ("OLLAMA_KEEP_ALIVE=-1", {"ollama_keep_alive": "-1"}),
    ("OLLAMA_NUM_PARALLEL=4", {"ollama_num_parallel": 4}),
    ("OLLAMA_DEBUG=1", {"ollama_log_level": "debug"}),
    ("OLLAMA_HOST=127.0.0.1:11500", {"ollama_host": "127.0.0.1:11500"}),
    (
        "OLLAMA_ORIGINS=https://a.example,https://b.example",
        {"ollama_origins": ["https://a.example", "https://b.example"]},
    ),
    ("OLLAMA_GPU_OVERHEAD=536870912", {"ollama_gpu_overhead": "536870912"}),
    ("LLAMA_ARG_FIT_TARGET=2048", {"ollama_fit_target": "2048"}),
    ("LLAMA_ARG_FIT=off", {"ollama_llama_fit": False}),
    ("HTTPS_PROXY=http://proxy.example:3128", {"ollama_https_proxy": "http://proxy.example:3128"}),
    # what the option would write otherwise goes on as it is
    ("OLLAMA_FLASH_ATTENTION=true", {"ollama_environment": {"OLLAMA_FLASH_ATTENTION": "true"}}),
    ("OLLAMA_DEBUG=true", {"ollama_environment": {"OLLAMA_DEBUG": "true"}}),
    ("OLLAMA_NUM_PARALLEL=04", {"ollama_environment": {"OLLAMA_NUM_PARALLEL": "04"}}),
    ("LLAMA_ARG_THREADS=8", {"ollama_environment": {"LLAMA_ARG_THREADS": "8"}}),
    ("HSA_OVERRIDE_GFX_VERSION=10.3.0", {"ollama_environment": {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}}),
    ("CUDA_VISIBLE_DEVICES=0,1,2,3", {"ollama_visible_devices": "all"}),
    ("CUDA_VISIBLE_DEVICES=2,0", {"ollama_visible_devices": [2, 0]}),
    (
        "CUDA_VISIBLE_DEVICES=GPU-00000001-0000-4000-8000-000000000001",
        {"ollama_visible_devices": ["GPU-00000001-0000-4000-8000-000000000001"]},
    ),
    ('"CUDA_VISIBLE_DEVICES=0, 1"', {"ollama_environment": {"CUDA_VISIBLE_DEVICES": "0, 1"}}),
    ("CUDA_VISIBLE_DEVICES=3,2,1,0", {"ollama_visible_devices": [3, 2, 1, 0]}),
]


@pytest.mark.parametrize("line, variables", TYPED)
def test_a_variable_as_a_person_would_declare_it(host, line, variables):
    result = host(line)
    assert result["variables"] == dict({"ollama_no_cloud": True}, **variables)
    assert result["notes"] == []
    assert result["changed"] is False


@pytest.mark.parametrize("line, variables", TYPED)
def test_what_is_told_writes_the_same_text(line, variables):
    """The other way round: these variables give exactly the variable that was adopted."""
    name, _equals, text = line.strip('"').partition("=")
    options = {key[len("ollama_") :]: value for key, value in variables.items()}
    environment = options.pop("environment", {})
    if name != "CUDA_VISIBLE_DEVICES":
        assert settings.declare(options, environment).environment == {name: text}


@pytest.mark.parametrize(
    "line, words",
    [
        ("OLLAMA_KEEP_ALIVE=1d", "write 24h"),
        ("OLLAMA_SCHED_SPREAD=off", "Ollama reads 'off' as true"),
        ("CUDA_VISIBLE_DEVICES=0,9", "There is no GPU 9"),
        ("CUDA_VISIBLE_DEVICES=", "set but empty"),
        ('"OLLAMA_KEEP_ALIVE= 5m"', "begins or ends with a blank or a quote"),
    ],
)
def test_what_ollama_would_misread_is_told_and_left(host, line, words):
    result = host(line)
    assert result["variables"] == {"ollama_no_cloud": True}
    (note,) = result["notes"]
    assert words in note
    assert "(%s:5)" % UNIT in note
    assert note.endswith("it stays where it is")


@pytest.mark.parametrize(
    "line",
    [
        "HF_TOKEN=hunter2",
        "MY_api_key=hunter2",
        "HTTPS_PROXY=http://me:hunter2@proxy.example",
        "X=https://hunter2@a.example",
    ],
)
def test_a_secret_is_not_told(host, line):
    result = host(line)
    assert "hunter2" not in str(result)
    assert "%s (%s:5) is not reported, as it may be a secret" % (line.partition("=")[0], UNIT) in result["notes"][0]


@pytest.mark.parametrize("attack", ["folder", "link"])
def test_a_file_that_others_cannot_reach_is_private_too(host, attack):
    """In a closed folder, and behind a link in an open one."""
    host.system.write("/root/secret.env", "WHO=me\n", 0o644)
    os.chmod(host.system.root + "/root", 0o700)
    named = "/root/secret.env"
    if attack == "link":
        named = "/srv/open.env"
        host.system.write(named, "", 0o644)
        os.unlink(host.system.root + named)
        os.symlink(host.system.root + "/root/secret.env", host.system.root + named)
    host.system.write(UNIT + ".d/10-env.conf", "[Service]\nEnvironmentFile=%s\n" % named)
    result = host()
    assert "ollama_environment" not in result["variables"]
    assert "WHO" in str(result["notes"]) and "WHO=me" not in str(result)


@pytest.mark.parametrize("mode, told", [(0o644, True), (0o640, False)])
def test_an_unknown_variable_of_a_private_file_may_be_a_secret(host, mode, told):
    host.system.write("/etc/ollama.env", "# of the team\nWHO=me\nOLLAMA_KEEP_ALIVE=24h\n", mode)
    host.system.write(UNIT + ".d/10-env.conf", "[Service]\nEnvironmentFile=/etc/ollama.env\n")
    result = host()
    assert result["variables"]["ollama_keep_alive"] == "24h"
    assert (result["variables"].get("ollama_environment") == {"WHO": "me"}) == told
    assert bool(result["notes"]) == (not told)
    assert result["files"] == [UNIT, UNIT + ".d/10-env.conf"]


def test_the_last_file_wins(host):
    host.system.write(UNIT + ".d/override.conf", "[Service]\nEnvironment=OLLAMA_KEEP_ALIVE=24h\n")
    assert host("OLLAMA_KEEP_ALIVE=5m")["variables"]["ollama_keep_alive"] == "24h"


def test_a_server_that_others_reach(host):
    result = host("OLLAMA_HOST=0.0.0.0")
    assert result["variables"]["ollama_allow_unauthenticated"] is True
    assert "the API has no authentication" in result["notes"][0]


def test_the_unit_itself(host):
    host.system.state["UnitFileState"] = "disabled"
    host.system.write(UNIT, "[Service]\nExecStart=-/opt/ollama/bin/ollama serve\n")
    assert host()["variables"] == {"ollama_enabled": False, "ollama_no_cloud": False, "ollama_prefix": "/opt/ollama"}
    host.system.write(UNIT, "[Service]\nExecStart=/usr/bin/docker run ollama\n")
    assert "does not run PREFIX/bin/ollama" in host()["notes"][0]


def test_another_name(host):
    host.system.write("/etc/systemd/system/llm.service", TEXT)
    result = host(name="llm.service")
    assert result["variables"] == {"ollama_name": "llm", "ollama_no_cloud": True}


def test_what_a_run_would_change_all_the_same(host):
    host.system.more = {"OLLAMA_KEEP_ALIVE": "5m"}
    host.system.state["NeedDaemonReload"] = "yes"
    notes = host("OLLAMA_KEEP_ALIVE=24h")["notes"]
    assert "has other values than the unit for OLLAMA_KEEP_ALIVE; a run of site.yml restarts it" in notes[0]
    assert "a run of site.yml reloads it" in notes[1]
    host.system.state["MainPID"] = "0"
    assert "does not run; a run of site.yml starts it" in host()["notes"][0]


def test_what_the_host_lacks_is_not_to_be_changed_either(host):
    host.facts["source"] = "smi"
    host.facts["devices"][1]["persistence_mode"] = False
    assert host()["variables"] == {"ollama_no_cloud": True, "gpu_host_pynvml": False, "gpu_host_persistence": False}


def test_there_is_no_such_unit(host):
    host()
    with pytest.raises(Refused, match="there is no unit ghost.service on this host"):
        host(name="ghost")
