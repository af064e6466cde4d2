# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which services the gateways should leave alone because of the health of their GPUs. Pure."""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

from ..placement.claims import Claim


def held(services: Mapping[str, bool], claims: Sequence[Claim], devices: Sequence[Mapping[str, Any]]) -> List[str]:
    """The services that have a GPU that must not be used, and stay on it.

    :param services: unit → whether it keeps its GPUs, as they are named; one with a wish (``all``, a policy) is planned
        again on the healthy ones by the same run, unless there are none.
    :param claims: what the services of the host claim.
    :param devices: the facts' devices. A GPU that is claimed and not among them is gone.
    :returns: their units, sorted.
    """
    fit = {device["uuid"] for device in devices if device["health"]["fit"]}
    return sorted(
        claim.unit
        for claim in claims
        if claim.unit in services and set(claim.gpus) - fit and (services[claim.unit] or not fit)
    )
