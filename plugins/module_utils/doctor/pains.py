# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known to go wrong on hosts that serve models, one row each, with its fix in one line. Data. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple

from ..converge.override import DROP_IN

RESTARTS = 3
"""Restarts by systemd itself from which on a unit is in a loop."""
FLAPS = 3
"""How often the link of a port was down: once or twice is a boot or a cable that was moved."""
PORT_ERRORS = ("symbol_error", "link_error_recovery", "port_rcv_errors", "local_link_integrity_errors")
FULL = 95
"""Percent of a disk in use."""


class Seen(NamedTuple):
    """What was found on a host."""

    facts: Mapping[str, Any]
    """The facts of its GPUs."""
    units: Mapping[str, Mapping[str, str]]
    """Our services, with their properties as systemd shows them."""
    modules: List[str]
    """The loaded kernel modules."""
    nodes: List[str]
    """Names in /dev."""
    disks: Mapping[str, int]
    """Mount point → percent in use."""
    reboot: bool
    """Whether the distribution asks for a reboot."""
    ports: Mapping[str, Mapping[str, int]]
    """Port of an RDMA device → its counters."""
    stuck: Mapping[int, str]
    """Processes that the driver does not give back → their names."""


class Pain(NamedTuple):
    name: str
    found: Callable[[Seen], Iterator[str]]
    """A sentence for each place in which it was found."""
    fix: str


def _units(says: str, wrong: Callable[[Mapping[str, str]], Any]) -> Callable[[Seen], Iterator[str]]:
    """A check of each unit; ``%s`` of the sentence is its name, and what was found if that is text."""

    def found(seen: Seen) -> Iterator[str]:
        for unit, state in seen.units.items():
            value = wrong(state)
            if value:
                yield says % ((unit, value) if says.count("%s") > 1 else unit)

    return found


def _foreign(state: Mapping[str, str]) -> str:
    names = [path for path in state.get("DropInPaths", "").split() if not path.endswith("/" + DROP_IN)]
    return ", ".join(name for name in names if name.rpartition("/")[2] > DROP_IN)


def _holders(seen: Seen) -> Iterator[str]:
    for device in seen.facts.get("devices", ()):
        for process in device["processes"] or ():
            if process["unit"] not in seen.units:
                words = (device["index"], process["pid"], process["name"], process["unit"] or "no unit")
                yield "GPU %s is used by process %s (%s, %s), which is none of our services" % words


def _memlock(seen: Seen) -> Iterator[str]:
    if seen.facts.get("rdma"):
        for unit, state in seen.units.items():
            if state.get("LimitMEMLOCK", "infinity").isdigit():
                yield "%s may lock %s bytes of memory, and this host has RDMA" % (unit, state["LimitMEMLOCK"])


def _ports(seen: Seen) -> Iterator[str]:
    for port, counters in seen.ports.items():
        found = ["%s %d" % (name, counters[name]) for name in PORT_ERRORS if counters.get(name)]
        if counters.get("link_downed", 0) >= FLAPS:
            found.append("link_downed %d" % counters["link_downed"])
        if found:
            yield "RDMA port %s has counted: %s" % (port, ", ".join(found))


def _stuck(seen: Seen) -> Iterator[str]:
    for pid, name in seen.stuck.items():
        yield "process %d (%s) hangs in the NVIDIA driver, and cannot be killed" % (pid, name)


def _peermem(seen: Seen) -> Iterator[str]:
    if seen.facts.get("rdma") and seen.facts.get("count") and "nvidia_peermem" not in seen.modules:
        yield "this host has RDMA, but the kernel module nvidia_peermem is not loaded"


def _persistence(seen: Seen) -> Iterator[str]:
    off = [str(device["index"]) for device in seen.facts.get("devices", ()) if device["persistence_mode"] is False]
    if off:
        yield "persistence mode is off on GPU %s" % ", ".join(off)


def _nodes(seen: Seen) -> Iterator[str]:
    if seen.facts.get("count") and not seen.facts.get("fault") and "nvidia-uvm" not in seen.nodes:
        yield "there is no /dev/nvidia-uvm: CUDA programs would use the CPU"


PAINS = (
    Pain("stuck_in_driver", _stuck, "drain the host and reboot it; kernel.txt may say why"),
    Pain("rdma_errors", _ports, "check cable and transceiver of that port; the counters start again at a reboot"),
    Pain("no_peermem", _peermem, "modprobe nvidia_peermem: without it, data between hosts goes through host memory"),
    Pain("no_uvm", _nodes, "modprobe nvidia-uvm, and start the service again"),
    Pain(
        "nouveau",
        lambda seen: iter(["the kernel module nouveau is loaded"] * ("nouveau" in seen.modules)),
        "blacklist nouveau, rebuild the initramfs, and reboot",
    ),
    Pain(
        "reboot_required",
        lambda seen: iter(["the distribution asks for a reboot"] * seen.reboot),
        "drain the host and reboot it; until then a new driver is not in use",
    ),
    Pain("persistence_off", _persistence, "nvidia-smi --persistence-mode=1; the role gpu_host keeps it on"),
    Pain(
        "failed",
        _units("%s has failed", lambda state: state.get("ActiveState") == "failed"),
        "read logs/UNIT.log; systemctl reset-failed UNIT, and start it",
    ),
    Pain(
        "restart_loop",
        _units(
            "%s was restarted %s times by systemd",
            lambda state: state["NRestarts"] if int(state.get("NRestarts") or 0) >= RESTARTS else "",
        ),
        "read logs/UNIT.log for what ends it",
    ),
    Pain(
        "not_loaded",
        _units(
            "%s: its files have changed since systemd read them", lambda state: state.get("NeedDaemonReload") == "yes"
        ),
        "systemctl daemon-reload, then run site.yml, which restarts it only if it must",
    ),
    Pain(
        "later_drop_in",
        _units("%s: a file sorts after ours and wins: %s", _foreign),
        "remove or rename that file, or declare its values",
    ),
    Pain(
        "orphans",
        _units(
            "%s leaves processes behind (KillMode=%s)",
            lambda state: state.get("KillMode") if state.get("KillMode") in ("process", "none") else "",
        ),
        "set KillMode=control-group: processes that stay keep the GPU's memory",
    ),
    Pain("memlock", _memlock, "declare gpu_host_limits: {memlock: infinity}"),
    Pain("foreign_holder", _holders, "stop that process, or take its GPU out of visible_devices"),
    Pain(
        "disk_full",
        lambda seen: ("%s is %d %% full" % item for item in seen.disks.items() if item[1] >= FULL),
        "remove models that no service uses, or move them",
    ),
)


def _place(finding: Mapping[str, Any]) -> str:
    return "" if finding["gpu"] is None else "GPU %d: " % finding["gpu"]


def check(seen: Seen) -> List[Dict[str, str]]:
    """What was found: ``pain``, ``text``, ``fix``. A finding of the facts keeps its name."""
    known = [
        {"pain": one["check"], "text": _place(one) + one["text"], "fix": one["remedy"]}
        for one in seen.facts.get("findings", ())
    ]
    return known + [{"pain": pain.name, "text": text, "fix": pain.fix} for pain in PAINS for text in pain.found(seen)]


def support(facts: Mapping[str, Any], host: str, now: str) -> str:
    """What a vendor asks for before a board is replaced: serial, place, and what was found, of each GPU."""
    lines = ["host: %s" % host, "time: %s" % now, "driver: %s" % (facts.get("driver") or {}).get("version")]
    for device in facts.get("devices", ()):
        lines += ["", "GPU %s" % device["index"]]
        for title, name in (
            *(("name", "name"), ("serial number", "serial"), ("board", "board_part_number"), ("UUID", "uuid")),
            *(("slot (PCI address)", "pci_bus_id"), ("VBIOS", "vbios_version")),
        ):
            lines.append("  %s: %s" % (title, device[name]))
        own = [found for found in facts.get("findings", ()) if found["gpu"] == device["index"]]
        lines += ["  found: %s: %s" % (found["check"], found["text"]) for found in own] or ["  found: nothing"]
    gone = [found for found in facts.get("findings", ()) if found["gpu"] is None]
    lines += (
        ["", *("of the host, or a GPU that is gone: %s: %s" % (one["check"], one["text"]) for one in gone)]
        if gone
        else []
    )
    return "\n".join(lines) + "\n"
