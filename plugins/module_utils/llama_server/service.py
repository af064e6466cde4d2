# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""llama.cpp's server as an engine of the serving floor."""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..converge.model import Outcome
from ..endpoint.client import Endpoint
from ..placement.choice import Placed
from ..placement.memory import check_weights
from ..serving import checks, openai, run, stop, summary, template
from ..serving.foreign import Foreign, foreign
from ..serving.gate import Proof
from ..serving.model import Cause, Declared, Host, Leaving, Listen, Plan, Service
from ..serving.weights import located, start_limit
from ..systemd.render import argument
from ..toolbox.errors import Refused
from . import log, program, settings

BASE = "llama-server"
PROGRAM = "/opt/llama.cpp/bin/llama-server"
START_BASE = 120  # seconds of a start without the loading of the model
# After SIGTERM a server with a running request waits for its client to leave, however long. Requests that may end have
# ended before (drain_timeout); this is for all others, such as those at a reboot.
STOP_LIMIT = 15
UNIT = template.text("llama.cpp server", "LimitMEMLOCK=infinity")


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Any = None, thorough: bool = True
) -> Dict[str, Any]:
    """Bring all instances to their declared states; see serving.run."""
    return run.converge(
        LlamaServer(), re.sub(r"\.service\Z", "", params["name"]), params, check_mode, warn, system, thorough
    )


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The lean question: the result where the host is in its declared state.

    :raises run.Differs: it is not.
    """
    return converge(params, True, warn, thorough=False)


class LlamaServer:
    title = "llama-server"
    counts_visible = False
    loads_at_start = True
    open_to = "use the model"

    def declare(self, service: Service, placed: Placed, host: Host) -> Declared:
        options, found = service.options, foreign(host.system, service.unit)
        # the user of a template is not that of an instance; a unit that starts something has been set up by somebody
        user = options["user"] or (found.user if found.command else "") or BASE
        command = [] if options["program"] else found.command
        name = options["program"] or (command or [PROGRAM])[0]
        path, served = _model(options, service)
        defaults = {"host": settings.HOST, "port": settings.PORT, "alias": served}
        visible: Dict[str, str] = {}
        if placed.devices:
            defaults["n_gpu_layers"] = settings.ALL_LAYERS
            visible = {"CUDA_VISIBLE_DEVICES": placed.visible or "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        settled = settings.settle(
            dict(options, model=path, device="none" if placed.cpu else None),
            defaults,
            found.environment,
            command,
            visible,
        )
        instance = _Instance(settled, name, user)
        endpoint = instance.endpoint()
        limit = options["timeout"] or start_limit(START_BASE, program.size_of(settled.values["model"]))
        home = os.path.join("/var/lib", user)
        return Declared(
            listen=Listen(
                settled.values["host"],
                int(settled.values["port"]),
                authenticated="api_key" in settled.values,
                declared=options["host"] is not None,
            ),
            user=user,
            environment=settled.environment,
            secret_environment=settled.secret_environment,
            settings=_settings(instance, found),
            steps=[] if found.command else template.steps(user, home, BASE + "@.service", UNIT, host.system.root),
            checks=[
                checks.ComesUp(openai.lists_model(endpoint, instance.served), limit, options["stall_timeout"]),
                checks.after_change(checks.owns_port(endpoint.port)),
                checks.after_change(openai.answers(endpoint, instance.served, options["token_timeout"], settled.task)),
                checks.UsesGpus(),
            ],
            hooks=stop.hook(options, host, _endpoint_of),
            writable=[home],
            readable=[os.path.dirname(file) for file in (name, *settled.files.values())],
            timeout=limit,
            asks=lambda _proof: (endpoint, instance.served),
            ready=endpoint.url + "/health",
            own=instance,
        )

    def preflight(self, plan: Plan, host: Host) -> None:
        settled, name, user = plan.declared.own
        if not os.access(name, os.X_OK):
            raise Refused("program: there is no program %s; expected llama-server, built from llama.cpp" % name)
        for option, path in settled.files.items():
            program.check_readable(option, path, user, b"GGUF" if option == "model" else b"")
        program.check(program.ask(name, user), settled.environment, settled.arguments)
        if settled.values.get("n_gpu_layers") in ("all", settings.ALL_LAYERS):
            advice = "choose more GPUs, a smaller quantisation, or fewer n_gpu_layers"
            size = program.size_of(settled.values["model"])
            check_weights(plan.placed.devices, [plan.unit, *plan.vacated], size, advice)

    def leave(self, service: Service, host: Host) -> Leaving:
        return Leaving(hooks=stop.hook(service.options, host, _endpoint_of))

    def explain(self, lines: Sequence[str]) -> Cause:
        return log.explain(lines)

    def describe(self, plan: Plan, proof: Proof, outcome: Outcome) -> Tuple[List[str], Dict[str, Any]]:
        instance = plan.declared.own
        more = {"url": instance.settled.url, "model": instance.served}
        return summary.served(instance.served, instance.settled.url, proof), more


class _Instance(NamedTuple):
    settled: settings.Settled
    program: str
    user: str

    @property
    def served(self) -> str:
        """The name that clients use."""
        return self.settled.values["alias"].split(",")[0]

    def endpoint(self) -> Endpoint:
        return Endpoint(self.settled.url, self.settled.values.get("api_key"), verify=False)


def _model(options: Mapping[str, Any], service: Service) -> Tuple[Optional[str], str]:
    """The model's file, and the name under which it is served where none is declared."""
    path, name = located(options)
    return path and program.model_file(path), name or service.name or BASE


def _settings(instance: _Instance, found: Foreign) -> Dict[str, List[str]]:
    """Keys of ``[Service]``, without those that a unit written by somebody else already has."""
    kept: Dict[str, List[str]] = {"TimeoutStopSec": [str(STOP_LIMIT)]}
    words = [instance.program, *instance.settled.arguments]
    if words != found.command:
        kept["ExecStart"] = ["", " ".join(map(argument, words))]
    if not found.command or instance.user != found.user:
        kept["User"] = [instance.user]
    return kept


def _endpoint_of(environ: Mapping[str, str]) -> Optional[Endpoint]:
    """Where a running process of ours listens."""
    values = settings.read_environment(environ)
    return Endpoint(settings.url(values), values.get("api_key"), verify=False) if "port" in values else None
