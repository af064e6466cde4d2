# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of the hosts of a run, in a block that fits a screen: failures first, equal lines folded. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ..module_utils.toolbox.text import one_line

OURS = "gpufleet.inference."
MOST = 10
"""Lines for the hosts of one state that is not a failure."""
STATES = ("put back", "failed", "unreachable", "not touched", "changed", "would change", "as before")
"""In the order in which they are printed."""
FAILURES = STATES[:3]
LONGEST = 1000
"""Characters of what one task said: a host must not fill the screen."""

_QUANTITY = re.compile(r"\d+(?:\.\d+)?(?= (?:s|ms|[KMGT]i?B|tokens/s)\b)")
_NUMBERED = re.compile(r"(?P<before>[^.]*?)(?P<number>\d+)(?P<after>[^.\d]*(?:\..*)?)\Z", re.DOTALL)
_CONNECTION = re.compile(r".*?(?:over|via) ssh: (?:ssh: connect to host \S+ port \d+: )?")


class HostRun(NamedTuple):
    """What became of one host."""

    name: str
    state: str
    """One of STATES."""
    line: str = ""
    unproven: bool = False
    """Whether ``gpufleet_prove=now`` would have a model answer that did not."""


@dataclass
class Results:
    """The results of a run's tasks on one host, in their order."""

    lines: List[Tuple[str, bool, str]] = field(default_factory=list)
    """The module of a task, whether it changed something, and its line."""
    tasks: List[str] = field(default_factory=list)
    """Names of other tasks that changed something."""
    failure: Optional[Mapping[str, Any]] = None
    unreachable: Optional[Mapping[str, Any]] = None
    stopped: bool = False
    """Whether the failure is only that of earlier hosts."""
    unproven: bool = False
    plays: Set[str] = field(default_factory=set)
    """Names of the plays in which a module of this collection did more than look."""

    def ok(self, play: str, action: str, task: str, result: Mapping[str, Any]) -> None:
        """A task that did not fail.

        :param action: its module, with the collection's name.
        """
        if action == OURS + "host_check":  # what the modules would have said of a host that is as declared
            for name, module in result.get("modules", {}).items():
                self.ok(play, module, task, result["registered"][name])
            return
        if action.startswith(OURS) and action != OURS + "gpu_facts":
            self.plays.add(play)
        for one in result.get("results") or [result]:
            changed, said = bool(one.get("changed")), one.get("msg")
            if action.startswith(OURS) and isinstance(said, str) and (changed or action.endswith("_service")):
                self.lines.append((action, changed, one_line(said, LONGEST)))
            elif changed and task not in self.tasks:
                self.tasks.append(task)
        if action.endswith("_service"):
            instances = (result.get("instances") or {"": result}).values()
            self.unproven = any(one.get("unproven") == "nothing changed" for one in instances)

    @property
    def line(self) -> str:
        """What changed, and the last that each service said of itself."""
        said = [", ".join(self.tasks)] if self.tasks else []
        last = {action: line for action, _changed, line in self.lines if action.endswith("_service")}
        for action, changed, line in self.lines:
            if line == last.get(action):
                said.append(re.sub(r"\A(ok ·|would) ", "", line))
            elif changed and action in last:  # it was asked again: what is true no longer, or said again, is left out
                known = {"ok", *last[action].split(" · ")}
                said += [part for part in line.split(" · ") if part not in known and not part.startswith("not proven")]
            elif changed:
                said.append("models: " + line if action == OURS + "ollama_model" else line)
        return " | ".join(said)

    def run(self, name: str, counts: Mapping[str, int], check: bool, missed: Sequence[str]) -> HostRun:
        """
        :param counts: Ansible's own, ``ok``, ``changed``, ``failures``, ``unreachable``.
        :param missed: names of plays that ended before this host's turn, as other hosts had failed.
        """
        if counts.get("unreachable"):
            return HostRun(name, "unreachable", no_answer(self.unreachable or {}))
        if counts.get("failures") and not self.stopped:
            failed = self.failure or {}
            return HostRun(name, "put back" if failed.get("rolled_back") else "failed", cause(failed))
        if missed and not self.plays:
            return HostRun(name, "not touched", "the run stopped before its turn")
        changed = "would change" if check else "changed"
        line = " | ".join(filter(None, [self.line, *("not reached: %s" % play for play in missed)]))
        return HostRun(name, changed if counts.get("changed") else "as before", line, self.unproven)


def cause(result: Mapping[str, Any]) -> str:
    """Why a task failed, in one line."""
    items = [one for one in result.get("results") or () if one.get("failed")]
    said = (items[0] if items else result).get("msg")
    return one_line(said if isinstance(said, str) and said else "no reason given", LONGEST)


def no_answer(result: Mapping[str, Any]) -> str:
    """Why a host was unreachable, in one line."""
    return _CONNECTION.sub("", cause(result))


def block(hosts: Sequence[HostRun], seconds: float) -> List[Tuple[str, str]]:
    """The lines to print, each with the state that it is about; the first and the last ones are about no state.

    :param seconds: how long the run took.
    """
    found = [("", "gpufleet: %s in %s%s" % (_hosts(len(hosts)), duration(seconds), _totals(hosts)))]
    rows = [(state, *row) for state in STATES for row in _rows([host for host in hosts if host.state == state])]
    width = max([len(names) for _state, names, _line in rows if len(names) <= 30] or [0])
    for state, names, line in rows:
        found.append((state, ("  %-12s %s  %s" % (state, names.ljust(width), line)).rstrip()))
    again = [host.name for host in hosts if host.state in FAILURES]
    if again:
        found.append(("", "  Again for those that failed: --limit %s" % ",".join(sorted(again, key=natural))))
    unproven = sum(host.unproven for host in hosts)
    if unproven:
        text = "  Not proven: on %s no model had to answer, as nothing changed; -e gpufleet_prove=now has them answer"
        found.append(("", text % _hosts(unproven)))
    return found


def _totals(hosts: Sequence[HostRun]) -> str:
    counts = {state: sum(host.state == state for host in hosts) for state in STATES}
    fine = {state: counts[state] for state in STATES[4:] if counts[state]}
    parts = ["%d %s" % (counts[state], state) for state in STATES[:4] if counts[state]]
    if fine:
        parts.insert(0, "%d ok (%s)" % (sum(fine.values()), ", ".join("%d %s" % (n, s) for s, n in fine.items())))
    return "".join(" · " + part for part in parts)


def _rows(hosts: Sequence[HostRun]) -> Iterator[Tuple[str, str]]:
    """Names and line of all hosts of one state whose lines are alike."""
    alike: Dict[str, List[HostRun]] = {}
    for host in hosts:
        alike.setdefault(_QUANTITY.sub("#", _anonymous(host)), []).append(host)
    groups = sorted(alike.values(), key=lambda group: (-len(group), natural(group[0].name)))
    shown = len(groups) if not hosts or hosts[0].state in FAILURES or len(groups) <= MOST else MOST - 1
    for group in groups[:shown]:
        yield ranges([host.name for host in group]), _merged(group)
    rest = sum(len(group) for group in groups[shown:])
    if rest:
        yield _hosts(rest), "with %d other lines" % (len(groups) - shown)


def _anonymous(host: HostRun) -> str:
    return re.sub(r"(?<![\w.-])%s(?![\w-])" % re.escape(host.name), "HOST", host.line)


def _merged(group: Sequence[HostRun]) -> str:
    """The line of hosts whose lines differ in quantities alone: ``restart 0.6–1.1 s``."""
    if len(group) == 1:
        return group[0].line
    lines = [_anonymous(host) for host in group]
    columns = iter(list(zip(*(_QUANTITY.findall(line) for line in lines))))

    def spread(_match: "re.Match[str]") -> str:
        values = sorted(next(columns), key=float)
        return values[0] if float(values[0]) == float(values[-1]) else "%s–%s" % (values[0], values[-1])

    return _QUANTITY.sub(spread, lines[0])


def ranges(names: Sequence[str]) -> str:
    """Host names, the numbered ones folded: ``gpu[01-06,08].example,login``."""
    series: Dict[Tuple[str, str], List[str]] = {}
    for name in sorted(sorted(set(names)), key=natural):
        match = _NUMBERED.match(name)
        key, number = ((match["before"], match["after"]), match["number"]) if match else ((name, ""), "")
        series.setdefault(key, []).append(number)
    return ",".join(
        before + (numbers[0] if len(numbers) == 1 else "[%s]" % _folded(numbers)) + after
        for (before, after), numbers in series.items()
    )


def _folded(numbers: Sequence[str]) -> str:
    """``01-06,08`` of numbers in their order."""
    runs: List[List[str]] = []
    for number in numbers:
        if runs and int(number) == int(runs[-1][-1]) + 1 and number == str(int(number)).zfill(len(runs[-1][-1])):
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(run[0] if len(run) == 1 else "%s-%s" % (run[0], run[-1]) for run in runs)


def natural(name: str) -> List[Any]:
    """A key that sorts gpu2 before gpu10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def duration(seconds: float) -> str:
    """``4.2 s``, ``45 s``, ``3 min 12 s``, ``2 h 5 min``."""
    if seconds < 10:
        return "%.1f s" % seconds
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return "%d s" % rest
    return "%d min %d s" % (minutes, rest) if minutes < 60 else "%d h %d min" % divmod(minutes, 60)


def _hosts(number: int) -> str:
    return "%d host%s" % (number, "s"[: number != 1])
