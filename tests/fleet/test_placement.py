# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab is held to recordings: on the simulated four H200s the real server, with the stand-in for its worker, places
every model as the real one did on four real H200s: the same GPUs, the same memory on each within 5 %, the same answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))

import faults  # noqa: E402
import hostsetup  # noqa: E402

RECORDED = json.loads((TESTS / "unit/fixtures/ollama/placement-h200x4.json").read_text())
NO_CLOUD = {"OLLAMA_NO_CLOUD": "1"}  # the lab has no business with ollama.com; no bearing on placement
SLOW_DISCOVERY = "3.5"  # seconds, above the 3 that the server gives a refresh of free memory


@pytest.fixture(scope="module")
def h200x4(lab: Any) -> Iterator[str]:
    """A host with four H200s and Ollama as upstream installs it, three models in its store."""
    host = lab.reset("gpu2")
    hostsetup.install(host)
    hostsetup.add_models(host, "m70b", "m32b", "m8b")
    yield host
    faults.clear(host)
    hostsetup.uninstall(host)


def resident(host: str) -> Dict[str, Dict[str, int]]:
    """What /api/ps names, by model: size and size_vram in bytes."""
    found = hostsetup.api(host, "/api/ps")["models"]
    return {one["model"].partition(":")[0]: {key: one[key] for key in ("size", "size_vram")} for one in found or []}


@pytest.mark.parametrize("row", RECORDED, ids=[row["name"] for row in RECORDED])
def test_placed_as_recorded(h200x4: str, row: Dict[str, Any]) -> None:
    hostsetup.sh(h200x4, "systemctl stop ollama")
    faults.clear(h200x4)
    if "others_leave_mib" in row:
        faults.memory(h200x4, str(row["others_leave_mib"]))
    faults.worker(h200x4, discovery=SLOW_DISCOVERY if row["refresh_timed_out"] else "")
    hostsetup.override(h200x4, {**row["environment"], **NO_CLOUD})
    hostsetup.wait_for_api(h200x4)
    for step in row["steps"]:
        request = step["request"]
        if isinstance(request, dict):
            answer = hostsetup.api(h200x4, "/api/generate", request)
            assert answer["status"] == step["status"], answer
            assert answer.get("done") == step.get("done"), answer
            assert answer.get("error", "").split(" of size ")[0] == step.get("error", "").split(" of size ")[0]
        else:
            hostsetup.sh(h200x4, "pkill -KILL -x llama-server; while pgrep -x llama-server; do sleep 0.02; done")

        named = resident(h200x4)
        assert sorted(named) == sorted(step["ps"])
        for model, sizes in step["ps"].items():
            assert named[model]["size"] == pytest.approx(sizes["size"], rel=0.01)
            assert named[model]["size_vram"] == pytest.approx(sizes["size_vram"], rel=0.01)
        if not isinstance(request, dict) or request.get("keep_alive") != 0:  # else recorded before the worker had left
            held = [sum(gpu.values()) for gpu in hostsetup.held(h200x4)]
            print("%-24s %-40s recorded %s here %s" % (row["name"], json.dumps(request)[:40], step["held_mib"], held))
            assert held == pytest.approx(step["held_mib"], rel=0.05)


def only(*nodes: str) -> str:
    """Unit settings under which a service may open these of /dev/nvidia* alone."""
    return "DevicePolicy=closed\n" + "".join("DeviceAllow=/dev/nvidia%s rw\n" % node for node in ("ctl", *nodes))


@pytest.mark.parametrize(
    ("settings", "environment", "held_gib"),
    [
        (only("-uvm", "2", "3"), {"OLLAMA_SCHED_SPREAD": "1"}, [0, 0, 3.2, 2.9]),
        (only("-uvm", "2", "3"), {"CUDA_VISIBLE_DEVICES": "2,3"}, [0, 0, 0, 0]),
        (only("-uvm", "2", "3"), {"CUDA_VISIBLE_DEVICES": "0,1"}, [0, 0, 5.3, 0]),
        (only("0", "1", "2", "3"), {}, [0, 0, 0, 0]),
        ("PrivateDevices=yes\n", {}, [0, 0, 0, 0]),
    ],
    ids=["two-nodes", "numbers-count-within", "renumbered", "no-uvm", "private-devices"],
)
def test_a_unit_has_the_gpus_whose_nodes_it_may_open(
    h200x4: str, settings: str, environment: Dict[str, str], held_gib: List[float]
) -> None:
    """As recorded of upstream's unit under systemd 257 on four H200s, the 8B model."""
    faults.clear(h200x4)
    drop_in = "/run/systemd/system/ollama.service.d"
    hostsetup.sh(h200x4, "mkdir -p %s; cat >%s/devices.conf" % (drop_in, drop_in), "[Service]\n" + settings)
    hostsetup.override(h200x4, {"OLLAMA_CONTEXT_LENGTH": "4096", **environment, **NO_CLOUD})
    hostsetup.sh(h200x4, "rm -r " + drop_in)
    hostsetup.wait_for_api(h200x4)
    assert hostsetup.api(h200x4, "/api/generate", {"model": "m8b"})["done"]
    assert [sum(gpu.values()) / 1024 for gpu in hostsetup.held(h200x4)] == pytest.approx(held_gib, rel=0.05)
