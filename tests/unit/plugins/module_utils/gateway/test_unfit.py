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


def device(uuid: str, fit: bool = True, ok: bool = True) -> Dict[str, Any]:
    return {"uuid": uuid, "health": {"fit": fit, "ok": ok and fit}}


FIXED, MOVES = {"a.service": True}, {"a.service": False}


@pytest.mark.parametrize(
    ("services", "claims", "devices", "held"),
    [
        pytest.param(FIXED, [claim("a.service", "0")], [device("0"), device("1", fit=False)], [], id="another's GPU"),
        pytest.param(
            FIXED, [claim("a.service", "0", "1")], [device("0"), device("1", fit=False)], ["a.service"], id="its"
        ),
        pytest.param(FIXED, [claim("a.service", "0", "9")], [device("0")], ["a.service"], id="a GPU that is gone"),
        pytest.param(FIXED, [claim("a.service", "0")], [device("0", ok=False)], [], id="one that is only slow"),
        pytest.param(MOVES, [claim("a.service", "0")], [device("0", fit=False), device("1")], [], id="it can move"),
        pytest.param(
            MOVES, [claim("a.service", "0")], [device("0", fit=False)], ["a.service"], id="it has nowhere to go"
        ),
        pytest.param(FIXED, [claim("b.service", "0")], [device("0", fit=False)], [], id="none that gateways know"),
        pytest.param(FIXED, [claim("a.service")], [device("0", fit=False)], [], id="it uses no GPU"),
        pytest.param(FIXED, [], [], [], id="nothing claimed"),
    ],
)
def test_held(services: Dict[str, bool], claims: List[Claim], devices: List[Any], held: List[str]) -> None:
    assert unfit.held(services, claims, devices) == held
