# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job has left on its host: how it ended, its logs, the error files of its processes."""

from __future__ import annotations

import glob
import json
import os
import time
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import logs
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun.command import Job, unit_name

TAIL = 1 << 18
"""Bytes read of the end of a log; NCCL says all that matters at its start, so as many of the beginning, too."""
JOURNAL = 400
LAST_LINES = 15


def ended(system: Any, job: Job) -> Optional[Dict[str, Any]]:
    """How this generation of the job ended here last: ``ok``, ``status``, ``invocation``; None when it has not."""
    words = (system.read(job.state + "/ended") or b"").decode("utf-8", "replace").split()
    if len(words) < 5 or words[0] != job.mark:
        return None
    status = int(words[3]) if words[3].isdigit() else words[3]
    # one that was stopped before it had begun is a success for systemd
    return {"ok": words[1:4] == ["success", "exited", "0"], "status": status, "invocation": words[4]}


def runs(system: Any, job: Job) -> List[str]:
    """The folders of the job's runs, the oldest first."""
    folders = glob.glob(glob.escape(system.root + job.log_dir) + "/*_*/attempt_0")
    return sorted((os.path.dirname(folder) for folder in folders), key=os.path.getmtime)


def earlier(system: Any, job: Job) -> List[str]:
    """Names of the folders that were there when the last run was started; one that meets nobody makes none."""
    return (system.read(job.state + "/earlier") or b"").decode("utf-8", "surrogateescape").splitlines()


def read(system: Any, job: Job, invocation: str) -> Dict[str, Any]:
    """What the last run says, for the module's result; ``invocation`` is the running one, if it runs."""
    how = ended(system, job)
    invocation = how["invocation"] if how else invocation
    system.sync_journal()
    agent = "\n".join(system.journal(unit_name(job.name), invocation, JOURNAL)) if invocation else ""
    before = earlier(system, job)
    found = [run for run in runs(system, job) if os.path.basename(run) not in before]
    attempts = sorted(glob.glob(glob.escape(found[-1]) + "/attempt_*"), key=_number) if found else []
    last = {int(os.path.basename(folder)): _logs_of(folder) for folder in _ranks(attempts[-1])} if attempts else {}
    said = logs.read(agent)
    text = "\n".join(last.values())
    of_processes = logs.read(text)
    failures = [one for attempt in attempts for one in _failures(attempt, job)]
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
        # a host that starts anew because another one has failed stays in its attempt
        "restarts": max(0, len(attempts) - 1, len(rounds) - 1),
        "rounds": rounds,
        "begun": logs.begun(agent),
        "failures": failures,
        "fault": of_processes["fault"] or said["fault"],
        "log": found[-1] if found else None,
        "last_words": [line for line in (text or agent).splitlines() if line.strip()][-LAST_LINES:],
    }


def verdict(
    said: Mapping[str, Any], expected_ranks: int, running: bool, how: Optional[Mapping[str, Any]] = None
) -> Dict[str, str]:
    """The verdict on a job that has not ended well; ``how`` it ended is what ``ended`` says."""
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
        text = "torchrun has not come to the rendezvous: it hangs, or its start (the import of PyTorch) takes long"
        return {"name": "not_begun", "text": text}
    found = logs.verdict(like_log, expected_ranks, running)
    if first and said["fault"]:
        found["text"] += " (%s)" % logs.describe(first)
    if found["name"] == "ok":
        return {"name": "failed", "text": "; ".join(said["last_words"][-3:])}
    return found


def _number(path: str) -> int:
    tail = path.rpartition("_")[2]
    return int(tail) if tail.isdigit() else -1


def _ranks(attempt: str) -> List[str]:
    folders = [path for path in glob.glob(glob.escape(attempt) + "/*") if os.path.basename(path).isdigit()]
    return sorted(folders, key=lambda path: int(os.path.basename(path)))


def _logs_of(folder: str) -> str:
    return "\n".join(_ends(os.path.join(folder, name)) for name in ("stdout.log", "stderr.log"))


def _ends(path: str) -> str:
    """Beginning and end of a file that may be large."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(TAIL)
            size = os.fstat(stream.fileno()).st_size
            if size > TAIL:
                stream.seek(max(TAIL, size - TAIL))
                content += b"\n" + stream.read(TAIL)
    except OSError:
        return ""
    return content.decode("utf-8", "replace")


def _failures(attempt: str, job: Job) -> List[Dict[str, Any]]:
    """The processes of one attempt that left an error file, or died with an exception in their log."""
    found = []
    for folder in _ranks(attempt):
        local_rank = int(os.path.basename(folder))
        text, moment = None, None
        try:
            with open(os.path.join(folder, "error.json"), encoding="utf-8") as stream:
                told = json.load(stream)["message"]
            text = told["message"] if isinstance(told, dict) else str(told)
            moment = float(told["extraInfo"]["timestamp"]) if isinstance(told, dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            log = os.path.join(folder, "stderr.log")
            text = logs.last_words(_ends(log))
            moment = os.path.getmtime(log) if text else None
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
                    "message": text.strip().splitlines()[0][:300],
                    "fault": known["name"] if known else None,
                }
            )
    return found


def _complete(failures: List[Dict[str, Any]], cause: Mapping[str, Any], attempt: int, job: Job) -> None:
    """Add what torchrun's own summary knows of the first process that failed here: its exit code, its true rank."""
    moment = None
    if cause["time"]:
        try:
            moment = time.mktime(time.strptime(cause["time"], "%Y-%m-%d_%H:%M:%S"))
        except ValueError:
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
