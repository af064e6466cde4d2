# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which services are left out because of their GPUs."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import unfit
from ansible_collections.gpufleet.inference.plugins.module_utils.placement.claims import Claim


def claim(unit: str, *gpus: str) -> Claim:
    return Claim(unit, dict.fromkeys(gpus))


def device(index: int, fit: bool = True, ok: bool = True) -> Dict[str, Any]:
    place = "0000:0%d:00.0" % index
    return {"index": index, "uuid": "GPU-%d" % index, "pci_bus_id": place, "health": {"fit": fit, "ok": ok and fit}}


UNIT = "a.service"


@pytest.mark.parametrize(
    ("wish", "claimed", "devices", "held"),
    [
        pytest.param([0], [0], [device(0), device(1, fit=False)], False, id="another's GPU"),
        pytest.param([0, 1], [0, 1], [device(0), device(1, fit=False)], True, id="its"),
        pytest.param(["GPU-1"], [1], [device(0), device(1, fit=False)], True, id="its, by UUID"),
        pytest.param(["0000:01:00.0"], [1], [device(0), device(1, fit=False)], True, id="its, by place"),
        pytest.param([0, 9], [0, 9], [device(0)], True, id="a GPU that is gone"),
        pytest.param([0], [0], [device(0, ok=False)], False, id="one that is only slow"),
        pytest.param([0], [1], [device(0), device(1, fit=False)], False, id="it is moved away"),
        pytest.param([1], [0], [device(0), device(1, fit=False)], True, id="it is moved there"),
        pytest.param([1], [], [device(0), device(1, fit=False)], True, id="it is new there"),
        pytest.param(None, [0, 1], [device(0), device(1, fit=False)], True, id="nothing declared, one of its claim"),
        pytest.param(None, [0], [device(0), device(1, fit=False)], False, id="nothing declared, none of its claim"),
        pytest.param("all", [0], [device(0, fit=False), device(1)], False, id="it can move"),
        pytest.param({"count": 1}, [0], [device(0, fit=False), device(1)], False, id="it can move, by a policy"),
        pytest.param("all", [0], [device(0, fit=False)], True, id="it has nowhere to go"),
        pytest.param("none", [0], [device(0, fit=False)], False, id="it leaves the GPUs"),
        pytest.param(None, [], [device(0, fit=False)], False, id="it uses no GPU"),
        pytest.param(None, [], [], False, id="nothing claimed"),
    ],
)
def test_held(wish: Any, claimed: List[int], devices: List[Any], held: bool) -> None:
    claims = [claim(UNIT, *("GPU-%d" % index for index in claimed)), claim("b.service", "GPU-0", "GPU-1")]
    assert unfit.held({UNIT: wish}, claims, devices) == [UNIT] * held
