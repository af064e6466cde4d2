# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a GPU is fit for work, out of what the facts say of it. Pure."""

from __future__ import annotations

from typing import Any, Dict, Optional

#: Event reasons that mean trouble; gpu_idle and sw_power_cap are everyday, sw_thermal_slowdown is warm weather.
SLOWDOWNS = {
    "hw_slowdown": "the hardware holds the clocks down (hw_slowdown)",
    "hw_thermal_slowdown": "the hardware holds the clocks down because of heat (hw_thermal_slowdown)",
    "hw_power_brake_slowdown": "the power supply holds the clocks down (hw_power_brake_slowdown)",
}


def health(device: Dict[str, Any], lost: Optional[str] = None) -> Dict[str, Any]:
    """What is known against using a GPU.

    :param device: one of the facts' devices.
    :param lost: why it does not answer; None when it does.
    :returns: ``ok`` (bool: nothing is known against it), ``fit`` (bool: the same, apart from clocks that are held
        down: a slow GPU gives right answers and is slow for a while, and a service that left it would be restarted
        twice), ``lost`` (bool: no answer), ``reasons`` (list of str). A datum that is not known counts neither for nor
        against.
    """
    reasons = []
    if lost:
        reasons.append(lost)
    uncorrected = device["ecc"]["volatile"]["uncorrected"]
    if uncorrected:
        reasons.append("%d uncorrectable memory errors since the driver was loaded (ECC, volatile)" % uncorrected)
    if device["remapped_rows"]["failure"]:
        reasons.append("remapping of memory rows has failed: the board needs replacing")
    if device["remapped_rows"]["pending"]:
        reasons.append("remapping of memory rows is pending: reset the GPU")
    if device["retired_pages"]["pending"]:
        reasons.append("retirement of memory pages is pending: reset the GPU")
    if device["repair"]["channel_pending"] or device["repair"]["tpc_pending"]:
        reasons.append("a repair of the GPU is pending: reset the GPU")
    if device["recovery_action"] not in (None, "none"):
        reasons.append("the driver asks for recovery: %s" % device["recovery_action"])
    state, status = device["fabric"]["state"], device["fabric"]["status"]
    if state in ("not_started", "in_progress"):
        reasons.append("its NVLink fabric is not up (state %s): check the nvidia-fabricmanager service" % state)
    elif state == "completed" and status not in (None, "success"):
        reasons.append("its NVLink fabric has failed (%s): check the nvidia-fabricmanager service" % status)
    slow = [SLOWDOWNS[name] for name in device["clocks_event_reasons"] or () if name in SLOWDOWNS]
    return {"ok": not reasons and not slow, "fit": not reasons, "lost": bool(lost), "reasons": reasons + slow}
