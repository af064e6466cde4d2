# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An action plugin without a host: what it asks, calls and sends is kept, what comes back is the test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.plugin_utils import check_first
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`act = sending(PLUGIN)`; `act(arguments, answers)` runs it, the module's answers are `answers`.

    Asked without a module, the host says `act.answer`. Afterwards `act.asked` are the arguments it was asked with,
    `act.calls` those of the module, and `act.sent` what `act.kept(local, remote)` made of each file that was sent.
    """

    def of(plugin_file: Any) -> Any:
        def run(arguments: Dict[str, Any], answers: Iterable[Dict[str, Any]], background: int = 0) -> Dict[str, Any]:
            plugin = plugin_file.ActionModule.__new__(plugin_file.ActionModule)
            plugin._task = SimpleNamespace(args=arguments, async_val=background)
            shell = SimpleNamespace(tmpdir="/tmp/a", join_path=lambda *parts: "/".join(parts))
            plugin._connection = SimpleNamespace(_shell=shell)
            run.calls, run.sent = [], []
            left = iter(answers)

            def execute(module_name: str, module_args: Any, task_vars: Any, wrap_async: Any) -> Dict[str, Any]:
                assert module_name == plugin_file.ActionModule.MODULE
                run.calls.append(dict(module_args))
                return next(left)

            plugin._execute_module = execute
            plugin._find_needle = lambda folder, needle: needle
            plugin._make_tmp_path = lambda: "/tmp/a"
            plugin._transfer_file = lambda local, remote: run.sent.append(run.kept(local, remote))
            plugin._fixup_perms2 = lambda paths: None
            return plugin.run(task_vars={})

        run.answer, run.asked = None, []
        run.kept = lambda local, remote: (local, remote)
        monkeypatch.setattr(CheckFirstAction, "checks_first", lambda self, arguments, variables: True)
        monkeypatch.setattr(
            CheckFirstAction,
            "check_on_host",
            lambda self, arguments, variables: run.asked.append(arguments) or run.answer,
        )
        monkeypatch.setattr(check_first, "problems", lambda *words: ())  # the tests give what they are about
        monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
        return run

    return of
