# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit of an instance has: its files, environment, command, ports and folders."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..hf_model import checkpoint
from ..hf_model.parallel import Parallel
from ..python_env import compat
from ..serving import template
from ..serving.model import Service
from ..toolbox.errors import Refused
from ..toolbox.source import source_of
from . import settings, sizing
from .adapters import Adapter
from .program import Program

CONFIGS = "/etc/gpufleet/vllm"
HOMES = "/var/lib"
STOP_MARGIN = 30  # seconds: an idle server takes some twelve to end
SYSTEM_PATH = "/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# A front end whose engine died ends with status 0: it is restarted all the same.
UNIT = template.text("vLLM", "LimitNOFILE=1048576", "LimitMEMLOCK=infinity")

SANDBOX = {
    # NCCL binds its threads to the processors next to their GPU, which the profile's filter ends the process for
    "SystemCallFilter": ["", "@system-service", "~@privileged"],
    # else the end of one instance would remove the shared memory of all instances of its user
    "RemoveIPC": ["no"],
}


class Own(NamedTuple):
    """What is kept of the decisions about an instance."""

    configuration: settings.Declared
    program: Program
    parallel: Parallel
    fit: Optional[sizing.Fit]
    utilization: float
    adapters: Sequence[Adapter]
    weights: int
    """Bytes of the model's weights; 0 if that is not known."""


def home(user: str) -> str:
    return "/root" if user == "root" else os.path.join(HOMES, user)


def hub_cache(options: Mapping[str, Any]) -> str:
    return checkpoint.cache_of(options, options["environment"], home(options["user"]))


def writable(options: Mapping[str, Any]) -> List[str]:
    """Its home has the caches of torch, Triton and vLLM; models from the hub may be kept elsewhere."""
    own, cache = home(options["user"]), hub_cache(options)
    return [own] if (cache + "/").startswith(own + "/") else [own, cache]


def readable(options: Mapping[str, Any], program: Program) -> List[Optional[str]]:
    model = options["model"] if options["model"].startswith("/") else None
    return [program.venv, model, options["chat_template"], options["ssl_keyfile"], options["ssl_certfile"]]


def paths(name: str) -> Tuple[str, str, str]:
    """The files of an instance: its configuration, the guard and the supervisor."""
    folder = "%s/%s.d" % (CONFIGS, name)
    return "%s/%s.yaml" % (CONFIGS, name), "%s/%s.py" % (folder, settings.GUARD), "%s/gpufleet_supervisor.py" % folder


def files(name: str, options: Mapping[str, Any], configuration: settings.Declared) -> Dict[str, Optional[str]]:
    config, guard_file, supervisor_file = paths(name)
    found = {config: settings.render(configuration.config), guard_file: None, supervisor_file: None}
    if options["guard_all_paths"]:
        from ..programs import guard

        found[guard_file] = source_of(guard)
    if options["nodes"]:
        from ..programs import supervisor

        found[supervisor_file] = source_of(supervisor)
    return found


def environment(service: Service, options: Mapping[str, Any], own: Own) -> Dict[str, str]:
    found = dict(own.configuration.environment)
    found.setdefault("PATH", "%s/bin:%s" % (own.program.venv, SYSTEM_PATH))
    libraries = compat.folder(own.program.venv)
    if libraries:
        found["LD_LIBRARY_PATH"] = compat.library_path(libraries, found.get("LD_LIBRARY_PATH", ""))
    if options["guard_all_paths"]:
        found["PYTHONPATH"] = os.path.dirname(paths(service.name)[1])
    if "hf_token" in own.configuration.credentials:
        found["HF_TOKEN_PATH"] = "/run/credentials/%s/hf_token" % service.unit
    return found


def service_settings(name: str, options: Mapping[str, Any], own: Own) -> Dict[str, List[str]]:
    words = [*own.program.command(), "--config", paths(name)[0]]  # two words: vLLM does not read --config=FILE
    if options["nodes"]:
        words = _supervised(name, options, own, words)
    if any(not re.match(r"[A-Za-z0-9_./+@:,-]+\Z", word) for word in words):
        raise Refused("venv: %r has characters that the command line of a unit cannot hold" % own.program.venv)
    found = {
        "User": [options["user"]],
        "ExecStart": ["", " ".join(words)],
        "TimeoutStopSec": [str((options["shutdown_timeout"] or 0) + STOP_MARGIN)],
        # the workers of a model on several GPUs end at once upon SIGTERM, and with them the requests that are running
        "KillMode": ["mixed"],
    }
    if options["nodes"]:
        found["NotifyAccess"] = ["main"]
    return found


def _supervised(name: str, options: Mapping[str, Any], own: Own, words: List[str]) -> List[str]:
    """The command of a host that shares the model with others: the supervisor, which starts the rest."""
    program, nodes, rank = own.program, options["nodes"], options["node_rank"]
    addresses, port = own.configuration.addresses, options["master_port"]
    if words[1] != "serve":
        raise Refused("nodes: %s has no command vllm, and its module does not know --headless" % program.venv)
    place = "%s:%d" % (addresses[0], port + 1)
    key = settings.definition(own.configuration, program.version())
    names = ",".join(node["name"] for node in nodes)
    return [program.python, "-I", paths(name)[2], place, str(rank), names, ",".join(addresses), key, *words]


def ports(options: Mapping[str, Any], parallel: Parallel) -> Tuple[int, ...]:
    """Ports besides the API's that are known before: the rendezvous of several hosts, the supervisor's, and one for the
    copies of a model."""
    if not options["nodes"] or options["node_rank"]:
        return ()
    first = options["master_port"]
    return (first, first + 1, first + 2) if parallel.data > 1 else (first, first + 1)
