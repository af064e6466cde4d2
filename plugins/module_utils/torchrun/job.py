# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's part of a torchrun job: its files, its start and stop, and how it ended.

A job is not a service: it ends, and it belongs to several hosts. So a failed start is reported, not rolled back; what
can be known beforehand is refused before a process is touched.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from typing import Any, Dict, List, Mapping, Optional

from ..converge.atomic import Files, Wanted
from ..systemd.manager import ManagerError, System, main_environ, seconds
from ..toolbox.errors import Failed, Refused
from . import command, evidence, preflight
from .network import LISTENER

DOWN = ("inactive", "failed")
STOP_MARGIN = 5.0
"""Seconds beyond the unit's TimeoutStopSec."""
SETTLE = 1.0
"""Seconds for which a process that was just started is watched."""
START_LIMIT = 30.0
END_LIMIT = 10.0
"""Seconds for ExecStopPost=, which records how it ended."""
LOOK = 0.25
"""Seconds between two looks for the processes of a job whose hosts are to meet."""
SCRIPT_BEGIN = b"#!/bin/sh\n" + command.HEADER.encode()
SCRIPT_LIMIT = 1 << 20
"""Bytes of the plain script that are compared."""


def converge(params: Mapping[str, Any], check_mode: bool, warn: Any, system: Optional[Any] = None) -> Dict[str, Any]:
    """Bring this host's part of the job to its declared state.

    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises Failed: the job does not run, or has failed.
    """
    system = system or System()
    wrong = [text for text in command.check(params) if params["state"] != "absent" or text.startswith("name")]
    if wrong and params["state"] != "stopped":
        raise Refused("; ".join(wrong))
    try:
        if params["state"] in ("absent", "stopped"):
            return _Ending(params, check_mode, system).run()
        return _Running(params, check_mode, warn, system).run()
    except ManagerError as error:
        raise Refused(str(error)) from error


def left_over(files: Files) -> bool:
    """Whether a run that was killed has left something next to these files: what it was to write, or to replace."""
    for file in files.wanted:
        folder, name = os.path.split(files.root + file.path)
        if any(os.path.lexists("%s/.%s.%s" % (folder, name, kind)) for kind in ("new", "previous", "proven")):
            return True
    return False


class _Part:
    """What is common to all states: the unit as it is, and the result."""

    def __init__(self, params: Mapping[str, Any], check_mode: bool, system: Any) -> None:
        self.params = params
        self.check_mode = check_mode
        self.system = system
        self.name = params["name"]
        self.unit = command.unit_name(self.name)
        self.state = system.show(self.unit)
        self.before: List[str] = []
        self.after: List[str] = []
        self.result: Dict[str, Any] = {
            "changed": False,
            "unit": self.unit,
            "started": False,
            "stopped": False,
            "verdict": "ok",
        }

    def up(self) -> bool:
        return self.state.get("ActiveState") not in DOWN

    def stop(self) -> None:
        """Stop the unit, and forget that torchrun calls it a failure."""
        declared = self.params["stop_timeout"] + command.STOP_MARGIN
        limit = max(declared, seconds(self.state.get("TimeoutStopUSec", "")) or 0)
        failure = self.system.stop(self.unit, limit + STOP_MARGIN)
        self.state = self.system.show(self.unit)
        if self.up():
            raise Failed("%s did not stop: %s" % (self.unit, failure or self.state.get("ActiveState")), self.result)
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
        wanted = [Wanted("%s/%s.%s" % (folder, self.name, kind), None) for kind in ("env", "secrets")]
        # the unit names the others, so it is the last one here, and removed first
        wanted.append(Wanted(command.claim_file(self.name), None))
        wanted.append(Wanted("%s/%s" % (command.UNITS, self.unit), None, own_directories=0))
        files = Files(wanted if absent else [], self.system.root)
        gone = [file.path for file in files.changes()]
        kept = self.system.root + state
        had_state = absent and os.path.isdir(kept)
        was_up = self.up()
        if was_up:
            self.before.append("active: %s" % self.state.get("ActiveState"))
            self.after.append("active: inactive")
        self.before += gone
        left = left_over(files)
        unknown = absent and self.state.get("NeedDaemonReload") == "yes"
        self.result["changed"] = bool(was_up or gone or had_state or left)
        if not self.check_mode and (self.result["changed"] or unknown):
            if was_up:
                self.stop()
            if absent:
                remove_script(self.system, state)
            files.commit()
            files.finish()
            if had_state:
                shutil.rmtree(kept)
            if gone or left or unknown:
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
        declared = self.job.files()
        unused = [
            path
            for path in (self.job.content_file, self.job.script_record, self.job.secret_file)
            if path not in declared
        ]
        self.files = Files(
            [
                Wanted(path, text.encode("utf-8", "surrogateescape"), mode, own_directories=0)
                for path, (text, mode) in declared.items()
            ]
            + [Wanted(path, None, own_directories=0) for path in unused]
            + ([] if self.job.claim.gpus else [Wanted(self.job.claim_file, None)]),
            system.root,
        )
        self.rewritten = self.files.changes()
        self.left_over = left_over(self.files)
        self.script = _Script(self.job, system.root) if params["script_path"] else None
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
            raise Refused("plan: expected the result of the lookup gpufleet.inference.torchrun_plan")
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

    # --- the current state

    def _look(self) -> None:
        """Whether this generation runs, has ended well, or another one is running."""
        passing = ("activating", "deactivating")
        self.state, environ = main_environ(self.system, self.unit, END_LIMIT, passing, self.state)
        declared = {name: text for name, (text, _why) in self.job.environment.items()}
        declared.update((name, str(text)) for name, text in self.params["secret_environment"].items())
        own = all(environ.get(name) == text for name, text in declared.items())
        self.running = self.state.get("ActiveState") == "active" and own
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

    def _refuse_unusable(self, due: bool) -> None:
        """What is known to fail, before a running process is touched; ``due`` is whether the job is to start."""
        wrong = [self.script.unsafe] if self.script and self.script.unsafe else []
        wrong += preflight.unusable(self.system, self.job, due)
        if due and self.params["state"] in ("present", "started"):
            wrong += preflight.claimed(self.system, self.job)
        if self.state.get("LoadState") == "masked":
            wrong.append("%s is masked, so it cannot start: systemctl unmask it first" % self.unit)
        if wrong:
            raise Refused("; ".join(wrong))

    def _ids(self) -> Any:
        from ..toolbox.users import ids_of

        return ids_of(self.params["user"])

    # --- the way through

    def run(self) -> Dict[str, Any]:
        self._look()
        asked, restart = self.params["state"], self.params["restart"]
        due = restart or not (self.running or self.finished)
        start = asked == "started" and due
        self._refuse_unusable(due)
        self.result["stale"] = self.stale
        self.result["ready"] = self.running or self.finished
        self.result["joined"] = self.joined and not start
        self.result["changed"] = bool(
            self.rewritten or self.left_over or start or (self.script and self.script.changed)
        )
        self._describe(start)
        if start:
            for text in preflight.code_of_others(self.system, self.job) + preflight.without_effect(self.job):
                self.warn(text)
        if not self.check_mode:
            if start:
                self._make_log_dir()
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
        if self.script and self.script.changed:
            before, after = self.script.diff()
            self.before += before
            self.after += after
        if start:
            self.before.append("active: %s" % self.state.get("ActiveState"))
            self.after.append("active: active%s" % (", restarted" if self.up() else ""))

    def _write(self) -> None:
        if self.rewritten or self.left_over:
            remove_script(self.system, self.job.state, but=self.params["script_path"])
            try:
                self.files.stage()
                self.files.commit()
                self.files.finish()
            except OSError as error:
                self.files.undo()
                raise Refused("cannot write %s: %s" % (error.filename, error.strerror)) from error
        if self.script and self.script.changed:
            self.script.write()
        if self.rewritten or self.left_over or self.state.get("NeedDaemonReload") == "yes":
            if self.up() and not os.path.lexists(self.system.root + self.job.ended_file):
                self._expect_end()  # a job of an older version of this collection, whose unit wrote it as root
            self.system.reload()

    def _start(self) -> None:
        if self.up():
            self.stop()
        self.system.stop(LISTENER, 5)
        try:
            self._expect_end()
            self._remember_earlier_runs()
        except OSError as error:
            raise Failed(
                "%s: cannot write %s: %s" % (self.unit, error.filename, error.strerror), self.result
            ) from error
        self.system.reset_failed(self.unit)
        failure = self._start_alone()
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

    def _start_alone(self) -> Optional[str]:
        """Start the unit, if no other run has claimed its GPUs by now: why it does not start, else None."""
        from ..placement.claims import claiming

        try:
            with claiming(self.job.claim, self.system, label=self.job.gpu):
                failure: Optional[str] = self.system.start(self.unit, START_LIMIT)
                return failure
        except Refused as conflict:
            raise Failed("%s: %s" % (self.unit, conflict), self.result) from None

    def _make_log_dir(self) -> None:
        """The folder for the logs, of the job's user, whatever that user has put in its place."""
        from ..toolbox import files

        path, ids = self.system.root + self.job.log_dir, self._ids()
        try:
            if not files.make_folders(path, (ids.uid, ids.gid)) and os.lstat(path).st_uid != ids.uid:
                files.give_folder(path, (ids.uid, ids.gid))
        except OSError as error:
            raise Refused("log_dir: %s: %s" % (self.job.log_dir, error.strerror)) from error

    def _expect_end(self) -> None:
        """An empty file for how the run ended, which its unit writes as the job's user."""
        from ..toolbox import files

        ids = self._ids()
        files.make_folders(self.system.root + self.job.state)
        files.write_whole(self.system.root + self.job.ended_file, b"", 0o644, (ids.uid, ids.gid))

    def _remember_earlier_runs(self) -> None:
        """The names of the runs whose logs are there, and not the next one's; those beyond the number to keep go."""
        from ..toolbox import files

        try:
            names = evidence.prune(self.system, self.job, self._ids(), self.params["keep_logs"] - 1)
        except (OSError, Failed) as error:
            names = []
            self.warn("the logs of earlier runs in %s are not removed: %s" % (self.job.log_dir, error))
        text = "".join(name + "\n" for name in names)
        files.write_whole(self.system.root + self.job.state + "/earlier", text.encode("utf-8", "surrogateescape"))

    def _wait(self) -> Dict[str, Any]:
        """Until the job's hosts have met, or it has ended on this host, as is asked; or the time is up."""
        if self.stale:
            raise Refused("%s runs another definition of the job: state started restarts it" % self.unit)
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
                self._fail("%s in time; it keeps running" % what, running=True)
        self.state = self.system.show(self.unit)
        self._settle("active", "deactivating")
        self.result["running"] = self.up()
        ended = evidence.ended(self.system, self.job)
        if ended is None or not ended["ok"]:
            self._fail("it has failed" if ended else "it does not run")
        said = evidence.read(self.system, self.job, self._ids(), self.state.get("InvocationID", ""))
        self.result.update(said, verdict="ok", exit_status=0, joined=True)
        return self.done(self._sentence(self.result["started"]))

    def _fail(self, what: str, running: bool = False) -> None:
        said = evidence.read(self.system, self.job, self._ids(), self.state.get("InvocationID", ""))
        ended = evidence.ended(self.system, self.job)
        verdict = evidence.verdict(said, len(self.result["ranks"]), running, ended)
        self.result.update(said, verdict=verdict["name"], exit_status=ended["status"] if ended else None)
        self.done("")
        text = "%s: %s: %s. %s" % (self.unit, verdict["name"], what, verdict["text"])
        raise Failed("%s. Logs: %s" % (text.rstrip("."), self.job.log_dir), self.result)

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
            parts.append("another generation is running: state started replaces it")
        return "%s: %s" % (self.unit, " · ".join(parts))


def remove_script(system: Any, state: str, but: Optional[str] = None) -> None:
    """Remove the plain script of an earlier declaration, unless it stays at ``but``, or is another file by now."""
    path = (system.read(state + command.SCRIPT_RECORD) or b"").decode("utf-8", "surrogateescape")
    if not path or path == but:
        return
    from ..toolbox import files

    folder, name = os.path.split(system.root + path)
    try:
        files.remove("%s/.%s.new" % (folder, name))
        if (files.read_regular(system.root + path, SCRIPT_LIMIT) or b"").startswith(SCRIPT_BEGIN):
            files.remove(system.root + path)
    except OSError:
        pass  # somebody has put something else there


class _Script:
    """The launch as a plain script, in a folder where others than root may write, too.

    ``unsafe`` says why it cannot be written there, ``changed`` whether it has to be.
    """

    def __init__(self, job: command.Job, root: str) -> None:
        from ..toolbox import files

        self.path, self._place = job.params["script_path"], root + job.params["script_path"]
        self._text = job.script_text().encode("utf-8", "surrogateescape")
        self._before: Optional[bytes] = None
        self.unsafe = ""
        try:
            self._before = files.read_regular(self._place, SCRIPT_LIMIT)
        except OSError as error:
            self.unsafe = "script_path: %s: %s" % (self.path, error.strerror)
        self.changed = not self.unsafe and (self._before != self._text or not self._is_ours())

    def _is_ours(self) -> bool:
        status = os.lstat(self._place)
        folder, name = os.path.split(self._place)
        left = os.path.lexists("%s/.%s.new" % (folder, name))
        return stat.S_IMODE(status.st_mode) == 0o755 and status.st_uid == os.geteuid() and not left

    def diff(self) -> Any:
        """Its lines before and after; of a file that is not this collection's only that there is one."""
        ours = (self._before or b"").startswith(SCRIPT_BEGIN)
        before = self._before.decode("utf-8", "replace") if self._before and ours else "<another file>"
        head = "# %s" % self.path
        return [] if self._before is None else [head, before], [
            head + ", mode 0755",
            self._text.decode("utf-8", "replace"),
        ]

    def write(self) -> None:
        """:raises Refused: it cannot be written."""
        from ..toolbox import files

        try:
            files.make_folders(os.path.dirname(self._place))
            files.write_whole(self._place, self._text, 0o755)
        except OSError as error:
            raise Refused("script_path: cannot write %s: %s" % (self.path, error.strerror)) from error
