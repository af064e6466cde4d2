# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's part of a job as files: environment, unit, plain script. Pure."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ..converge.override import DROP_IN
from ..placement.claims import Claim, lines
from ..python_env.compat import library_path
from ..serving.variables import MAY_BE_SECRET, may_be_secret
from ..systemd import render
from ..toolbox.errors import Refused

FOLDER = "/etc/gpufleet/torchrun"
UNITS = "/etc/systemd/system"
STATE = "/var/lib/gpufleet/torchrun"
SCRIPT_RECORD = "/script_path"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""systemd's own."""
STOP_MARGIN = 15
"""Seconds that torchrun has for itself after it has killed its processes."""
MARK = "GPUFLEET_JOB"
"""Variable that holds which generation of which job a process belongs to."""
OF_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Variable that torchrun gives to the processes it starts."""
HEADER = "# Written by the Ansible collection gpufleet.inference, which replaces this file on its next run.\n"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}")


def unit_name(job: str) -> str:
    return "torchrun@%s.service" % job


def claim_file(job: str) -> str:
    """The drop-in that holds the claim of a job, see placement.claims."""
    return "%s/%s.d/%s" % (UNITS, unit_name(job), DROP_IN)


def holds(words: Sequence[str], port: int) -> bool:
    """Whether a command that was written here makes its host hold the rendezvous at this port."""
    static = "--master-port=%d" % port in words and "--node-rank=0" in words
    return (
        static
        or any(word.startswith("--rdzv-endpoint=") and word.endswith(":%d" % port) for word in words)
        and any(word.startswith("--rdzv-conf=") and "is_host=true" in word for word in words)
    )


class Job:
    """What one host does for a job.

    :param params: the module's parameters.
    :param plan: the plan, whose ``host`` is this host.
    """

    def __init__(self, params: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        self.params = params
        self.plan = plan
        self.name = params["name"]  # type: str
        self.host = plan["host"]  # type: str
        self.node = plan["nodes"][self.host]  # type: Mapping[str, Any]
        self.generation = self._generation()
        self.mark = "%s-%s" % (self.name, self.generation)
        self.state = "%s/%s" % (STATE, self.name)
        self.log_dir = params["log_dir"] or "/var/log/torchrun/" + self.name
        self.working_directory = params["working_directory"] or os.path.dirname(params["script"] or "") or "/"
        self.environment = self._environment()

    def _generation(self) -> str:
        """Changes whenever the job changes on any of its hosts; on a host of an elastic job, when it changes there."""
        left_out = ("plan", "state", "timeout", "restart", "keep_logs", "script_path", "secret_environment")
        declared = {key: value for key, value in self.params.items() if key not in left_out}
        declared["secrets"] = sorted(self.params["secret_environment"])
        elastic = self.plan["min_nodes"] < self.plan["nnodes"]
        nodes = {self.host: self.node} if elastic else self.plan["nodes"]
        planned = {
            host: [
                node["address"],
                node["environment"],
                node["nproc_per_node"],
                elastic or node["node_rank"],
                node["script"],
            ]
            for host, node in nodes.items()
        }
        return _digest([declared, planned, self._common()])

    def _common(self) -> List[Any]:
        """What all hosts must have alike."""
        keys = ("rendezvous", "master_addr", "master_port", "max_restarts", "min_nodes", "nnodes")
        program = [self.params[key] for key in ("script", "module", "content", "arguments")]
        return [self.plan[key] for key in keys] + program

    @property
    def rendezvous_id(self) -> str:
        """The same on all hosts; hosts of different states of the job do not meet."""
        return "%s-%s" % (self.name, _digest(self._common())[:8])

    def _environment(self) -> Dict[str, Tuple[str, str]]:
        """Name to value and reason; what the inventory declares wins over the plan."""
        found = {MARK: (self.mark, "distinguishes this generation of the job from others")}  # type: Dict[str, Tuple[str, str]]
        found["PYTHONUNBUFFERED"] = ("1", "what a process printed before it died must be in its log")
        found["LOGLEVEL"] = ("INFO", "torchrun logs each rendezvous, and with how many hosts it continues")
        path = "%s/bin:/usr/local/cuda/bin:%s" % (self.params["venv"], SYSTEM_PATH)
        found["PATH"] = (path, "extensions are built with programs of the environment, such as ninja, and of CUDA")
        found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = (str(self.params["stop_timeout"]), "the declared stop_timeout")
        trace = self.log_dir + "/trace_rank_"
        found["TORCH_FR_DUMP_TEMP_FILE"] = (trace, "where a process writes what it ran, once an operation timed out")
        for name, value in self.node["environment"].items():
            found[name] = (value, self.node["reasons"][name])
        for name, value in self.params["environment"].items():
            found[name] = (str(value), "declared")
        libraries = self.node["environment"].get("LD_LIBRARY_PATH", "")
        if libraries and "LD_LIBRARY_PATH" in self.params["environment"]:
            path = library_path(libraries, str(self.params["environment"]["LD_LIBRARY_PATH"]))
            found["LD_LIBRARY_PATH"] = (path, "declared, after what the plan needs")
        return found

    # --- the command

    @property
    def program(self) -> str:
        """The script to run: the declared one, or the file that holds the declared content."""
        return self.params["script"] or self.content_file

    @property
    def content_file(self) -> str:
        return "%s/script.py" % self.state

    def command(self) -> List[str]:
        """torchrun and its arguments."""
        return [word for line in self._lines() for word in line]

    def _lines(self) -> List[List[str]]:
        """The command as lines of words, as a person would write it."""
        plan, params = self.plan, self.params
        words = ["--nproc-per-node=%d" % self.node["nproc_per_node"]]
        words += self._rendezvous()
        if plan["max_restarts"]:
            words.append("--max-restarts=%d" % plan["max_restarts"])
        if params["monitor_interval"] is not None:
            words.append("--monitor-interval=%g" % params["monitor_interval"])
        words += ["--log-dir=" + self.log_dir, "--redirects=3"]
        for name, value in params["options"].items():
            words.append("--" + dashed(name) + ("" if value is True else "=%s" % value))
        program = ["--module", params["module"]] if params["module"] else [self.program]
        head = [params["venv"] + "/bin/python", "-m", "torch.distributed.run"]
        return [head, *([word] for word in words), program + params["arguments"]]

    def _rendezvous(self) -> List[str]:
        plan, join = self.plan, self.params["join_timeout"]
        if plan["rendezvous"] == "standalone":
            return ["--standalone"]
        low, high = plan["min_nodes"], plan["nnodes"]
        words = ["--nnodes=%s" % (high if low == high else "%d:%d" % (low, high)), "--rdzv-id=" + self.rendezvous_id]
        conf = {"timeout": join} if plan["rendezvous"] == "static" else {"join_timeout": join}
        if plan["rendezvous"] == "static":
            words += ["--node-rank=%d" % self.node["node_rank"]]
            words += ["--master-addr=%s" % plan["master_addr"], "--master-port=%d" % plan["master_port"]]
        else:
            conf["read_timeout"] = min(60, join)
            conf["is_host"] = str(self.host == plan["master"]).lower()
            words += ["--rdzv-backend=c10d", "--rdzv-endpoint=%s:%d" % (plan["master_addr"], plan["master_port"])]
        if self.node["address"]:
            words.append("--local-addr=" + self.node["address"])
        conf.update(self.params["rdzv_conf"])
        return [*words, "--rdzv-conf=" + ",".join("%s=%s" % item for item in conf.items())]

    # --- the files

    def files(self) -> Dict[str, Tuple[str, int]]:
        """Path to text and mode of every file of the job in root's folders, in the order in which they are written."""
        secrets = self.params["secret_environment"]
        found = {}  # type: Dict[str, Tuple[str, int]]
        if self.params["content"] is not None:
            found[self.content_file] = (self.params["content"], 0o644)
        if self.params["script_path"]:
            found[self.script_record] = (self.params["script_path"], 0o644)
        found[self.env_file] = (self.env_text(), 0o644)
        if secrets:
            found[self.secret_file] = (render.environment_file({k: str(v) for k, v in secrets.items()}), 0o600)
        if self.claim.gpus:
            found[self.claim_file] = (render.drop_in(unit_name(self.name), {}, lines(self.claim)), 0o644)
        found["%s/%s" % (UNITS, unit_name(self.name))] = (self.unit_text(), 0o644)
        return found

    @property
    def script_record(self) -> str:
        """Where it is kept which path the plain script has, so that it goes with the job."""
        return self.state + SCRIPT_RECORD

    @property
    def ended_file(self) -> str:
        """Where the unit records how it ended: a file of the job's user in a folder of root."""
        return "%s/ended" % self.state

    @property
    def claim(self) -> Claim:
        """The job's GPUs, while it runs: its unit is never enabled."""
        return Claim(unit_name(self.name), {device["uuid"]: None for device in self.node["gpus"] if device["uuid"]})

    def gpu(self, uuid: str) -> str:
        """How messages name a GPU of the job."""
        index = next((device["index"] for device in self.node["gpus"] if device["uuid"] == uuid), "?")
        return "%s (%s)" % (index, uuid)

    @property
    def claim_file(self) -> str:
        return claim_file(self.name)

    @property
    def env_file(self) -> str:
        return "%s/%s.env" % (FOLDER, self.name)

    @property
    def secret_file(self) -> str:
        return "%s/%s.secrets" % (FOLDER, self.name)

    def env_text(self) -> str:
        lines = [HEADER]
        for name, (value, reason) in self.environment.items():
            lines.append("# %s\n%s" % (" ".join(reason.split()), render.environment_file({name: value})))
        return "".join(lines)

    def _title(self) -> str:
        low, high = self.plan["min_nodes"], self.plan["nnodes"]
        if low < high:  # ranks come and go with the hosts
            return "torchrun job %s, on %d to %d hosts" % (self.name, low, high)
        last = self.node["first_rank"] + self.node["nproc_per_node"] - 1
        return "torchrun job %s, node %d of %d, ranks %d to %d of %d" % (
            self.name,
            self.node["node_rank"],
            self.plan["nnodes"],
            self.node["first_rank"],
            last,
            self.plan["world_size"],
        )

    def unit_text(self) -> str:
        """The unit as ``systemctl cat`` shows it."""
        params = self.params
        command = [" ".join(render.argument(word) for word in line) for line in self._lines()]
        ended = "echo %s $$SERVICE_RESULT $$EXIT_CODE $$EXIT_STATUS $$INVOCATION_ID > %s" % (self.mark, self.ended_file)
        service = [
            "Type=exec",
            "User=%s" % params["user"],
            "WorkingDirectory=%s" % self.working_directory.replace("%", "%%"),
            "EnvironmentFile=%s" % self.env_file,
        ]
        if params["secret_environment"]:
            service.append("EnvironmentFile=%s" % self.secret_file)
        service += [
            "ExecStart=" + " \\\n    ".join(command),
            "# how it ended, for the next run of the collection; as the job's user, since it has the job's variables,",
            "# and one such as LD_LIBRARY_PATH may name a folder of that user",
            "ExecStopPost=/bin/sh -c %s" % render.argument(ended, variables=True),
            "# torchrun ends its processes itself, and kills them when their time is up",
            "KillMode=mixed",
            "TimeoutStopSec=%d" % (params["stop_timeout"] + STOP_MARGIN),
        ]
        service += ["Limit%s=%s" % (name.upper(), value) for name, value in sorted(params["limits"].items())]
        return (
            "%s\n[Unit]\nDescription=%s\nWants=network-online.target\nAfter=network-online.target\n\n[Service]\n%s\n"
            % (HEADER, self._title(), "\n".join(service))
        )

    def script_text(self) -> str:
        """The same as a plain shell script; secrets are not in it."""
        lines = ["#!/bin/sh", HEADER + "# %s, as the unit %s starts it." % (self._title(), unit_name(self.name))]
        if self.params["secret_environment"]:
            lines.append("# Secrets are in %s, which only root may read." % self.secret_file)
        for name, (value, reason) in self.environment.items():
            lines.append("export %s=%s  # %s" % (name, shlex.quote(value), " ".join(reason.split())))
        for name, value in sorted(self.params["limits"].items()):
            if name.lower() in ULIMIT and value == "infinity":
                lines.append("ulimit %s unlimited" % ULIMIT[name.lower()])
        lines.append("cd %s || exit 1" % shlex.quote(self.working_directory))
        lines.append("exec " + " \\\n    ".join(" ".join(map(shlex.quote, line)) for line in self._lines()))
        return "\n".join(lines) + "\n"


LIMITS = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
    *("rtprio", "rttime", "sigpending", "stack"),
)
ULIMIT = {"memlock": "-l", "stack": "-s", "core": "-c"}
"""Limits that a shell can remove, too."""


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


PLANNED = re.compile(
    r"nnodes|nproc-per-node|rdzv-.*|standalone|node-rank|master-.*|local-addr|max-restarts|monitor-interval|log-dir"
    r"|redirects|module|shutdown-timeout"
)
"""Options of torchrun that follow from the plan, or from an option of the same name."""


def dashed(name: str) -> str:
    """An option of torchrun as its help prints it, without the dashes before it."""
    return name.lstrip("-").replace("_", "-")


def _wrong_options(options: Mapping[str, Any]) -> List[str]:
    wrong = []
    for name, value in options.items():
        if not re.fullmatch("[a-z][a-z-]+", dashed(name)):
            wrong.append("options: %r: expected a long name of torchrun, such as numa-binding" % name)
        elif PLANNED.fullmatch(dashed(name)):
            wrong.append("options: %s is not free: it follows from the plan, or from another option of this job" % name)
        elif value is False or value is None or not str(value).isprintable():
            wrong.append("options: %s: expected a value on one line, or true for an option without one" % name)
    return wrong


def check(params: Mapping[str, Any]) -> List[str]:
    """What is wrong with what is declared, in sentences; nothing when it can be carried out."""
    wrong = []
    if not NAME.fullmatch(params["name"]):
        wrong.append("name: %r: expected letters, digits, ., _ and -, as it is the instance of a unit" % params["name"])
    programs = [key for key in ("script", "module", "content") if params[key] is not None]
    if len(programs) != 1:
        wrong.append("expected one of script, module and content, found %s" % (" and ".join(programs) or "none"))
    if params["script"] and not params["script"].startswith("/"):
        wrong.append("script: %s: expected an absolute path on the host" % params["script"])
    if params["stop_timeout"] < 0:
        wrong.append("stop_timeout: %d: expected seconds, 0 or more" % params["stop_timeout"])
    wrong += _wrong_options(params["options"])
    unknown = sorted(name for name in params["limits"] if name.lower() not in LIMITS)
    if unknown:
        wrong.append("limits: %s: expected some of %s" % (", ".join(unknown), ", ".join(LIMITS)))
    wrong += [
        "environment.%s: %s" % (name, MAY_BE_SECRET)
        for name, value in sorted(params["environment"].items())
        if may_be_secret(name, value)
    ]
    for option in ("environment", "secret_environment"):
        try:
            render.check_environment({name: str(value) for name, value in params[option].items()})
        except Refused as error:
            wrong.append("%s: %s" % (option, error))
    words = [(name, params[name]) for name in ("user", "working_directory", "venv", "script", "log_dir", "script_path")]
    words += [("limits", value) for value in params["limits"].values()]
    wrong += [
        "%s: %r has a line end, or another control character: leave it out" % (name, str(word))
        for name, word in words
        if word is not None and not str(word).isprintable()
    ]
    both = sorted(set(params["environment"]) & set(params["secret_environment"]))
    if both:
        wrong.append("%s is both in environment and in secret_environment: leave one out" % ", ".join(both))
    return wrong
