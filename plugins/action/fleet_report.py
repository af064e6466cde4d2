# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the report's page on the controller."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any, Dict, List, Mapping, Optional

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import problems
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import refuse
from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.report import collect, page
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.journal import Journal, default_folder
from ansible_collections.gpufleet.inference.plugins.plugin_utils.run_summary import natural

ARGUMENT_SPEC = {"path": {"type": "path", "required": True}}


class ActionModule(ActionBase):
    """Reads the variables of the play's hosts, writes one file."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        refuse(list(problems(ARGUMENT_SPEC, self._task.args)))
        variables = task_vars or {}
        path = os.path.abspath(os.path.expanduser(str(self._task.args["path"])))
        names = sorted(variables["ansible_play_hosts_all"], key=natural)
        hosts = [self.host(name, variables) for name in names]
        try:
            receipts = Journal(str(self.folder(variables))).receipts()
            data = {"read_at": int(time.time()), "hosts": hosts, "rollouts": list(map(collect.rollout, receipts))}
            if not self._task.check_mode:
                write(path, page.render(data))
        except OSError as error:
            return dict(result, failed=True, msg="the page cannot be written to %s: %s" % (path, error))
        bad = {host["name"]: host["problems"] for host in hosts if host["problems"]}
        found = (path, len(hosts), "s"[: len(hosts) != 1], len(bad))
        return dict(result, changed=True, path=path, problems=bad, msg="%s: %d host%s, %d with a problem" % found)

    def host(self, name: str, variables: Mapping[str, Any]) -> Dict[str, Any]:
        own = variables["hostvars"][name]
        return collect.host(name, own, declared(name, own, variables["groups"]))

    def folder(self, variables: Mapping[str, Any]) -> str:
        if "rollout_state" in variables:
            return str(self._templar.template(variables["rollout_state"]))
        found = variables.get("ansible_inventory_sources") or []
        return default_folder([found] if isinstance(found, str) else found)


def declared(name: str, variables: Mapping[str, Any], groups: Mapping[str, List[str]]) -> Dict[str, List[str]]:
    """Unit → the models that the inventory declares for it, on one host."""
    services = [one for group in ENGINES if name in groups.get(group, ()) for one in ENGINES[group](name, variables)]
    return {service.unit: [one_line(model) for model in service.models] for service in services}


def write(path: str, text: str) -> None:
    """Replace a file as a whole; only its owner can read it."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".report-")  # mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
