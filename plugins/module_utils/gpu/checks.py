# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a GPU, one row each, from its facts, its twins and the kernel's log. Data. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

Device = Dict[str, Any]

UNFIT = "unfit"
"""It must not be used: its answers may be wrong, or there will be none."""
SLOW = "slow"
"""It works, but slower than it could. A service that left it would be restarted twice."""
NOTE = "note"
"""It works, but somebody should look at it."""


ACTIONS = {
    "reset": "reset the GPU",
    "reboot": "reboot the host",
    "replace": "have the GPU replaced",
    "restart": "restart the program that used it",
    "look": "look into it",
    "none": "nothing",
}
"""What to do, in words."""
AMONG_GPUS = "acs_on"
"""A check that says nothing of a GPU that is alone on its host."""
URGENT = ("reset", "reboot", "replace")
"""Actions that somebody has to take, even if the GPU works."""


class Check(NamedTuple):
    name: str
    """The same in every view: facts, messages, plan, report, metrics, alerts."""
    effect: str
    action: str
    """A key of ACTIONS."""
    found: Callable[[Device], Any]
    """What was found; a false value is no finding, and so is a fact that is not known."""
    says: str
    """The sentence; ``%s`` is what was found."""
    remedy: str = ""
    """What to do, where more is known than its action says."""


def _slowdown(name: str) -> Callable[[Device], Any]:
    return lambda device: name in (device["clocks_event_reasons"] or ())


def _fabric_failed(device: Device) -> Optional[str]:
    state, status = device["fabric"]["state"], device["fabric"]["status"]
    return status if state == "completed" and status not in (None, "success") else None


def _fabric_down(device: Device) -> Optional[str]:
    state = device["fabric"]["state"]
    return state if state in ("not_started", "in_progress") else None


def _fabric(effect: str) -> Callable[[Device], Optional[str]]:
    """The problems of the fabric that have this effect: it recovers from some, with less bandwidth meanwhile."""

    def found(device: Device) -> Optional[str]:
        problems = device["fabric"]["problems"] or ()
        return ", ".join(name for name in problems if (name in _FABRIC_SLOW) == (effect == SLOW))

    return found


_FABRIC_SLOW = ("degraded_bandwidth", "route_recovery", "access_timeout_recovery", "limited_capacity")


def _narrow(device: Device) -> Optional[str]:
    """The width, unlike the generation, is not lowered on an idle card."""
    width, most = device["pcie"]["width"], device["pcie"]["max_width"]
    return "%d of %d" % (width, most) if width and most and width < most else None


def _few_spare_rows(device: Device) -> Optional[str]:
    """Banks of memory in which few rows, or none, are left to replace a bad one."""
    banks = device["remapped_rows"]["spare_banks"]
    low, none = banks["low"] or 0, banks["none"] or 0
    return "%d low, %d without any" % (low, none) if low or none else None


def _hot(device: Device) -> Optional[str]:
    margin = device["temperature"]["margin_celsius"]
    return "%d °C" % margin if margin is not None and 0 <= margin <= 5 else None


def _long(name: str) -> Callable[[Device], Optional[str]]:
    """How long it was slowed down, if that is more than a moment."""

    def found(device: Device) -> Optional[str]:
        seconds = device["slowdown"][name] or 0
        return "%d min" % (seconds // 60) if seconds >= 600 else None

    return found


def _redirected(device: Device) -> Optional[str]:
    """The bridges that keep GPUs from reaching each other directly; those with NVLink do not need them."""
    return None if device["nvlink"]["active_count"] else ", ".join(device["pcie"]["acs_redirects"] or ())


CHECKS: Tuple[Check, ...] = (
    Check(
        "ecc_uncorrected",
        UNFIT,
        "reset",
        lambda device: device["ecc"]["volatile"]["uncorrected"],
        "%s uncorrectable memory errors since the driver was loaded (ECC, volatile)",
    ),
    Check(
        "remap_failed",
        UNFIT,
        "replace",
        lambda device: device["remapped_rows"]["failure"],
        "remapping of memory rows has failed",
        "have the board replaced",
    ),
    Check(
        "remap_pending",
        UNFIT,
        "reset",
        lambda device: device["remapped_rows"]["pending"],
        "remapping of memory rows is pending",
        "reset the GPU",
    ),
    Check(
        "retirement_pending",
        UNFIT,
        "reset",
        lambda device: device["retired_pages"]["pending"],
        "retirement of memory pages is pending",
        "reset the GPU",
    ),
    Check(
        "repair_pending",
        UNFIT,
        "reset",
        lambda device: device["repair"]["channel_pending"] or device["repair"]["tpc_pending"],
        "a repair of the GPU is pending",
        "reset the GPU",
    ),
    Check(
        "recovery_requested",
        UNFIT,
        "look",
        lambda device: device["recovery_action"] if device["recovery_action"] != "none" else None,
        "the driver asks for recovery: %s",
    ),
    Check(
        "fabric_down",
        UNFIT,
        "look",
        _fabric_down,
        "its NVLink fabric is not up (state %s)",
        "check the nvidia-fabricmanager service",
    ),
    Check(
        "fabric_failed",
        UNFIT,
        "look",
        _fabric_failed,
        "its NVLink fabric has failed (%s)",
        "check the nvidia-fabricmanager service",
    ),
    Check(
        "fabric_unhealthy",
        UNFIT,
        "look",
        _fabric(UNFIT),
        "its NVLink fabric is unhealthy (%s)",
        "check the nvidia-fabricmanager service and the NVSwitches",
    ),
    Check(
        "sram_threshold",
        UNFIT,
        "replace",
        lambda device: device["ecc"]["sram_threshold_exceeded"],
        "the memory on its chip had too many uncorrectable errors (SRAM threshold)",
        "have the board replaced",
    ),
    Check(
        "memory_unrepairable",
        UNFIT,
        "replace",
        lambda device: device["unrepairable_memory"],
        "its memory cannot be repaired any more",
        "have the board replaced",
    ),
    Check(
        "fabric_degraded",
        SLOW,
        "look",
        _fabric(SLOW),
        "its NVLink fabric has less bandwidth (%s)",
        "check the NVLinks and the nvidia-fabricmanager service",
    ),
    # gpu_idle and sw_power_cap are everyday, sw_thermal_slowdown is warm weather
    Check("hw_slowdown", SLOW, "look", _slowdown("hw_slowdown"), "the hardware holds the clocks down (hw_slowdown)"),
    Check(
        "hw_thermal_slowdown",
        SLOW,
        "look",
        _slowdown("hw_thermal_slowdown"),
        "the hardware holds the clocks down because of heat (hw_thermal_slowdown)",
    ),
    Check(
        "hw_power_brake_slowdown",
        SLOW,
        "look",
        _slowdown("hw_power_brake_slowdown"),
        "the power supply holds the clocks down (hw_power_brake_slowdown)",
    ),
    Check(
        "pcie_narrow",
        NOTE,
        "look",
        _narrow,
        "its PCI Express link uses %s lanes",
        "check its seat, and the settings of the slot",
    ),
    Check(
        "spare_rows_low",
        NOTE,
        "replace",
        _few_spare_rows,
        "its memory is running out of spare rows (banks: %s)",
        "replace it before one fails",
    ),
    Check(
        "nvlink_errors",
        NOTE,
        "look",
        lambda device: device["nvlink"]["recovery_errors"],
        "its NVLinks had to recover %s times",
        "check their cables and the seat of the boards",
    ),
    Check(
        "slowed_by_heat",
        NOTE,
        "look",
        _long("thermal_seconds"),
        "heat has slowed it down for %s since the driver was loaded",
        "check the cooling",
    ),
    Check(
        "slowed_by_power",
        NOTE,
        "look",
        _long("power_brake_seconds"),
        "the power supply has slowed it down for %s since the driver was loaded",
        "check the power supply",
    ),
    Check(
        "inforom_corrupt",
        NOTE,
        "look",
        lambda device: device["inforom_corrupt"],
        "its infoROM is corrupt, so that its record of bad memory may be lost",
        "ask the vendor",
    ),
    Check(
        "pcie_errors",
        NOTE,
        "look",
        lambda device: device["pcie"]["uncorrectable_errors"],
        "its PCI Express link had %s uncorrectable errors since boot (AER)",
        "check the seat of the card and its riser",
    ),
    Check(
        AMONG_GPUS,
        NOTE,
        "look",
        _redirected,
        "PCI bridges above it (%s) send what goes to other GPUs through the CPU",
        "switch ACS off there, unless virtual machines need it",
    ),
    Check("hot", NOTE, "look", _hot, "it is %s below the temperature at which it slows down", "check the cooling"),
)

TWINS: Tuple[Tuple[str, str], ...] = (
    ("vbios_version", "VBIOS"),
    ("gsp_firmware_version", "GSP firmware"),
    ("board_part_number", "board"),
    ("memory.total_bytes", "memory in bytes"),
    ("ecc.enabled", "ECC"),
    ("mig.enabled", "MIG"),
    ("power.limit_watts", "power limit in watts"),
    ("pcie.max_width", "lanes of its slot"),
    ("nvlink.active_count", "NVLinks that are up"),
    ("clocks.max_sm_mhz", "highest clock in MHz"),
)
"""Facts in which the GPUs of one name on a host are alike, and what they are called."""

XIDS: Dict[int, Tuple[str, str]] = {
    31: ("restart", "memory page fault of a program"),
    13: ("restart", "exception of a program"),
    43: ("none", "a program's channel was stopped"),
    45: ("restart", "a program's channels were cleaned up"),
    46: ("reset", "the GPU stopped processing"),
    48: ("reset", "double-bit memory error"),
    61: ("restart", "breakpoint of the GPU's own controller"),
    62: ("reset", "the GPU's own controller halted"),
    63: ("none", "a memory row was replaced"),
    64: ("reset", "a memory row could not be recorded as bad"),
    74: ("look", "NVLink error"),
    79: ("reboot", "the GPU has fallen off the bus"),
    92: ("none", "many corrected memory errors"),
    94: ("restart", "contained memory error"),
    95: ("reset", "memory error that was not contained"),
    109: ("reset", "context switch timed out"),
    110: ("reset", "security fault"),
    119: ("reset", "the GPU's system processor did not answer"),
    120: ("reset", "error of the GPU's system processor"),
    136: ("reset", "links could not be trained"),
    140: ("reset", "memory error that was not recovered"),
    143: ("reset", "the GPU could not be initialised"),
    145: ("look", "NVLink error (RLW)"),
    149: ("look", "NVLink error (NETIR)"),
    151: ("reboot", "key rotation failed"),
    154: ("look", "the driver asks for another recovery"),
    155: ("reset", "NVLink went down"),
    156: ("reset", "a resource was retired"),
    158: ("reset", "fatal timeout of the GPU"),
}
"""NVIDIA's codes in the kernel's log: the action of its catalogue of 2025-10, and what it means.

``restart``: the program that used the GPU has failed, the GPU has not. Somebody should look at any other code.
"""
