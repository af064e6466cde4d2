# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job has left on its host: how it ended, its logs, the error files of its processes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..toolbox.errors import Failed
from . import logs
from .command import Job, unit_name

TAIL = 1 << 18
"""Bytes read of the end of a log; NCCL prints all that matters at its start, so as many of the beginning, too."""
TOTAL = 1 << 24
"""Bytes read of all logs of one attempt together."""
ERROR_FILE = 1 << 20
"""Bytes read of an error file."""
ATTEMPTS = 100
RANKS = 256
"""How many attempts of a run, and processes of an attempt, are read."""
LIMIT = 60.0
"""Seconds for the logs, which may lie on a file system that hangs."""
ENDED = 4096
JOURNAL = 400
LAST_LINES = 15
WIDEST = 500
"""Characters of a line of a log that are shown."""

_ENDED = re.compile(r"(\S+) ([a-z-]+) ([a-z]+) ([0-9]{1,3}|[A-Z0-9+-]{1,12}) ([0-9a-z]{1,32})\n?")


def ended(system: Any, job: Job) -> Optional[Dict[str, Any]]:
    """How this generation of the job ended here last: ``ok``, ``status``, ``invocation``; None when it has not."""
    try:
        # root's folder, but the job's user may write the file
        with open(system.root + job.ended_file, "rb") as stream:
            said = _ENDED.fullmatch(stream.read(ENDED).decode("utf-8", "replace"))
    except OSError:
        return None
    if not said or said.group(1) != job.mark:
        return None
    result, code, status, invocation = said.groups()[1:]
    # one that was stopped before it had begun is a success for systemd
    ok = (result, code, status) == ("success", "exited", "0")
    return {"ok": ok, "status": int(status) if status.isdigit() else status, "invocation": invocation}


# --- the logs: they are the job's user's, and everything in them is whatever that user likes


def prune(system: Any, job: Job, ids: Any, keep: int) -> List[str]:
    """Remove the oldest runs' logs, with the rights of the job's user, until ``keep`` are left: their names.

    :raises OSError: the folder cannot be read, or that took too long (Failed).
    """
    from ..toolbox.files import folder
    from ..toolbox.users import as_user

    def work() -> List[str]:
        with folder(system.root + job.log_dir) as descriptor:
            found = _runs("/proc/self/fd/%d" % descriptor)  # of a job of root, too, in whatever place that is
            for run in found[: max(0, len(found) - keep)]:
                shutil.rmtree(run, ignore_errors=True)
            return [os.path.basename(run) for run in found if os.path.isdir(run)]

    names: List[str] = as_user(ids, work, LIMIT)
    return names


def read(system: Any, job: Job, ids: Any, invocation: str) -> Dict[str, Any]:
    """What the last run reported, for the module's result.

    The logs are read with the rights of the job's user, so that a link to a file of root shows nothing of it.

    :param ids: the user's.
    :param invocation: the running one, if it runs.
    """
    from ..toolbox.users import as_user

    how = ended(system, job)
    invocation = how["invocation"] if how else invocation
    system.sync_journal()
    agent = "\n".join(system.journal(unit_name(job.name), invocation, JOURNAL)) if invocation else ""
    before = (system.read(job.state + "/earlier") or b"").decode("utf-8", "surrogateescape").splitlines()
    folder = system.root + job.log_dir
    try:
        said: Dict[str, Any] = as_user(ids, lambda: _said(folder, before, agent, job), LIMIT)
    except (OSError, Failed) as error:
        said = _said("", [], agent[-TAIL:], job)
        reason = getattr(error, "strerror", None) or str(error)
        said["last_words"] = [*said["last_words"], "The logs in %s cannot be read: %s" % (job.log_dir, reason)]
    return said


def _said(folder: str, before: Sequence[str], agent: str, job: Job) -> Dict[str, Any]:
    from ..toolbox.text import printable

    agent = printable(agent)
    found = [run for run in _runs(folder) if os.path.basename(run) not in before]
    attempts = sorted(_below(found[-1], "attempt_"), key=_number) if found else []
    read_too = attempts[-ATTEMPTS:]
    last = _texts_of(read_too[-1]) if read_too else []
    said = logs.read(agent)
    text = printable("\n".join(last))
    of_processes = logs.read(text)
    failures = [one for attempt in read_too for one in _failures(attempt, job)]
    for death in logs.deaths(agent):
        _complete(failures, dict(death, rank=None, message=None, time=None), death["attempt"], job)
    cause = said["root_cause"]
    if cause:
        _complete(failures, cause, max(0, len(attempts) - 1), job)
    rounds = logs.rounds(agent)
    return {
        "nccl": {key: of_processes[key] for key in ("version", "interfaces", "network", "via", "set", "warnings")},
        "seen_ranks": of_processes["ranks"],
        "allreduce": of_processes["allreduce"],
        "pairs": of_processes["pairs"],
        "enqueued": {str(rank): work for rank, work in of_processes["enqueued"].items()},
        # a host that restarts because another one has failed stays in its attempt
        "restarts": max(0, len(attempts) - 1, len(rounds) - 1),
        "rounds": rounds,
        "begun": logs.begun(agent),
        "failures": failures,
        "fault": of_processes["fault"] or said["fault"],
        "log": printable(found[-1]) if found else None,
        "last_words": [line[:WIDEST] for line in (text or agent).splitlines() if line.strip()][-LAST_LINES:],
    }


def verdict(
    said: Mapping[str, Any], expected_ranks: int, running: bool, how: Optional[Mapping[str, Any]] = None
) -> Dict[str, str]:
    """The verdict on a job that has not ended well; ``how`` it ended is from ``ended``."""
    last = max([one["attempt"] for one in said["failures"]] or [0])
    first = logs.first_failure(one for one in said["failures"] if one["attempt"] == last)
    like_log = {
        "fault": said["fault"],
        "root_cause": first,
        "allreduce": said["allreduce"],
        "ranks": said["seen_ranks"],
    }
    if not running and not said["fault"] and not first and (how is None or isinstance(how["status"], str)):
        by = "by SIG%s" % how["status"] if how else "and has left no word of its end"
        return {"name": "stopped", "text": "it was ended %s: not by the job itself" % by}
    if running and not said["begun"] and not said["seen_ranks"]:
        text = "torchrun has not reached the rendezvous: it hangs, or is slow to start (importing PyTorch)"
        return {"name": "not_begun", "text": text}
    found = logs.verdict(like_log, expected_ranks, running)
    if first and said["fault"]:
        found["text"] += " (%s)" % logs.describe(first)
    if found["name"] == "ok":
        return {"name": "failed", "text": "; ".join(said["last_words"][-3:])}
    return found


def _below(folder: str, begin: str = "") -> List[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(begin)]
    except OSError:
        return []


def _runs(folder: str) -> List[str]:
    """The folders of the job's runs, the oldest first."""
    found = [run for run in _below(folder) if "_" in run[len(folder) :] and os.path.isdir(run + "/attempt_0")]
    return sorted(found, key=_changed)


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _number(path: str) -> int:
    tail = path.rpartition("_")[2]
    return int(tail) if tail.isdecimal() else -1


def _ranks(attempt: str) -> List[str]:
    folders = [path for path in _below(attempt) if os.path.basename(path).isdecimal()]
    return sorted(folders, key=lambda path: int(os.path.basename(path)))[:RANKS]


def _texts_of(attempt: str) -> List[str]:
    """Standard output and error of an attempt's processes."""
    logs_of = [os.path.join(folder, name) for folder in _ranks(attempt) for name in ("stdout.log", "stderr.log")]
    return [_ends(path, min(TAIL, TOTAL // (2 * len(logs_of)))) for path in logs_of]


def _ends(path: str, size: int) -> str:
    """Beginning and end of a regular file that may be large, ``size`` bytes each; nothing of anything else."""
    from ..toolbox.files import open_regular

    try:
        descriptor = open_regular(path)
        if descriptor is None:
            return ""
        with os.fdopen(descriptor, "rb") as stream:
            content = stream.read(size)
            whole = os.fstat(descriptor).st_size
            if whole > size:
                stream.seek(max(size, whole - size))
                content += b"\n" + stream.read(size)
    except OSError:
        return ""
    return content.decode("utf-8", "replace")


def _failures(attempt: str, job: Job) -> List[Dict[str, Any]]:
    """The processes of one attempt that left an error file, or died with an exception in their log."""
    from ..toolbox.text import printable

    found = []
    for folder in _ranks(attempt):
        local_rank = int(os.path.basename(folder))
        text, moment = _error_file(os.path.join(folder, "error.json"))
        if text is None:
            log = os.path.join(folder, "stderr.log")
            said = printable(_ends(log, TAIL))
            # a process that NCCL's watchdog ends leaves no exception of Python's
            text = logs.last_words(said) or (logs.fault(said) or {}).get("line")
            moment = _changed(log) if text else None
        text = printable(text or "").strip()
        if text:
            known = logs.fault(text)
            found.append(
                {
                    "host": job.host,
                    "rank": job.node["first_rank"] + local_rank,
                    "local_rank": local_rank,
                    "attempt": _number(attempt),
                    "exit_code": None,
                    "time": moment,
                    "message": text.splitlines()[0][:300],
                    "fault": known["name"] if known else None,
                }
            )
    return found


def _error_file(path: str) -> Any:
    """The text and the time of a process's error file, None and None without one that has both."""
    try:
        report = json.loads(_ends(path, ERROR_FILE))["message"]
        if not isinstance(report, dict):
            return str(report), None
        moment = float(report["extraInfo"]["timestamp"])
        return str(report["message"]), moment if math.isfinite(moment) else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None, None


def _complete(failures: List[Dict[str, Any]], cause: Mapping[str, Any], attempt: int, job: Job) -> None:
    """Add what torchrun's own summary knows of the first process that failed here: its exit code, its true rank."""
    moment = None
    if cause["time"]:
        try:
            moment = time.mktime(time.strptime(cause["time"], "%Y-%m-%d_%H:%M:%S"))
        except (ValueError, OverflowError):
            pass
    for one in failures:
        if one["attempt"] == attempt and one["local_rank"] == cause["local_rank"]:
            one["exit_code"] = cause["exit_code"]
            one["rank"] = one["rank"] if cause["rank"] is None else cause["rank"]
            one["message"] = one["message"] or cause["message"]
            one["time"] = one["time"] or moment
            return
    found = {key: cause[key] for key in ("rank", "local_rank", "exit_code", "message")}
    if found["rank"] is None:
        found["rank"] = job.node["first_rank"] + cause["local_rank"]
    failures.append(dict(found, host=job.host, attempt=attempt, time=moment, fault=None))
