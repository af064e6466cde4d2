# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which services the gateways should leave alone because of the health of their GPUs. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ..gpu.select import find
from ..placement.claims import Claim


def held(services: Mapping[str, Any], claims: Sequence[Claim], devices: List[Dict[str, Any]]) -> List[str]:
    """The services that have a GPU that must not be used, and stay on it.

    :param services: unit → the GPUs that are declared for it, as gpu.select takes them, ``none``, or None. The names
        of GPUs count, whatever it claims: the same run moves it there. So it does with a wish (``all``, a policy),
        unless no GPU is healthy.
    :param claims: what the services of the host claim.
    :param devices: the facts' devices. A GPU that is claimed or named and not among them is gone.
    :returns: their units, sorted.
    """
    fit = {device["uuid"] for device in devices if device["health"]["fit"]}
    claimed = {claim.unit: set(claim.gpus) for claim in claims}

    def stays(unit: str, wish: Any) -> bool:
        if wish == "none":
            return False
        if isinstance(wish, list):
            return any((find(devices, name) or {}).get("uuid") not in fit for name in wish)
        moves = wish == "all" or isinstance(wish, Mapping)
        return bool(claimed.get(unit, set()) - fit) and not (moves and fit)

    return sorted(unit for unit, wish in services.items() if stays(unit, wish))
