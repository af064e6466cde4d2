# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a rollout, on the controller. Hosts are changed by the roles, between these steps."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ansible import context
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import printable
from ansible_collections.gpufleet.inference.plugins.plugin_utils.gateway_pools import ENGINES
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import capacity, compare, look, plan, words
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import state as states
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.draft import Draft, draft
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.given import Given, Refused
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.inventory import Inventory
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.journal import Journal, default_folder

PAUSE = 1.0  # seconds between two looks at a gateway, or at a request of a person
LOOKS = 20  # at the gateways, while a canary is watched
_ends: Dict[str, float] = {}  # by when a task has waited; one process runs its whole loop over the gateways

display = Display()


class ActionModule(ActionBase):
    """One step for each value of ``step``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.read(task_vars or {})
        step = self._task.args["step"]
        try:
            result.update(getattr(self, "step_" + step)())
        except Refused as error:
            result.update(failed=True, msg="nothing was changed: " * (step == "plan") + str(error))
        except OSError as error:
            result.update(failed=True, msg="the state folder of the rollout (rollout_state): %s" % error)
        return dict(result, changed=False)

    def read(self, variables: Dict[str, Any]) -> None:
        self.variables = variables
        self.host = str(variables["inventory_hostname"])
        self.inventory = Inventory(variables["groups"], variables["hostvars"])
        self.given = Given(variables, self._templar.template)
        self.journal = Journal(str(self.given.value("rollout_state") or default_folder(self.given.sources())))

    # --- before anything is changed

    def step_look(self) -> Dict[str, Any]:
        found = look.look(self.variables)
        return {"msg": found.why or found.state, **found._asdict(), "services": list(found.services)}

    def step_unfit(self) -> Dict[str, Any]:
        return {"state": "unfit", "msg": look.reason(self.fault()), "services": []}

    def fault(self) -> Mapping[str, Any]:
        """The result of the task that failed on this host, without its message if that is secret."""
        failed = self.variables.get("ansible_failed_result") or look.failure(self.variables)
        task = self.variables.get("ansible_failed_task") or {}
        secret = failed.get("_ansible_no_log") or task.get("no_log")
        return dict(failed, msg="a task failed whose result is secret") if secret else failed

    def step_plan(self) -> Dict[str, Any]:
        hosts = list(self.variables["ansible_play_hosts_all"])
        self.given.check(hosts, load_extra_vars(self._loader))
        looks = {host: self.looked(host) for host in hosts}
        former, forks = self.journal.state(), context.CLIARGS["forks"]
        found = draft(self.given, self.inventory, ENGINES, looks, former, forks)
        found.fields["gateways"] = [name for name, answer in self.answers() if answer.get("answers")]
        found.fields["traffic"] = capacity.together(answer.get("traffic") or {} for _name, answer in self.answers())
        if not self._task.check_mode:
            self.begin(former, found)
            self.journal.append("plan", **found.fields)
        planned = states.fold([{"event": "plan", "t": 0, **found.fields}]).plan
        lines = [*(words.plan_lines(planned) if planned else ()), *found.remarks]
        lines += ["%s does not answer: it will not be asked who serves" % name for name in self.silent()]
        self.show(["resuming run %s" % former.run] * found.resumed + lines)
        steps = capacity.steps(planned) if planned else []
        return {"msg": lines[0] if lines else "", "lines": lines, "plan": dict(found.fields, steps=steps)}

    def begin(self, former: states.State, found: Draft) -> None:
        if found.resumed:
            self.journal.resume()
        else:
            self.journal.begin(time.strftime("%Y%m%dT%H%M%S-", time.gmtime()) + uuid.uuid4().hex[:6])
        for host in former.of("lost", *states.IN_HAND) if found.resumed else ():
            if host in found.fields["as_declared"]:  # the last run was killed before it wrote so
                self.journal.append("done", host=host)

    def step_holder(self) -> Dict[str, Any]:
        """Who reserves the hosts."""
        state = self.journal.state()
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = "uid %d" % os.getuid()
        by = "%s@%s" % (user, socket.gethostname())
        return {"msg": by, "holder": state.holder, "run": state.run, "by": by}

    def step_reserved(self) -> Dict[str, Any]:
        """Whether all hosts are reserved, and why not."""
        found = self.all_looked("rollout_reservation")
        taken = {host: look.reason(one) for host, one in found.items() if one.get("reserved") is False}
        failed = {host: look.reason(one) for host, one in found.items() if "reserved" not in one}
        refused = bool(taken or failed)
        return {"refused": refused, "msg": words.not_reserved(taken, failed) if refused else "all hosts are reserved"}

    def step_released(self) -> Dict[str, Any]:
        """Those that could not be released are left to the next run."""
        found = self.all_looked("rollout_release")
        self.journal.append("released", hosts=[host for host, one in found.items() if "reserved" in one])
        left = [(host, look.reason(one)) for host, one in found.items() if "reserved" not in one]
        return {"warnings": [words.not_released(*pair) for pair in left]}

    def all_looked(self, name: str) -> Dict[str, Mapping[str, Any]]:
        """What a task has registered on each host of the play."""
        dropped = {"msg": "unreachable: Ansible has dropped it"}
        return {host: self.looked(host, name) or dropped for host in self.variables["ansible_play_hosts_all"]}

    # --- one host

    def step_gateways(self) -> Dict[str, Any]:
        """On each gateway: who serves, and how much is asked for."""
        return self.ask_gateway("global", "backend")

    def step_room(self) -> Dict[str, Any]:
        """The same, once the pools can do without the hosts of this batch; at the latest when the time is up."""
        state, batch = self.journal.state(), set(self.variables["ansible_play_batch"])
        held, pools = states.in_hand(state), state.plan.pools if state.plan else {}
        waiting = [unit for unit in states.remaining(state) if set(unit.hosts) <= batch and unit not in held]
        until = _ends.setdefault(str(self._task._uuid), time.monotonic() + self.given.seconds("rollout_room_wait"))
        while True:
            found = self.ask_gateway()
            serving = self.serving([found]) - states.lost(state)
            room = found["answers"] and plan.batch(waiting, pools, serving, len(batch), held) == waiting
            if room or time.monotonic() >= until or self.journal.requested() == "stop":
                return found
            # a gateway only answers questions: it cannot announce that a server is up again
            time.sleep(PAUSE)

    def ask_gateway(self, *scopes: str) -> Dict[str, Any]:
        figures, fault = self.figures("server", *scopes)
        if fault:
            return {"answers": False, "msg": fault, "up": [], "known": []}
        up, known = look.serving(figures, self.inventory.hosts(*ENGINES))
        return {
            "answers": True,
            "msg": "%d of %d hosts serve" % (len(up), len(known)),
            "up": sorted(up),
            "known": sorted(known),
            "traffic": capacity.traffic(figures, self.inventory.served(ENGINES)),
        }

    def figures(self, *scopes: str) -> Tuple[str, str]:
        """The figures of the gateway that this task is delegated to, or why there are none."""
        port = (self.variables["hostvars"][self._task.delegate_to]).get("gateway_status_port", 8404)
        url = "http://127.0.0.1:%s/metrics?%s" % (port, "&".join("scope=" + name for name in scopes))
        arguments = {"url": url, "return_content": True, "timeout": 10}
        try:
            answer = self._execute_module("ansible.builtin.uri", module_args=arguments, task_vars=self.variables)
        except AnsibleConnectionFailure as error:  # raised, it would count as this host's
            answer = {"failed": True, "msg": str(error)}
        if answer.get("failed") or answer.get("unreachable") or answer.get("status") != 200:
            return "", look.one_line(str(answer.get("msg") or "no answer"))
        return str(answer.get("content", "")), ""

    def answers(self) -> List[Tuple[str, Mapping[str, Any]]]:
        """What each gateway has said last."""
        found = self.variables.get("rollout_gateways") or {}
        return [(str(one.get("item")), one) for one in found.get("results") or () if not one.get("skipped")]

    def silent(self) -> List[str]:
        return [name for name, found in self.answers() if not found.get("answers")]

    def serving(self, answers: Sequence[Mapping[str, Any]]) -> Set[str]:
        """Hosts that serve. One that no gateway knows counts as serving: it has none in front of it, or not yet."""
        everybody = {host for hosts in self.inventory.served(ENGINES).values() for host in hosts}
        return {host for host in everybody if all(host in one["up"] or host not in one["known"] for one in answers)}

    def step_admit(self) -> Dict[str, Any]:
        said = False
        while self.journal.requested() == "pause" and self.host not in self.journal.state().of(*states.IN_HAND):
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
                ready = states.ready(state, serving, unit)
                back = {host: self.looked(host).get("generation", "") for host in unit.hosts}
                self.journal.append("admitted", hosts=list(unit.hosts), ready=ready, generations=back)
        canary = bool(state.plan and self.host in state.plan.canary)
        return {"go": told.go, "msg": told.why or "this host is changed now", "canary": canary}

    def looked(self, host: str, name: str = "rollout_look") -> Mapping[str, Any]:
        """What was found on a host."""
        return self.variables["hostvars"][host].get(name) or {}

    def step_applied(self) -> Dict[str, Any]:
        found = look.measured(self.variables)
        self.journal.append("applied", host=self.host, measured=found)
        return {"msg": ", ".join("%s: %.1f s without it" % pair for pair in found.items()) or "nothing was restarted"}

    def step_soak(self) -> Dict[str, Any]:
        """For its share of the time, what a gateway counts of the canary and of the hosts that serve as before."""
        state, began = self.journal.state(), time.monotonic()
        gateways = state.plan.gateways if state.plan else []
        share, samples = self.given.seconds("rollout_soak") / max(1, len(gateways)), []
        while True:
            passed = time.monotonic() - began
            if gateways:
                figures, _fault = self.figures("global", "server")
                samples += [compare.sample(passed, figures)] if figures else []
            if passed >= share or self.journal.requested() == "stop":
                break
            # the time itself is what the canary has to get through, unless a person stops the rollout
            time.sleep(min(max(PAUSE, share / LOOKS), max(0.0, began + share - time.monotonic())))
        before = states.unchanged(state, self.inventory.hosts(*ENGINES))
        found = compare.watched(samples, {self.host}, before)
        return {"pools": {pool: [list(load) for load in sides] for pool, sides in found.items()}}

    def step_compare(self) -> Dict[str, Any]:
        state, soaked = self.journal.state(), []
        for host in self.together():  # they are taken back together, too
            soaked += (self.variables["hostvars"][host].get("rollout_soaked") or {}).get("results") or ()
        worse, unknown = compare.judged([one.get("pools") or {} for one in soaked])
        # of a run that was killed before it was taken back
        worse = next((state.worse[host] for host in self.together() if state.worse.get(host)), worse)
        self.journal.append("watched", host=self.host, worse=worse, unknown=unknown)
        self.show(["canary %s: %s" % (self.host, line) for line in [*worse, *unknown]])
        if not worse:
            return {"msg": "no worse than the others"}
        generation = self.journal.state().hosts[self.host].generation
        said = "it does worse than the hosts that are as before: %s" % "; ".join(worse)
        return {"failed": True, "worse": True, "generation": generation, "msg": said}

    def together(self) -> Sequence[str]:
        """The hosts that change together with this one, itself among them."""
        planned = self.journal.state().plan
        units = planned.units if planned else []
        return next((unit.hosts for unit in units if self.host in unit.hosts), (self.host,))

    def step_back(self) -> Dict[str, Any]:
        """After the roles ran with the generation from before the change."""
        done = look.taken_back(self.variables)
        return {"failed": not done, "taken_back": done, "msg": "taken back" if done else "nothing changed there"}

    def step_done(self) -> Dict[str, Any]:
        found = self.variables.get("rollout_look") or {}
        if found.get("state") != "as declared":  # silence proves nothing
            return {"failed": True, "lost": True, "msg": "changed, and still not as declared: %s" % found.get("msg")}
        self.journal.append("done", host=self.host)
        planned = self.journal.state().plan
        if planned and self.host in planned.canary:
            self.show(words.renewed_lines(planned))
        return {"msg": "as declared"}

    def step_failed(self) -> Dict[str, Any]:
        found = self.variables.get("rollout_compared") or {}
        worse = found if found.get("worse") else None
        failed = worse or self.fault()
        away = (self.variables.get("rollout_reached") or {}).get("unreachable")
        out = look.out(self.variables)
        status = "failed" if look.safe(failed) and not away and not out else "lost"
        why = look.reason(failed) if failed else "another host of its model failed"
        if out:
            name = (self.variables.get("ansible_failed_task") or {}).get("name") or "a task"
            why = "%s stays out of service: %s: %s" % (self.host, name, why)
        why, rolled_back = "unreachable" if away else why, bool(failed.get("rolled_back"))
        if worse and not away:
            why, rolled_back = self.taken_back(why, worse)
        real = {} if worse else look.measured(self.variables)  # it has its own already
        self.journal.append(status, host=self.host, why=why, rolled_back=rolled_back, measured=real)
        return {"msg": "%s: %s" % (status, why)}

    def taken_back(self, why: str, worse: Mapping[str, Any]) -> Tuple[str, bool]:
        """Why the canary failed and whether it serves as before, or how to take it back."""
        back = self.variables.get("rollout_back") or {}
        if back.get("taken_back"):
            return why, True
        return words.not_taken_back(why, ",".join(self.together()), worse["generation"], look.reason(back)), False

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
