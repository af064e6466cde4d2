# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows the progress of a pull at the terminal: it runs in the background on the host, which writes it to a file."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, Mapping

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.utils.display import Display

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.modules import ollama_model
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction

FIRST = 0.5  # seconds to the first check; the pause doubles
EVERY = 3.0  # seconds between two later checks
LARGEST = 1 << 16  # bytes of a progress file
LONGEST = 7 * 24 * 3600  # seconds; a pull that stalls ends long before
ASYNC_RESULT_KEYS = (
    "started",
    "finished",
    "results_file",
    "ansible_job_id",
    "stdout",
    "stderr",
    "stdout_lines",
    "stderr_lines",
)

display = Display()


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.ollama_model"
    FUNCTION = RemoteFunction("ollama.models", "converge", ollama_model.argument_spec())

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        return dict(arguments, models=named(arguments.get("models")))

    def checks_first(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> bool:
        """Not where seeds are named: somebody has found that there is something to pull."""
        return not arguments.get("seeds") and super().checks_first(arguments, variables)

    def send(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        """The result of the module, whose pulls run in the background and are watched."""
        watched = boolean(arguments.get("progress", True), strict=False) and "progress_file" not in arguments
        deferred = boolean(arguments.get("defer_downloads", False), strict=False)
        if not watched or deferred or self._task.async_val or self._task.check_mode:
            return super().send(arguments, variables)
        result = super().send(dict(arguments, defer_downloads=True), variables)
        pulls = result.get("needs") and not result.get("failed")
        return self._watched(arguments, variables) if pulls else result

    def _watched(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        host = variables.get("inventory_hostname", "")
        folder = self._make_tmp_path()
        path = self._connection._shell.join_path(folder, "progress.json")
        limit = self._task.async_val
        self._task.async_val = LONGEST  # what the wrapper of background jobs takes as its limit
        try:
            job = self._execute_module(
                module_name=self.MODULE,
                module_args=dict(arguments, progress_file=path),
                task_vars=variables,
                wrap_async=True,
            )
        finally:
            self._task.async_val = limit
        if job.get("failed") or "ansible_job_id" not in job:
            return job
        asked = {"jid": job["ansible_job_id"], "_async_dir": os.path.dirname(job["results_file"])}
        pause = FIRST
        try:
            while True:
                # a background job on another host sends no message
                time.sleep(pause)
                pause = min(EVERY, 2 * pause)
                result = self._execute_module(
                    module_name="ansible.legacy.async_status", module_args=asked, task_vars=variables, wrap_async=False
                )
                if result.get("finished"):
                    break
                line = "" if self._task.no_log else sentence(self._read(path))
                if line:
                    display.display("%s: %s" % (host, line))
        finally:
            self._execute_module(
                module_name="ansible.legacy.async_status",
                module_args=dict(asked, mode="cleanup"),
                task_vars=variables,
                wrap_async=False,
            )
            self._remove_tmp_path(folder)
        return {key: value for key, value in result.items() if key not in ASYNC_RESULT_KEYS}

    def _read(self, path: str) -> Dict[str, Any]:
        quoted = self._connection._shell.quote(path)
        answer = self._low_level_execute_command("head -c %d %s" % (LARGEST, quoted), sudoable=True)
        try:
            progress = json.loads(answer.get("stdout") or "{}")
        except (ValueError, RecursionError):
            return {}
        return progress if isinstance(progress, dict) else {}


def named(models: Any) -> Any:
    """The list of models, each one a dictionary; a name alone is a list of one."""
    listed = [models] if isinstance(models, str) else models
    return [{"name": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else models


def sentence(progress: Dict[str, Any]) -> str:
    """A progress file as a person reads it; empty before there is one, or when it is not one of ours."""
    try:
        return one_line(_sentence(progress))
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""


def _sentence(progress: Dict[str, Any]) -> str:
    total, completed = progress.get("total") or 0, progress.get("completed") or 0
    if not total:
        return "%s %s" % (progress["name"], progress["status"]) if progress else ""
    words = "%s %d%% of %.1f GB" % (progress["name"], 100 * completed // total, total / 1e9)
    if progress.get("rate"):
        words += " · %.1f MB/s" % (progress["rate"] / 1e6)
    if progress.get("seconds_left") is not None:
        minutes, seconds = divmod(int(progress["seconds_left"]), 60)
        words += " · %d:%02d left" % (minutes, seconds)
    return words
