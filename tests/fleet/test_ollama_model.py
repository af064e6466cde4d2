# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models on a real server with the stand-in for its worker: every state, twice, and what must not happen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))
sys.path.insert(0, str(TESTS / "fleet"))

import faults  # noqa: E402
import hostsetup  # noqa: E402
import house_registry  # noqa: E402
import models  # noqa: E402

GGUF = "/srv/tiny.gguf"


@pytest.fixture(scope="module")
def served(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A host with four cards of 24 GiB that serves; m8b and m70b in its store, a small GGUF file beside."""
    host = lab.reset("gpu1")
    hostsetup.install(host)
    hostsetup.override(host, {"OLLAMA_NO_CLOUD": "1", "OLLAMA_CONTEXT_LENGTH": "4096"})
    hostsetup.add_models(host, "m8b", "m70b")
    file = tmp_path_factory.mktemp("model") / "tiny.gguf"
    models.write_gguf(file, "tiny")
    hostsetup.sh(host, "cat >" + GGUF, file.read_bytes())
    hostsetup.sh(host, "rm -rf /var/lib/gpufleet")
    hostsetup.wait_for_api(host)
    yield host
    hostsetup.uninstall(host)


@pytest.fixture
def declare(lab: Any, served: str) -> Callable[..., Dict[str, Any]]:
    """`declare({...}, {...}, check=False, **options)` runs ollama_model with these models."""

    def run(*items: Dict[str, Any], check: bool = False, **options: Any) -> Dict[str, Any]:
        result = lab.module(served, "ollama_model", dict(options, models=list(items)), check=check)
        print("%4.1f s %s" % (result["seconds"], result["msg"]))
        return result

    return run


def tags(host: str) -> Dict[str, str]:
    return {one["name"]: one["digest"] for one in hostsetup.api(host, "/api/tags")["models"]}


def resident(host: str) -> Dict[str, Any]:
    return {one["name"]: one for one in hostsetup.api(host, "/api/ps")["models"]}


def test_created_copied_and_removed(served: str, declare: Callable[..., Dict[str, Any]]) -> None:
    made = {"name": "mine", "from_file": GGUF}
    terse = {"name": "terse:v1", "modelfile": "FROM mine\nPARAMETER num_ctx 512\nSYSTEM Be brief.\n"}
    copy = {"name": "stable", "copy_of": "mine"}
    before = tags(served)

    look = declare(made, terse, copy, check=True)
    assert look["msg"] == "mine would be created; terse:v1 would be created; stable would be copied"
    assert tags(served) == before, "check mode"

    first = declare(made, terse, copy)
    assert [entry["actions"] for entry in first["models"]] == [["created"], ["created"], ["copied"]], first
    now = tags(served)
    assert set(now) - set(before) == {"mine:latest", "terse:v1", "stable:latest"}
    assert now["mine:latest"] == now["stable:latest"] == first["models"][0]["digest"]
    shown = hostsetup.api(served, "/api/show", {"model": "terse:v1"})
    assert shown["system"] == "Be brief."
    assert "num_ctx" in shown["parameters"]

    again = declare(made, terse, copy)
    assert again["changed"] is False, again
    assert again["msg"] == "3 unchanged"

    hostsetup.sh(served, "rm -r /var/lib/gpufleet")
    assert declare(made)["changed"] is False, "made again without its record, it is the same"

    other = declare({"name": "mine", "modelfile": "FROM %s\nSYSTEM Another.\n" % GGUF})
    assert other["models"][0]["actions"] == ["created"]
    assert tags(served)["mine:latest"] != now["mine:latest"]

    gone = [{"name": name, "state": "absent"} for name in ("mine", "terse:v1", "stable")]
    assert declare(*gone)["msg"] == "mine deleted; terse:v1 deleted; stable deleted"
    assert tags(served) == before


def test_no_gguf_is_refused_before_anything_is_sent(served: str, declare: Callable[..., Dict[str, Any]]) -> None:
    result = declare({"name": "mine", "from_file": "/etc/hostname"})
    assert result["failed"]
    assert "/etc/hostname begins with" in result["msg"]
    assert "mine:latest" not in tags(served)


def test_loaded_and_unloaded(served: str, declare: Callable[..., Dict[str, Any]]) -> None:
    wanted = {"name": "m8b", "state": "loaded", "keep_alive": "-1"}
    look = declare(wanted, check=True)
    assert look["changed"]
    assert look["models"][0]["estimate"]["fits"]
    assert resident(served) == {}

    first = declare(wanted)
    (entry,) = first["models"]
    assert entry["actions"] == ["loaded"], first
    assert entry["estimate_ratio"] == pytest.approx(1.0, rel=0.05)
    held = [sum(gpu.values()) << 20 for gpu in hostsetup.held(served)]
    assert held == pytest.approx([entry["held_bytes"].get(str(index), 0) for index in range(4)], rel=0.01)
    assert [gpu["held_bytes"] for gpu in entry["estimate"]["gpus"]] == pytest.approx([b for b in held if b], rel=0.05)
    assert resident(served)["m8b:latest"]["size_vram"] == entry["reported"]["size_vram_bytes"]
    assert declare(wanted)["changed"] is False

    larger = declare(dict(wanted, options={"num_ctx": 8192}))
    assert larger["models"][0]["reason"] == "is loaded with a context of 4096, declared is 8192"
    assert larger["models"][0]["reported"]["context"] == 8192

    away = {"name": "m8b", "state": "unloaded"}
    assert declare(away)["msg"] == "m8b unloaded"
    assert resident(served) == {}


def test_what_ollama_info_tells(served: str, declare: Callable[..., Dict[str, Any]], lab: Any) -> None:
    declare({"name": "m8b", "state": "loaded", "keep_alive": "-1"})
    told = lab.module(served, "ollama_info", {"name": "ollama"}, check=True)
    assert not told["failed"], told["msg"]
    assert (told["changed"], told["running"], told["version"]) == (False, True, "0.32.15")
    assert told["configuration"]["OLLAMA_CONTEXT_LENGTH"] == "4096"
    assert {model["name"]: model["digest"] for model in told["models"]} == tags(served)
    (loaded,) = told["loaded"]
    held = [sum(gpu.values()) << 20 for gpu in hostsetup.held(served)]
    assert [loaded["held_bytes"].get(str(index), 0) for index in range(4)] == pytest.approx(held, rel=0.01)
    assert [gpu["held_bytes"] for gpu in told["gpus"]] == pytest.approx(held, rel=0.01)
    assert loaded["size_vram_bytes"] == resident(served)["m8b:latest"]["size_vram"]
    assert len(told["devices"]) == 4
    declare({"name": "m8b", "state": "unloaded"})
    lab.sh(served, "systemctl stop ollama")
    try:
        assert lab.module(served, "ollama_info", {"name": "ollama"})["running"] is False
    finally:
        lab.sh(served, "systemctl start ollama")
        hostsetup.wait_for_api(served)


def test_a_dead_worker_is_found_out(served: str, declare: Callable[..., Dict[str, Any]]) -> None:
    wanted = {"name": "m8b", "state": "loaded", "keep_alive": "-1"}
    assert not declare(wanted)["failed"]
    hostsetup.sh(served, "pkill -KILL -x llama-server; while pgrep -x llama-server; do sleep 0.02; done")
    assert resident(served)["m8b:latest"]["size_vram"] > 0, "the server goes on naming it"
    look = declare(wanted, check=True)
    assert look["changed"]
    assert "its worker is dead: the server reports that it holds 4." in look["models"][0]["reason"]
    healed = declare(wanted)
    assert healed["models"][0]["actions"] == ["loaded"], healed["msg"]
    assert sum(sum(gpu.values()) for gpu in hostsetup.held(served)) > 4000
    hostsetup.api(served, "/api/generate", {"model": "m8b", "keep_alive": 0})


def test_a_model_that_does_not_fit_is_refused(served: str, declare: Callable[..., Dict[str, Any]]) -> None:
    wanted = {"name": "m70b", "state": "loaded"}
    assert declare(wanted, check=True)["models"][0]["estimate"]["spread"]
    faults.memory(served, "8192")
    try:
        result = declare(wanted)
        assert result["failed"]
        assert "does not fit: 68.5 billion parameters, Q4_1, 80 layers and 1.2 GiB of cache" in result["msg"]
        assert "free are 8.0 + 8.0 + 8.0 + 8.0 GiB on 4 GPUs" in result["msg"]
        assert not result["changed"]
        assert resident(served) == {}
    finally:
        faults.clear(served)


def test_a_service_that_its_model_would_not_fit_stays_as_it_is(served: str, lab: Any) -> None:
    """m8b with 16 requests of 131072 tokens each: 256 GiB of cache for four cards of 24 GiB."""
    invocation = "systemctl show ollama -p InvocationID"
    before = lab.sh(served, invocation)
    wanted = {"prove_model": "m8b", "context_length": 131072, "num_parallel": 16, "visible_devices": "all"}
    for check in (True, False):
        refused = lab.module(served, "ollama_service", wanted, check=check)
        assert refused["failed"]
        assert "m8b does not fit: 7.0 billion parameters" in refused["msg"], refused["msg"]
        assert "(context 131072 × 16)" in refused["msg"]
        assert "(nothing was changed)" in refused["msg"]
    assert lab.sh(served, invocation) == before
    fits = dict(wanted, context_length=8192, num_parallel=2, sched_spread=True)
    proven = lab.module(served, "ollama_service", fits)
    assert not proven["failed"], proven["msg"]
    assert proven["estimate"]["parallel"] == 2
    assert proven["estimate_ratio"] == pytest.approx(1.0, rel=0.05)
    lab.module(served, "ollama_service", {"state": "absent"})
    hostsetup.wait_for_api(served)


@pytest.fixture
def registry(served: str) -> Iterator[house_registry.Registry]:
    """A real registry on the host."""
    found = house_registry.Registry(served)
    yield found
    found.stop()


def test_pulled_from_a_registry(
    served: str, declare: Callable[..., Dict[str, Any]], registry: house_registry.Registry, lab: Any
) -> None:
    name, full = registry.here + "/library/tiny:v1", registry.here.partition("//")[2] + "/library/tiny:v1"
    registry.offer(served, "tiny", "tiny:v1")
    wanted = {"name": name}
    options = {"insecure": True, "stall_timeout": 3, "progress": False}

    full_disk = declare(wanted, free_space_margin="100TiB", **options)
    assert full_disk["failed"]
    assert "and must leave 102400.0 GiB free (free_space_margin)" in full_disk["msg"]
    wrong = declare(dict(wanted, digest="0" * 64), **options)
    assert wrong["failed"]
    assert "the registry offers digest" in wrong["msg"]

    registry.rate(0)
    stalled = declare(wanted, **options)
    assert stalled["failed"]
    assert "no new byte for 3 s (stall_timeout)" in stalled["msg"], stalled["msg"]
    assert full not in tags(served)

    registry.rate(150000)  # so slow that a busy controller looks at it in between
    arguments = json.dumps({"insecure": True, "models": [wanted]})
    run = lab.ansible("ansible", served, "--become", "-m", "gpufleet.inference.ollama_model", "-a", arguments)
    assert run.rc == 0, run.output
    assert "% of 0.0 GB" in run.output, "progress is shown while it runs: %s" % run.output
    assert run.results[0]["result"]["models"][0]["actions"] == ["pulled"]
    digest = tags(served)[full]

    registry.rate(limited=False)
    assert run.results[0]["result"]["models"][0]["digest"] == digest
    again = declare(wanted, update=True, **options)
    assert again["changed"] is False, "the registry's digest is the store's: %s" % again
