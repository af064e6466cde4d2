# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's part of a torchrun job: its files, its start and stop, and how it ended.

A job is no service: it ends, and it belongs to several hosts. So a failed start is told, not taken back; what can be
known beforehand is refused before a process is touched.
"""

from __future__ import annotations

import os
import pwd
import shutil
import time
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.service.atomic import Files, Wanted
from ansible_collections.gpufleet.inference.plugins.module_utils.service.systemd import (
    ManagerError,
    System,
    main_environ,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.service.unit import UnitError
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import command, evidence
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun.network import LISTENER

DOWN = ("inactive", "failed")
STOP_LIMIT = 50.0
"""Seconds: the unit's TimeoutStopSec and a little."""
SETTLE = 1.0
"""Seconds for which a process that was just started is watched."""
START_LIMIT = 30.0
END_LIMIT = 10.0
"""Seconds for ExecStopPost=, which says how it ended."""
LOOK = 0.25
"""Seconds between two looks for the processes of a job whose hosts are to meet."""


class Refused(Exception):
    """Something is wrong; nothing was changed."""


class JobFailed(Exception):
    """The job did not do what was asked for; ``result`` says what was found."""

    def __init__(self, message: str, result: Dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


def bring(params: Mapping[str, Any], check_mode: bool, warn: Any, system: Optional[Any] = None) -> Dict[str, Any]:
    """Bring this host's part of the job to its declared state.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises JobFailed: the job does not run, or has failed.
    """
    system = system or System()
    wrong = [text for text in command.check(params) if params["state"] != "absent" or text.startswith("name")]
    if wrong and params["state"] != "stopped":
        raise Refused("; ".join(wrong))
    try:
        if params["state"] in ("absent", "stopped"):
            return _Ending(params, check_mode, system).run()
        return _Running(params, check_mode, warn, system).run()
    except (ManagerError, UnitError) as error:
        raise Refused(str(error)) from error


class _Part:
    """What is common to all states: the unit as it is, and the result."""

    def __init__(self, params: Mapping[str, Any], check_mode: bool, system: Any) -> None:
        self.params = params
        self.check_mode = check_mode
        self.system = system
        self.name = params["name"]
        self.unit = command.unit_name(self.name)
        self.state = system.show(self.unit)
        self.before = []  # type: List[str]
        self.after = []  # type: List[str]
        self.result = {"changed": False, "unit": self.unit, "started": False, "stopped": False, "verdict": "ok"}  # type: Dict[str, Any]

    def up(self) -> bool:
        return self.state.get("ActiveState") not in DOWN

    def stop(self) -> None:
        """Stop the unit, and forget that torchrun calls it a failure."""
        failure = self.system.stop(self.unit, STOP_LIMIT)
        self.state = self.system.show(self.unit)
        if self.up():
            raise JobFailed("%s did not stop: %s" % (self.unit, failure or self.state.get("ActiveState")), self.result)
        self.system.reset_failed(self.unit)
        self.result["stopped"] = True

    def done(self, message: str) -> Dict[str, Any]:
        if self.before != self.after:
            self.result["diff"] = {
                "before": "".join(text.rstrip("\n") + "\n" for text in self.before),
                "after": "".join(text.rstrip("\n") + "\n" for text in self.after),
                "before_header": self.unit,
                "after_header": self.unit,
            }
        self.result["msg"] = message
        return self.result


class _Ending(_Part):
    """``stopped`` and ``absent``; needs no plan."""

    def run(self) -> Dict[str, Any]:
        absent = self.params["state"] == "absent"
        state, folder = "%s/%s" % (command.STATE, self.name), command.FOLDER
        paths = ["%s/%s.env" % (folder, self.name), "%s/%s.secrets" % (folder, self.name)]
        paths.append("%s/%s" % (command.UNITS, self.unit))  # it names the others, so it is removed first
        files = Files([Wanted(path, None) for path in paths] if absent else [], self.system.root)
        gone = [file.path for file in files.changes()]
        kept = self.system.root + state
        had_state = absent and os.path.isdir(kept)
        was_up = self.up()
        if was_up:
            self.before.append("active: %s" % self.state.get("ActiveState"))
            self.after.append("active: inactive")
        self.before += gone
        self.result["changed"] = bool(was_up or gone or had_state)
        if not self.check_mode and self.result["changed"]:
            if was_up:
                self.stop()
            files.commit()
            files.finish()
            if had_state:
                shutil.rmtree(kept)
            if gone:
                self.system.reload()
                self.system.reset_failed(self.unit)
        what = "removed" if absent else "stopped"
        return self.done("%s: %s" % (self.unit, what if self.result["changed"] else "was " + what))


class _Running(_Part):
    """``present``, ``started``, ``joined`` and ``finished``."""

    def __init__(self, params: Mapping[str, Any], check_mode: bool, warn: Any, system: Any) -> None:
        super().__init__(params, check_mode, system)
        self.warn = warn
        self.plan = self._plan()
        self.job = command.Job(params, self.plan)
        self.files = Files(
            [
                Wanted(path, text.encode("utf-8", "surrogateescape"), mode)
                for path, (text, mode) in self.job.files().items()
            ]
            + ([] if params["secret_environment"] else [Wanted(self.job.secret_file, None)]),
            system.root,
        )
        self.rewritten = self.files.changes()
        self.result.update(
            generation=self.job.generation,
            node_rank=self.job.node["node_rank"],
            ranks=[one["rank"] for one in self.plan["ranks"] if one["host"] == self.job.host],
            command=self.job.command(),
            environment={name: value for name, (value, _why) in self.job.environment.items()},
            log_dir=self.job.log_dir,
        )

    def _plan(self) -> Mapping[str, Any]:
        plan = self.params["plan"]
        if not plan:
            raise Refused("plan: expected what the lookup gpufleet.inference.torchrun_plan gives")
        if plan["errors"]:
            raise Refused("the job would not run: %s" % "; ".join(plan["errors"]))
        if plan.get("host") not in plan["nodes"]:
            raise Refused(
                "the plan has no part for host %s: its hosts are %s" % (plan.get("host"), ", ".join(plan["nodes"]))
            )
        for one in plan["findings"]:
            if one["host"] in (None, plan["host"]):
                self.warn("%s: %s" % (one["code"], one["text"]))
        return plan

    # --- what there is

    def _look(self) -> None:
        """Whether this generation runs, has ended well, or another one is running."""
        passing = ("activating", "deactivating")
        self.state, environ = main_environ(self.system, self.unit, END_LIMIT, passing, self.state)
        own = environ.get(command.MARK) == self.job.mark
        others = [
            name for name, (text, _why) in self.job.environment.items() if own and environ.get(name, text) != text
        ]
        new_secret = any(file.path == self.job.secret_file for file in self.rewritten)
        self.running = self.state.get("ActiveState") == "active" and own and not others and not new_secret
        self.stale = self.up() and not self.running
        self.ended = evidence.ended(self.system, self.job)
        self.finished = not self.up() and self.ended is not None and self.ended["ok"]
        self.joined = self.finished or (self.running and self._has_processes())

    def _settle(self, *passing: str) -> None:
        """Until the unit is in none of these states any more: how it ended is written when systemd is done with it."""
        until = time.monotonic() + END_LIMIT
        while self.state.get("ActiveState") in passing and time.monotonic() < until:
            # systemd sends no word when it is done
            time.sleep(0.05)
            self.state = self.system.show(self.unit)

    def _has_processes(self) -> bool:
        """Whether torchrun has started its processes, which it does once all hosts have met."""
        found = (self.system.environ(pid) or {} for pid in self.system.pids(self.state.get("ControlGroup", "")))
        return any(command.OF_TORCHRUN in environ for environ in found)

    def _refuse_unusable(self) -> None:
        """What is known to fail, before a running process is touched."""
        wrong = []
        python = self.params["venv"] + "/bin/python"
        root = self.system.root
        if not os.access(root + python, os.X_OK):
            wrong.append("there is no %s: install the environment first, or correct venv" % python)
        if self.params["script"] and not os.path.isfile(root + self.params["script"]):
            wrong.append("there is no script %s on this host: copy it there first" % self.params["script"])
        folder = self.params["working_directory"]
        if folder and not os.path.isdir(root + folder):
            wrong.append("there is no working_directory %s" % folder)
        try:
            pwd.getpwnam(self.params["user"])
        except KeyError:
            wrong.append("there is no user %s on this host" % self.params["user"])
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            wrong += self._bad_interfaces(name)
        if self.state.get("LoadState") == "masked":
            wrong.append("%s is masked: someone has made it impossible to start" % self.unit)
        if wrong:
            raise Refused("; ".join(wrong))

    def _bad_interfaces(self, name: str) -> List[str]:
        """Interfaces that a declared variable names and that are not there."""
        value = self.job.environment.get(name, ("", ""))[0]
        there = self.system.names("/sys/class/net")
        if not there or value.startswith("^"):
            return []
        exact = value.startswith("=") or name.startswith("GLOO")
        wanted = [part for part in value.lstrip("=").split(",") if part]
        missing = [part for part in wanted if not any(one == part if exact else one.startswith(part) for one in there)]
        if not missing or (len(missing) < len(wanted) and not exact):
            return []
        text = "%s=%s: this host has no interface %s; there are: %s"
        return [text % (name, value, ", ".join(missing), ", ".join(sorted(there)))]

    # --- the way through

    def run(self) -> Dict[str, Any]:
        self._look()
        self._refuse_unusable()
        asked, restart = self.params["state"], self.params["restart"]
        start = asked == "started" and (restart or not (self.running or self.finished))
        self.result["stale"] = self.stale
        self.result["ready"] = self.running or self.finished
        self.result["joined"] = self.joined and not start
        self.result["changed"] = bool(self.rewritten or start)
        self._describe(start)
        if not self.check_mode:
            self._write()
            if start:
                self._start()
            if asked in ("joined", "finished"):
                return self._wait()
        self.result["running"] = self.up()
        return self.done(self._sentence(start))

    def _describe(self, start: bool) -> None:
        for file in self.rewritten:
            old, secret = self.files.read(file.path), file.path == self.job.secret_file
            if old is not None:
                text = "<secret>" if secret else old.decode("utf-8", "replace")
                self.before += ["# %s, mode %04o" % (file.path, self.files.mode(file.path)), text]
            if file.content is not None:
                text = "<secret, changed>" if secret else file.content.decode("utf-8", "replace")
                self.after += ["# %s, mode %04o" % (file.path, file.mode), text]
        if start:
            self.before.append("active: %s" % self.state.get("ActiveState"))
            self.after.append("active: active%s" % (", restarted" if self.up() else ""))

    def _write(self) -> None:
        if not self.rewritten and self.state.get("NeedDaemonReload") != "yes":
            return
        try:
            self.files.stage()
            self.files.commit()
            self.files.finish()
        except OSError as error:
            self.files.undo()
            raise Refused("cannot write %s: %s" % (error.filename, error.strerror)) from error
        self.system.reload()

    def _start(self) -> None:
        if self.up():
            self.stop()
        self.system.stop(LISTENER, 5)
        self._make_log_dir()
        ended = self.system.root + self.job.state + "/ended"
        os.makedirs(os.path.dirname(ended), exist_ok=True)
        if os.path.exists(ended):
            os.unlink(ended)
        with open(os.path.dirname(ended) + "/earlier", "w", encoding="utf-8", errors="surrogateescape") as names:
            names.writelines(os.path.basename(run) + "\n" for run in evidence.runs(self.system, self.job))
        self.system.reset_failed(self.unit)
        failure = self.system.start(self.unit, START_LIMIT)
        self.state = self.system.show(self.unit)
        self.result["started"] = True
        pid = int(self.state.get("MainPID") or 0)
        if not failure:
            ended = not pid or self.system.process(pid).ended_within(SETTLE)
            self.state = self.system.show(self.unit)
            if ended:
                self._settle("active", "deactivating")
        if not self.up() and not (evidence.ended(self.system, self.job) or {"ok": False})["ok"]:
            self._fail(failure or "it ended at once")

    def _make_log_dir(self) -> None:
        """The folder for the logs, of the job's user; older runs beyond the number to keep are removed."""
        path = self.system.root + self.job.log_dir
        os.makedirs(path, exist_ok=True)
        user = pwd.getpwnam(self.params["user"])
        if os.stat(path).st_uid != user.pw_uid:
            os.chown(path, user.pw_uid, user.pw_gid)
        runs = evidence.runs(self.system, self.job)
        for run in runs[: max(0, len(runs) - self.params["keep_logs"] + 1)]:
            shutil.rmtree(run, ignore_errors=True)

    def _wait(self) -> Dict[str, Any]:
        """Until the job's hosts have met, or it has ended on this host, as is asked; or the time is up."""
        if self.stale:
            raise Refused("%s runs another definition of the job: state started starts it anew" % self.unit)
        joined = self.params["state"] == "joined"
        until = time.monotonic() + self.params["timeout"]
        pid = int(self.state.get("MainPID") or 0)
        process = self.system.process(pid) if pid else None
        while process:
            if joined and self._has_processes():
                self.result.update(running=True, joined=True)
                return self.done(self._sentence(self.result["started"]))
            left = max(0.0, until - time.monotonic())
            if process.ended_within(min(left, LOOK) if joined else left):
                break
            if not left:
                self.result["running"] = True
                what = "its hosts have not met" if joined else "it has not ended"
                self._fail("%s within %d s; it goes on running" % (what, self.params["timeout"]), running=True)
        self.state = self.system.show(self.unit)
        self._settle("active", "deactivating")
        self.result["running"] = self.up()
        ended = evidence.ended(self.system, self.job)
        if ended is None or not ended["ok"]:
            self._fail("it has failed" if ended else "it does not run")
        said = evidence.read(self.system, self.job, self.state.get("InvocationID", ""))
        self.result.update(said, verdict="ok", exit_status=0, joined=True)
        return self.done(self._sentence(self.result["started"]))

    def _fail(self, what: str, running: bool = False) -> None:
        said = evidence.read(self.system, self.job, self.state.get("InvocationID", ""))
        ended = evidence.ended(self.system, self.job)
        verdict = evidence.verdict(said, len(self.result["ranks"]), running, ended)
        self.result.update(said, verdict=verdict["name"], exit_status=ended["status"] if ended else None)
        self.done("")
        text = "%s: %s: %s. %s" % (self.unit, verdict["name"], what, verdict["text"])
        raise JobFailed("%s. Logs: %s" % (text.rstrip("."), self.job.log_dir), self.result)

    def _sentence(self, start: bool) -> str:
        plan, ranks = self.plan, self.result["ranks"]
        parts = [
            "node %d of %d" % (self.job.node["node_rank"], plan["nnodes"]),
            "ranks %d-%d of %d" % (ranks[0], ranks[-1], plan["world_size"]),
        ]
        if self.check_mode and self.result["changed"]:
            parts.insert(0, "would start" if start else "would change")
        elif self.result.get("exit_status") == 0 or (self.finished and not start):
            parts.insert(0, "finished")
        elif self.up():
            parts.insert(0, "started" if start else "running")
        else:
            parts.insert(0, "ready")
        if self.result.get("restarts"):
            parts.append("%d restart%s" % (self.result["restarts"], "s"[: self.result["restarts"] != 1]))
        if self.result.get("rounds"):
            last = self.result["rounds"][-1]
            if last["nodes"] != plan["nnodes"]:
                parts.append("ended with %d hosts, %d processes" % (last["nodes"], last["world_size"]))
        if self.stale and not start:
            parts.append("another generation runs: it is left until state started")
        return "%s: %s" % (self.unit, " · ".join(parts))
