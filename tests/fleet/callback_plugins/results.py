# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write every task result as one JSON line to the file named by GPUFLEET_RESULTS: what the fleet tests read."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: results
type: notification
short_description: Task results as JSON lines, for the fleet tests
description: One line for each result, and one with the recap; to the file that E(GPUFLEET_RESULTS) names.
"""


class CallbackModule(CallbackBase):
    """Lines are {"host", "task", "action", "status", "result"}; the last one is {"stats": {host: {...}}}."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "results"

    def _write(self, line):
        with open(os.environ["GPUFLEET_RESULTS"], "a", encoding="utf-8") as out:
            out.write(json.dumps(line, default=str) + "\n")

    def _result(self, status, result):
        # The underscored names: ansible-core before 2.19 has no others.
        line = {
            "host": result._host.get_name(),
            "task": result._task.get_name(),
            "action": result._task.resolved_action or result._task.action,
            "status": status,
            # _dump_results is what the stock callbacks print: no_log and internal keys are already cared for.
            "result": json.loads(self._dump_results(result._result, indent=0, serialize=True)),
        }
        self._write(line)

    def v2_runner_on_ok(self, result):
        self._result("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._result("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_unreachable(self, result):
        self._result("unreachable", result)

    def v2_runner_on_skipped(self, result):
        self._result("skipped", result)

    def v2_playbook_on_stats(self, stats):
        self._write({"stats": {host: stats.summarize(host) for host in sorted(stats.processed)}})
