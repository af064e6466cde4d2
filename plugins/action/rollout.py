# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a rollout, on the controller. Hosts are changed by the roles, between these steps."""

from __future__ import annotations

import time
import uuid
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import printable
from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import look, plan, wishes, words
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import state as states
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.inventory import Inventory
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.journal import Journal, default_folder

PAUSE = 1.0  # seconds between two looks at a gateway, or at a request of a person
DEFAULTS = {"rollout_soak": 60, "rollout_room_wait": 600}  # seconds

display = Display()


class Refused(Exception):
    """The step fails with this sentence."""


class ActionModule(ActionBase):
    """One step for each value of ``step``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.variables: Dict[str, Any] = task_vars or {}
        self.host = str(self.variables["inventory_hostname"])
        self.inventory = Inventory(self.variables["groups"], self.variables["hostvars"])
        self.journal = Journal(str(self.value("rollout_state", "") or default_folder(self.sources())))
        step = self._task.args["step"]
        try:
            result.update(getattr(self, "step_" + step)())
        except Refused as error:
            result.update(failed=True, msg="nothing was changed: " * (step == "plan") + str(error))
        except OSError as error:
            result.update(failed=True, msg="the state folder of the rollout (rollout_state): %s" % error)
        return dict(result, changed=False)

    def value(self, name: str, default: Any) -> Any:
        return self._templar.template(self.variables[name]) if name in self.variables else default

    def wish(self, name: str, default: Any, read: Callable[[Any], Any]) -> Any:
        """The value of a variable as ``read`` returns it."""
        try:
            return read(self.value(name, default))
        except ValueError as error:
            raise Refused("%s: %s" % (name, error)) from None

    def seconds(self, name: str) -> float:
        return float(self.wish(name, DEFAULTS[name], wishes.seconds))

    def sources(self) -> List[Any]:
        found = self.variables.get("ansible_inventory_sources") or []
        return [found] if isinstance(found, str) else list(found)

    # --- before anything is changed

    def step_look(self) -> Dict[str, Any]:
        found = look.look(self.variables)
        return {"state": found.state, "msg": found.why or found.state, "services": list(found.services)}

    def step_unfit(self) -> Dict[str, Any]:
        return {"state": "unfit", "msg": look.reason(self.fault()), "services": []}

    def fault(self) -> Mapping[str, Any]:
        """The result of the task that failed on this host, without its message if that is secret."""
        failed = self.variables.get("ansible_failed_result") or look.failure(self.variables)
        task = self.variables.get("ansible_failed_task") or {}
        secret = failed.get("_ansible_no_log") or task.get("no_log")
        return dict(failed, msg="a task failed whose result is secret") if secret else failed

    def check_variables(self) -> None:
        """Refuse what would be ignored now, or fail after a host was changed."""
        extra = load_extra_vars(self._loader)
        try:
            wishes.known(self.variables, extra)
        except ValueError as error:
            raise Refused(str(error)) from None
        if "rollout_state" in self.variables and "rollout_state" not in extra:
            raise Refused("rollout_state: give it with -e, because the plays cannot read it from the inventory")
        for name in DEFAULTS:
            self.seconds(name)

    def step_plan(self) -> Dict[str, Any]:
        self.check_variables()
        hosts = list(self.variables["ansible_play_hosts_all"])
        looks = {host: self.variables["hostvars"][host].get("rollout_look") or {} for host in hosts}
        unfit = ["%s: %s" % (host, look.reason(found)) for host, found in looks.items() if not _fit(found)]
        if unfit:
            raise Refused("not all hosts can be: %s" % "; ".join(unfit))
        changing = [host for host in hosts if looks[host]["state"] == "differs"]
        changing.sort(key=lambda host: host not in self.inventory.hosts(*ENGINES))  # as in site.yml
        former = self.journal.state()
        resumed = states.resumes(former, set(changing))
        outside = sorted(set(former.of(*states.IN_HAND)) - set(hosts))
        if outside:
            raise Refused("%s was being changed when the last run ended: include it in this run" % ", ".join(outside))
        fields = self.planned(hosts, changing, looks, former if resumed else states.State(measured=former.measured))
        if not self._task.check_mode:
            self.begin(former, resumed, looks)
            self.journal.append("plan", **fields)
        planned = states.fold([{"event": "plan", "t": 0, **fields}]).plan
        lines = words.plan_lines(planned) if planned else []
        lines += ["%s does not answer: it will not be asked who serves" % name for name in self.silent()]
        self.show(["resuming run %s" % former.run] * resumed + lines)
        return {"msg": lines[0] if lines else "", "lines": lines, "plan": fields}

    def planned(
        self, hosts: Sequence[str], changing: Sequence[str], looks: Mapping[str, Any], former: states.State
    ) -> Dict[str, Any]:
        """The fields of the plan's event.

        :raises Refused: a pool could not keep its ready minimum, or a variable is wrong.
        """
        services = {host: [self.priced(former, host, row) for row in looks[host]["services"]] for host in changing}
        served = self.inventory.served(ENGINES)
        takes = {host: look.left(host, rows, served) for host, rows in services.items()}
        chosen = plan.units(changing, self.inventory.together(), takes)
        away = sorted({host for unit in chosen for host in unit.hosts} - set(hosts))
        if away:
            raise Refused("%s shares a model with a host of this run: include it" % ", ".join(away))
        pools = self.wish("rollout_min_ready", None, lambda wish: plan.pools(served, wish))
        never = plan.impossible(chosen, pools)
        if never:
            raise Refused("; ".join(never))
        number = sum(len(unit.hosts) for unit in chosen)
        return {
            "units": [[list(unit.hosts), list(unit.takes)] for unit in chosen],
            "canary": former.plan.canary
            if former.plan and former.of("done")
            else self.wish("rollout_canary", None, lambda wish: wishes.canary(wish, hosts, chosen)),
            "pools": {name: [list(pool.hosts), pool.minimum] for name, pool in pools.items()},
            "width": self.wish("rollout_width", 4, lambda wish: plan.number(wish, number or 1, 1)),
            "failures": self.wish("rollout_max_failures", 0, lambda wish: plan.number(wish, number)),
            "as_declared": [host for host in hosts if looks[host]["state"] == "as declared"],
            "services": services,
            "gateways": [name for name, found in self.answers() if found.get("answers")],
        }

    def priced(self, former: states.State, host: str, row: Mapping[str, Any]) -> Dict[str, Any]:
        seconds, basis = look.predicted(former.measured, host, row)
        return dict(row, predicted=seconds, basis=basis)

    def begin(self, former: states.State, resumed: bool, looks: Mapping[str, Any]) -> None:
        if resumed:
            self.journal.append("resume")
        else:
            self.journal.begin(time.strftime("%Y%m%dT%H%M%S-", time.gmtime()) + uuid.uuid4().hex[:6])
        for host in former.of("lost", *states.IN_HAND) if resumed else ():
            if looks.get(host, {}).get("state") == "as declared":  # the last run was killed before it wrote so
                self.journal.append("done", host=host)

    # --- one host

    def step_gateways(self) -> Dict[str, Any]:
        """On each gateway: who serves."""
        return self.ask_gateway()

    def step_room(self) -> Dict[str, Any]:
        """The same, once the pools can do without the hosts of this batch; at the latest when the time is up."""
        state, batch = self.journal.state(), set(self.variables["ansible_play_batch"])
        held, pools = states.in_hand(state), state.plan.pools if state.plan else {}
        waiting = [unit for unit in states.remaining(state) if set(unit.hosts) <= batch and unit not in held]
        until = time.monotonic() + self.seconds("rollout_room_wait")
        while True:
            found = self.ask_gateway()
            serving = self.serving([found]) - states.lost(state)
            room = found["answers"] and plan.batch(waiting, pools, serving, len(batch), held) == waiting
            if room or time.monotonic() >= until or self.journal.requested() == "stop":
                return found
            # a gateway only answers questions: it cannot announce that a server is up again
            time.sleep(PAUSE)

    def ask_gateway(self) -> Dict[str, Any]:
        port = (self.variables["hostvars"][self._task.delegate_to]).get("gateway_status_port", 8404)
        arguments = {"url": "http://127.0.0.1:%s/metrics" % port, "return_content": True, "timeout": 10}
        try:
            answer = self._execute_module("ansible.builtin.uri", module_args=arguments, task_vars=self.variables)
        except AnsibleConnectionFailure as error:  # raised, it would count as this host's
            answer = {"failed": True, "msg": str(error)}
        if answer.get("failed") or answer.get("unreachable") or answer.get("status") != 200:
            return {"answers": False, "msg": look.one_line(str(answer.get("msg"))), "up": [], "known": []}
        up, known = look.serving(str(answer.get("content", "")), self.inventory.hosts(*ENGINES))
        return {
            "answers": True,
            "msg": "%d of %d hosts serve" % (len(up), len(known)),
            "up": sorted(up),
            "known": sorted(known),
        }

    def answers(self) -> List[Tuple[str, Mapping[str, Any]]]:
        """What each gateway has said last."""
        found = self.variables.get("rollout_gateways") or {}
        return [(str(one.get("item")), one) for one in found.get("results") or ()]

    def silent(self) -> List[str]:
        return [name for name, found in self.answers() if not found.get("answers")]

    def serving(self, answers: Sequence[Mapping[str, Any]]) -> Set[str]:
        """Hosts that serve. One that no gateway knows counts as serving: it has none in front of it, or not yet."""
        everybody = {host for hosts in self.inventory.served(ENGINES).values() for host in hosts}
        return {host for host in everybody if all(host in one["up"] or host not in one["known"] for one in answers)}

    def step_admit(self) -> Dict[str, Any]:
        said = False
        while self.journal.requested() == "pause" and not self.held():
            if not said:
                self.show(["paused by request; rollout_do=resume continues"])
            said = True
            # a person resumes by a file in the state folder, and the standard library cannot wait for one
            time.sleep(PAUSE)
        with self.journal.exclusive():
            for host in set(self.journal.state().of(*states.IN_HAND)) - set(self.variables["ansible_play_hosts"]):
                self.journal.append("lost", host=host, why="unreachable: Ansible has dropped it")
            state = self.journal.state()
            unit = next(unit for unit in state.plan.units if self.host in unit.hosts)  # type: ignore[union-attr]
            answers = [found for _name, found in self.answers()]
            silent = self.silent()
            serving = self.serving([found for found in answers if found.get("answers")])
            told = states.admit(state, unit, serving, self.journal.requested())
            if told.go and told.why == "" and silent:
                told = states.Admission(False, "the gateway %s does not answer any more" % ", ".join(silent))
            if told.stops and not state.stopped:
                self.journal.append("stop", why=told.why)
            if told.go and unit not in states.in_hand(state):
                self.journal.append("admitted", hosts=list(unit.hosts), ready=states.ready(state, serving, unit))
        return {"go": told.go, "msg": told.why or "this host is changed now"}

    def held(self) -> bool:
        return self.host in self.journal.state().of(*states.IN_HAND)

    def step_applied(self) -> Dict[str, Any]:
        found = look.measured(self.variables)
        self.journal.append("applied", host=self.host, measured=found)
        return {"msg": ", ".join("%s: %.1f s without it" % pair for pair in found.items()) or "nothing was restarted"}

    def step_soak(self) -> Dict[str, Any]:
        planned = self.journal.state().plan
        if planned is None or self.host not in planned.canary:
            return {"skipped": True}
        until = time.monotonic() + self.seconds("rollout_soak")
        while time.monotonic() < until and self.journal.requested() != "stop":
            # the time itself is what the canary has to get through, unless a person stops the rollout
            time.sleep(min(PAUSE, max(0.0, until - time.monotonic())))
        return {}

    def step_done(self) -> Dict[str, Any]:
        found = self.variables.get("rollout_look") or {}
        if found.get("state") != "as declared":  # silence proves nothing
            return {"failed": True, "lost": True, "msg": "changed, and still not as declared: %s" % found.get("msg")}
        self.journal.append("done", host=self.host)
        return {"msg": "as declared"}

    def step_failed(self) -> Dict[str, Any]:
        failed = self.fault()
        away = (self.variables.get("rollout_reached") or {}).get("unreachable")
        out = look.out(self.variables)
        status = "failed" if look.safe(failed) and not away and not out else "lost"
        why = look.reason(failed) if failed else "another host of its model failed"
        if out:
            name = (self.variables.get("ansible_failed_task") or {}).get("name") or "a task"
            why = "%s stays out of service: %s: %s" % (self.host, name, why)
        why, rolled_back = "unreachable" if away else why, bool(failed.get("rolled_back"))
        real = look.measured(self.variables)
        self.journal.append(status, host=self.host, why=why, rolled_back=rolled_back, measured=real)
        return {"msg": "%s: %s" % (status, why)}

    # --- after it, and from another terminal

    def step_report(self) -> Dict[str, Any]:
        state = self.journal.state()
        found = words.receipt(state, time.time())
        path = self.journal.receipt(state.run, found)
        if found["verdict"] in ("complete", "failed"):
            self.journal.append("end", verdict=found["verdict"])
        lines = words.receipt_lines(found)
        self.show([*lines, "  receipt: %s" % path])
        return {"failed": found["verdict"] != "complete", "msg": lines[0], "receipt": found, "path": path}

    def step_control(self) -> Dict[str, Any]:
        asked = str(self._task.args.get("request"))
        if asked not in ("status", "pause", "resume", "stop"):
            raise Refused("rollout_do: expected status, pause, resume or stop, got %s" % look.one_line(asked))
        runs = self.journal.running()
        if asked in ("pause", "stop"):
            if not runs:
                raise Refused("no rollout of this inventory is running")
            if not self._task.check_mode:
                self.journal.request(asked)
        elif asked == "resume" and not self._task.check_mode:
            self.journal.withdraw("pause")
        now = "running (%s)" % runs if runs else "not running"
        requested = self.journal.requested()
        state = self.journal.state()
        lines = words.receipt_lines(words.receipt(state, time.time())) if state.run else ["there was no rollout yet"]
        self.show([now + (", %s requested" % requested if requested else ""), *lines])
        return {"msg": lines[0], "running": bool(runs), "requested": requested}

    def show(self, lines: Sequence[str]) -> None:
        for line in lines:
            display.display("  " + printable(line))


def _fit(found: Mapping[str, Any]) -> bool:
    return found.get("state") in ("as declared", "differs")
