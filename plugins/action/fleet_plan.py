# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a fleet, as the rollout would carry it out. Reads the rollout's state, and writes none."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

from ansible_collections.gpufleet.inference.plugins.action import rollout
from ansible_collections.gpufleet.inference.plugins.plugin_utils.arguments import problems
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import refuse
from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import capacity, overview
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import state as states
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.draft import draft
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.given import Refused

UNKNOWN = {"state": "unfit", "msg": "this host was not checked", "services": []}
UNPRICED = {"predicted": None, "basis": "there is no plan"}


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
        """Each host, the rollout's plan of those that can be changed, and why there is none."""
        names = list(self.variables["ansible_play_hosts_all"])
        looks = {name: dict(UNKNOWN, **self.looked(name)) for name in names}
        fit = {name: own for name, own in looks.items() if own["state"] != "unfit"}
        planned, refused = None, ""
        try:
            self.given.check(names, load_extra_vars(self._loader))
            planned = self.planned(fit)
        except Refused as error:
            refused = str(error)
        hosts = {}
        for name, own in looks.items():
            unpriced = [dict(row, **UNPRICED) for row in own["services"]]
            priced = planned.services.get(name, unpriced) if planned else unpriced
            hosts[name] = overview.host_row(self.variables["hostvars"][name], own, priced, self.ports(name))
        return hosts, planned, refused

    def planned(self, fit: Mapping[str, Mapping[str, Any]]) -> Optional[states.Planned]:
        last = states.State(measured=self.journal.state().measured)
        fields = draft(self.given, self.inventory, ENGINES, fit, last, context.CLIARGS["forks"]).fields
        fields["gateways"] = [name for name, answer in self.answers() if answer.get("answers")]
        fields["traffic"] = capacity.together(answer.get("traffic") or {} for _name, answer in self.answers())
        return states.fold([{"event": "plan", "t": 0, **fields}]).plan

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
