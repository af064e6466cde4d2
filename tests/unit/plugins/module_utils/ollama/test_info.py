# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a server, from a recorded log, a server in memory, and GPUs as the facts show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import info, server
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

START = Path(__file__).resolve().parents[3] / "fixtures/ollama/start"
GIB = 1 << 30
UNIT = "ollama.service"


class FakeSystem:
    def __init__(self, port: int) -> None:
        self.pid, self.log = 10, "h200x4-howto.log"
        self.instances: Dict[str, int] = {}
        self.environment = {"HOME": "/usr/share/ollama", "OLLAMA_HOST": "127.0.0.1:%d" % port}

    def show(self, unit: str) -> Dict[str, str]:
        assert unit in (UNIT, *self.instances)
        return {"MainPID": str(self.instances.get(unit, self.pid)), "InvocationID": "abc"}

    def names(self, directory: str) -> List[str]:
        return [UNIT + ".d", "ollama.service.wants", "sshd.service.d", *(unit + ".d" for unit in self.instances)]

    def environ(self, pid: int) -> Dict[str, str]:
        return self.environment

    def journal_from_start(self, invocation: str) -> Iterator[str]:
        assert invocation == "abc"
        yield from (START / self.log).read_text().splitlines()


@pytest.fixture
def world(ollama: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`world.read(**params)`; `ollama`, `system` and `held` say what there is."""
    ollama.answers["/api/tags"] = (
        200,
        {
            "models": [
                {
                    "name": "m70b:latest",
                    "digest": "d" * 64,
                    "size": 43 * GIB,
                    "modified_at": "2026-11-22T08:35:34Z",
                    "details": {"family": "llama", "parameter_size": "70B", "quantization_level": "Q4_1"},
                    "capabilities": ["completion"],
                },
                {"name": "bare:latest"},
            ]
        },
    )
    ollama.loads(43 * GIB)
    ollama.answers["/api/show"] = (200, {"modelfile": "# x\nFROM /store/blobs/sha256-weights\nTEMPLATE x"})
    monkeypatch.setattr(server, "_files_named", lambda proc, pid: ["llama-server", "sha256-weights"])

    class World:
        system = FakeSystem(ollama.port)
        held = (11 * GIB, 11 * GIB, 11 * GIB, 11 * GIB)

        def read(self, **params: Any) -> Dict[str, Any]:
            given = dict({"name": "ollama", "host": None, "facts_timeout": 1.0}, **params)
            return info.read(given, False, print, self.system, lambda: fakes.facts(self.held))

    return World()


def test_everything(world: Any, ollama: Any) -> None:
    found = world.read()
    assert found["msg"] == "Ollama 0.32.15 at http://127.0.0.1:%d: 2 models, 1 loaded" % ollama.port
    assert found["store"] == "/usr/share/ollama/.ollama/models"
    assert found["configuration"]["OLLAMA_SCHED_SPREAD"] == "true"
    assert found["configuration"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert found["misread"] == {}
    assert [device["pci_bus_id"] for device in found["devices"]] == ["0000:00:0%d.0" % n for n in (6, 7, 8, 9)]
    assert found["models"][0] == {
        "name": "m70b:latest",
        "digest": "d" * 64,
        "size_bytes": 43 * GIB,
        "modified_at": "2026-11-22T08:35:34Z",
        "family": "llama",
        "parameters": "70B",
        "quantization": "Q4_1",
        "capabilities": ["completion"],
    }
    assert found["models"][1]["capabilities"] == []
    (loaded,) = found["loaded"]
    assert (loaded["name"], loaded["size_vram_bytes"]) == ("m70b:latest", 43 * GIB)
    assert loaded["held_bytes"] == {str(index): 11 * GIB for index in range(4)}
    assert [gpu["held_bytes"] for gpu in found["gpus"]] == [11 * GIB] * 4
    assert found["gpu_source"] == "nvml"


def test_a_dead_worker_holds_nothing(world: Any) -> None:
    world.held = (0, 0, 0, 0)
    (loaded,) = world.read()["loaded"]
    assert (loaded["size_vram_bytes"], loaded["held_bytes"]) == (43 * GIB, {})


def test_what_the_server_misread(world: Any) -> None:
    world.system.log = "misread.log"
    found = world.read()
    assert found["misread"]["OLLAMA_NUM_PARALLEL"]
    assert found["configuration"]["OLLAMA_SCHED_SPREAD"] == "true", "it was off"
    assert found["devices"][0]["library"] == "cpu"


def test_a_start_that_the_journal_has_lost(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.system, "journal_from_start", lambda invocation: iter(["[GIN] 200"]))
    found = world.read()
    assert (found["configuration"], found["misread"], found["devices"]) == (None, None, None)


def test_a_unit_that_does_not_run(world: Any) -> None:
    world.system.pid = 0
    assert world.read() == {"changed": False, "running": False, "unit": UNIT, "msg": "ollama.service is not running"}
    world.system.instances = {"ollama@chat.service": 20, "ollama@down.service": 0}
    assert world.read()["msg"] == "ollama.service is not running; these are: ollama@chat.service"


def test_a_server_beside_the_unit(world: Any, ollama: Any) -> None:
    world.system.environment = {"OLLAMA_HOST": "127.0.0.1:1"}
    found = world.read(host="127.0.0.1:%d" % ollama.port)
    assert (found["configuration"], found["store"], found["loaded"][0]["held_bytes"]) == (None, None, {})
    assert [gpu["held_bytes"] for gpu in found["gpus"]] == [0] * 4


def test_nobody_answers(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="expected Ollama's API at"):
        world.read(host="127.0.0.1:1")

    def refuse(unit: str) -> Any:
        raise ManagerError("this host is not run by systemd")

    monkeypatch.setattr(world.system, "show", refuse)
    with pytest.raises(Failed, match="not run by systemd"):
        world.read()


# --- a server that is not ours


def test_more_loaded_models_than_there_is_time_for(world: Any, ollama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers in time, and there are so many that the run would never end."""
    monkeypatch.setattr(info, "_SHOWS", 0.3)
    ollama.answers["/api/ps"] = (200, {"models": [{"name": "m%d" % number} for number in range(100000)]})
    with pytest.raises(Failed, match="/api/show did not answer within"):
        world.read()


@pytest.mark.parametrize("entry", [{}, {"name": 7, "details": [1]}, {"name": None, "details": "x", "capabilities": 1}])
def test_models_of_another_shape(world: Any, ollama: Any, entry: Any) -> None:
    ollama.answers["/api/tags"] = ollama.answers["/api/ps"] = (200, {"models": [entry]})
    ollama.answers["/api/show"] = (200, {"modelfile": ["FROM /x"]})
    found = world.read()
    assert found["models"][0]["family"] is None and found["loaded"][0]["held_bytes"] == {}
