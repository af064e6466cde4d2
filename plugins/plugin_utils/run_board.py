# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host of a run does now, as the lines of a board of a given size. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Tuple

from ..module_utils.toolbox.text import one_line
from .run_summary import natural, ranges

STATES = ("failed", "running", "waiting")
"""In the order in which hosts are listed where not all have a line."""
_NAMES = 30  # characters of the names of hosts that do the same


@dataclass
class Host:
    """What one host does."""

    state: str = "waiting"
    phase: str = ""
    """The task that runs, or what the last one said."""
    since: str = ""


@dataclass
class Board:
    """The hosts of a play."""

    play: str = ""
    task: str = ""
    hosts: Dict[str, Host] = field(default_factory=dict)

    def starts(self, host: str, task: str, now: str) -> None:
        """A task starts on a host.

        :param now: the time of day.
        """
        self.task = one_line(task)
        self.hosts[host] = Host("running", self.task, now)

    def ends(self, host: str, said: str = "", failed: bool = False) -> None:
        """A task has ended on a host.

        :param said: its message; without one, the host shows what it did.
        """
        before = self.hosts.setdefault(host, Host())
        self.hosts[host] = Host("failed" if failed else "waiting", one_line(said) or before.phase)

    def lines(self, width: int, height: int) -> List[str]:
        """At most ``height`` lines of at most ``width`` characters: one for each host, or for all that do the same."""
        running = sum(host.state == "running" for host in self.hosts.values())
        head = "%s · %s · %d of %d hosts at work" % (one_line(self.play), self.task, running, len(self.hosts))
        rows = [([name], host) for name, host in sorted(self.hosts.items(), key=lambda item: natural(item[0]))]
        if len(rows) > height - 1:
            rows = _groups(self.hosts)
        if len(rows) > height - 1:
            left = sum(len(names) for names, _host in rows[height - 2 :])
            rows = [*rows[: height - 2], ([""], Host("", "and %d more hosts" % left))]
        shown = [(_cut(one_line(ranges(names)), _NAMES), host) for names, host in rows]
        wide = max([len(names) for names, _host in shown] or [0])
        return [_cut(line, width) for line in [head, *(_line(names.ljust(wide), host) for names, host in shown)]]


def _groups(hosts: Mapping[str, Host]) -> List[Tuple[List[str], Host]]:
    """The hosts that do the same, those with the most urgent state first."""
    alike: Dict[Tuple[str, str], List[str]] = {}
    for name, host in hosts.items():
        alike.setdefault((host.state, host.phase), []).append(name)
    found = [(names, Host(state, phase, hosts[names[0]].since)) for (state, phase), names in alike.items()]
    return sorted(found, key=lambda row: (STATES.index(row[1].state), -len(row[0]), natural(min(row[0], key=natural))))


def _line(names: str, host: Host) -> str:
    since = "  since %s" % host.since if host.since else ""
    return ("  %s  %-7s  %s%s" % (names, host.state, host.phase, since)).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
