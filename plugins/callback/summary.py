# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints at the end of a run what became of its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: summary
type: aggregate
short_description: Prints what became of the hosts of a run, in one block that fits a screen
version_added: 0.1.0
author: The gpufleet developers (@gpufleet)
description:
  - After the recap of a playbook that uses this collection, prints one block for all plays and batches. It has the
    totals and the duration, the failed hosts with their causes, and one line for all hosts that reported the same.
  - Hosts that the run did not get to, because it stopped after a failed batch, are listed as C(not touched).
  - It prints nothing for other playbooks, or for C(gpufleet.inference.rollout), which ends with its own receipt.
requirements:
  - 'To enable it, add it to the list C(callbacks_enabled) of the section C([defaults]) in C(ansible.cfg):
    C(callbacks_enabled = gpufleet.inference.summary). The playbooks of this collection then leave out their own report
    of each batch.'
"""

import time
from itertools import chain
from typing import Any, Dict, Iterator, Set

from ansible import constants as C
from ansible.plugins.callback import CallbackBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils import run_summary

COLORS = {"changed": C.COLOR_CHANGED, "would change": C.COLOR_CHANGED, "as before": C.COLOR_OK}  # type: ignore[attr-defined]
NOT_TOUCHED = "gpufleet_not_touched"
"""Variable of a task that fails because earlier hosts did."""


class CallbackModule(CallbackBase):
    """Collects the results of each host; ``run_summary`` has the words."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "gpufleet.inference.summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.results: Dict[str, run_summary.Results] = {}
        self.plays: Dict[str, Set[str]] = {}
        self.started, self.play, self.ours, self.check = time.monotonic(), "", False, False
        self.rollout = False

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self.play = play.get_name()
        self.check = self.check or bool(play.check_mode)
        if any(name.startswith(run_summary.OURS) for name in _roles(play)):
            inventory = play.get_variable_manager()._inventory
            # for each batch, but with the hosts of all
            self.plays[self.play] = {host.name for host in inventory.get_hosts(play.hosts, ignore_restrictions=True)}

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self.rollout = self.rollout or task.action == run_summary.OURS + "rollout"

    def v2_runner_on_ok(self, result: Any) -> None:
        action = str(getattr(result._task, "resolved_action", None) or result._task.action)
        self.ours = self.ours or action.startswith(run_summary.OURS)
        self._of(result).ok(self.play, action, result._task.name, result._result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._of(result).failure = result._result
            self._of(result).stopped = NOT_TOUCHED in result._task.vars

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._of(result).unreachable = result._result

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if self.rollout or not (self.ours or self.plays):
            return
        counts = {name: stats.summarize(name) for name in {*self.results, *chain(*self.plays.values())}}
        failed = any(count["failures"] or count["unreachable"] for count in counts.values())
        found = []
        for name in sorted(counts, key=run_summary.natural):
            results = self.results.get(name, run_summary.Results())
            missed = [
                play for play, names in self.plays.items() if failed and name in names and play not in results.plays
            ]
            found.append(results.run(name, counts[name], self.check, missed))
        for state, line in run_summary.block(found, time.monotonic() - self.started):
            self._display.display(line, color=COLORS.get(state, C.COLOR_ERROR if state else None))  # type: ignore[attr-defined]

    def _of(self, result: Any) -> run_summary.Results:
        return self.results.setdefault(result._host.get_name(), run_summary.Results())


def _roles(play: Any) -> Iterator[str]:
    """The names of the roles that a play lists, and of those that its tasks include."""
    yield from (role.get_name() for role in play.roles)
    yield from (str(getattr(task, "args", {}).get("name")) for block in play.tasks for task in block.block)
