# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a fleet, as the rollout would carry it out. Reads the rollout's state, and writes none."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.action import rollout
from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import problems
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import refuse
from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import overview, predict
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import state as states

UNKNOWN = {"state": "unfit", "msg": "this host was not checked", "services": []}


class ActionModule(rollout.ActionModule):
    """Entry point for Ansible."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = dict(ActionBase.run(self, tmp, task_vars), changed=False)
        refuse(list(problems({"output": {"type": "path"}}, self._task.args)))
        self.read(task_vars or {})
        hosts, planned, refused = self.found()
        found = overview.overview(hosts, planned, refused, self.silent())
        lines = overview.lines(found)
        self.show(lines)
        path = self._task.args.get("output")
        if path:
            try:
                write(os.path.expanduser(str(path)), found)
            except OSError as error:
                return dict(result, failed=True, msg="output: the plan cannot be written: %s" % error)
        short = {"msg": lines[0], "verdict": found["verdict"], "reason": found["reason"], "host": self.host}
        return dict(result, **short, plan=found, lines=lines)

    def found(self) -> Tuple[Dict[str, Dict[str, Any]], Optional[states.Planned], str]:
        """Each host, the rollout's plan, and why there is none."""
        names = list(self.variables["ansible_play_hosts_all"])
        looks = {name: self.variables["hostvars"][name].get("rollout_look") or UNKNOWN for name in names}
        looks = {name: own if "state" in own else dict(UNKNOWN, msg=str(own.get("msg"))) for name, own in looks.items()}
        former = states.State(measured=self.journal.state().measured)
        changing = [name for name in names if looks[name]["state"] == "differs"]
        changing.sort(key=lambda name: name not in self.inventory.hosts(*ENGINES))
        priced = {
            name: [dict(row, **predict.predicted(former.measured, name, row)) for row in looks[name]["services"]]
            for name in names
        }
        hosts = {
            name: overview.host_row(self.variables["hostvars"][name], looks[name], priced[name], self.ports(name))
            for name in names
        }
        try:
            self.check_variables()
            fields = self.planned(names, changing, looks, former)
        except rollout.Refused as error:
            return hosts, None, str(error)
        return hosts, states.fold([{"event": "plan", "t": 0, **fields}]).plan, ""

    def ports(self, host: str) -> Dict[str, int]:
        """The ports that the inventory declares, by unit."""
        variables: Mapping[str, Any] = self.variables["hostvars"][host]
        groups: List[str] = [name for name in ENGINES if host in self.variables["groups"].get(name, ())]
        return {served.unit: served.port for name in groups for served in ENGINES[name](host, variables)}


def write(path: str, found: Mapping[str, Any]) -> None:
    """Write the plan as JSON, whole, for its user alone."""
    temporary = path + ".new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=2)
        file.write("\n")
    os.replace(temporary, path)
