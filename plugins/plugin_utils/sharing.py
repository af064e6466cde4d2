# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who downloads what several hosts lack, and who seeds it to whom: one rule for all engines. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

By = Mapping[Any, Mapping[str, Any]]


def share(lack: By, have: By) -> Dict[str, Dict[str, Any]]:
    """What a host has, it seeds; of what no host has, the first that lacks it downloads it and then seeds it.

    :param lack: by model and host the item by which the model is called there, in the order of the hosts.
    :param have: the same of the hosts that have it.
    :returns: ``pull``, lists of items by host, and ``seed``, by host a dictionary with ``models``, the seeder's items,
        and ``peers``.
    """
    pulls: Dict[str, List[Any]] = {}
    seeds: Dict[str, Dict[str, Any]] = {}
    for model, peers in lack.items():
        owners = have.get(model)
        if not owners and len(peers) < 2:
            continue  # nobody to share the download with
        seeder, item = next(iter((owners or peers).items()))
        if not owners:
            pulls.setdefault(seeder, []).append(item)
        seed = seeds.setdefault(seeder, {"models": [], "peers": []})
        seed["models"].append(item)
        seed["peers"] += [peer for peer in peers if peer != seeder and peer not in seed["peers"]]
    return {"pull": pulls, "seed": seeds}
