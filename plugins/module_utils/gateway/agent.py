# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent that reports the services of this host to gateways: its unit, its sandbox, its configuration."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ..converge import run as convergence
from ..converge.model import Change, Running, Verdict
from ..placement import sandbox
from ..serving import agent, template
from ..systemd.manager import System
from ..systemd.render import argument
from ..toolbox.addresses import plain
from ..toolbox.errors import Refused
from ..toolbox.source import source_of

UNIT = "gpufleet-agent.service"
PROGRAM = "/etc/gpufleet/gateway_agent.py"
_TEXT = (
    "# Written by the Ansible collection gpufleet.inference where there was none; its settings are in its override.\n"
    "[Unit]\nDescription=Tells gateways about the GPU services of this host\nWants=network-online.target\n"
    "After=network-online.target\n\n[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=1\n\n"
    "[Install]\nWantedBy=multi-user.target\n"
)
_SANDBOX = {
    **sandbox.PROFILE,
    "DynamicUser": ["yes"],
    "LimitNOFILE": ["4096"],
    "MemoryDenyWriteExecute": ["yes"],
    "MemoryMax": ["256M"],
    "PrivateDevices": ["yes"],
    "ProcSubset": ["pid"],
    "RestrictAddressFamilies": ["AF_INET AF_INET6"],
    "TasksMax": ["16"],
}
_PATIENT = {"StartLimitIntervalSec": ["0"]}
"""Otherwise systemd would give up after five starts while somebody else uses the port."""
_LOOPBACK = ("127.0.0.1", "::1")
_STARTS = 15


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Optional[Any] = None
) -> Dict[str, Any]:
    """Converge the agent to its declared state.

    :param params: the parameters of the module ``gateway_agent``.
    :returns: the module's result.
    :raises Refused: the declaration is wrong; nothing was changed.
    :raises ServiceError: the previous state is restored.
    """
    system = system or System()
    if params["state"] == "absent":
        return template.leave(UNIT, _TEXT, [PROGRAM, agent.CONFIG], system, check_mode)
    # imports asyncio, which a host without gateways need not pay for
    from ..programs import gateway_agent

    config = configuration(params, _held(params, system) if params["on_unhealthy"] == "drain" else ())
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    outcome = convergence.converge(
        Change(
            unit=UNIT,
            files={PROGRAM: source_of(gateway_agent), agent.CONFIG: text},
            settings={"Unit": _PATIENT, "Service": _settings(config)},
            enabled=True,
            started=True,
            timeout=_STARTS,
        ),
        gate=_gate(config),
        steps=[template.TemplateStep(UNIT, _TEXT, system.root)],
        check_mode=check_mode,
        system=system,
    )
    for warning in outcome.warnings:
        warn(warning)
    services, gateways = len(config["services"]), len(config["gateways"])
    said = "%d service%s, %d gateway%s" % (services, "s"[: services != 1], gateways, "s"[: gateways != 1])
    held = sorted(unit for unit, service in config["services"].items() if service["held"])
    left = "; left out, as a GPU of theirs must not be used: %s" % ", ".join(held) if held else ""
    return dict(outcome.as_result(), msg="%s: %s, port %d%s" % (UNIT, said, config["port"], left), held=held)


def _held(params: Mapping[str, Any], system: System) -> List[str]:
    """The services that are to be left out because of their GPUs."""
    # only here: other hosts need to know neither their GPUs nor their claims
    from ..gpu import facts
    from ..placement import claims
    from . import unfit

    services = {_full(service["unit"]): service["visible_devices"] for service in params["services"]}
    return unfit.held(services, claims.held(system), facts.first_look(params["facts_timeout"])["devices"])


def _full(unit: str) -> str:
    return unit if unit.endswith(".service") else unit + ".service"


def configuration(params: Mapping[str, Any], held: Sequence[str] = ()) -> Dict[str, Any]:
    """What the agent reads.

    :param held: the services that gateways should send no requests to.
    :raises Refused: an address is invalid, a name cannot be resolved, or the local gateway is none of the gateways.
    """
    services: Dict[str, Any] = {}
    for service in params["services"]:
        unit = _full(service["unit"])
        if unit in services:
            raise Refused("services: %s is named twice" % unit)
        services[unit] = {
            "engine": service["engine"],
            "address": addresses("services", service["address"])[0],
            "port": service["port"],
            "limit": service["max_concurrent"],
            "tls": service["tls"],
            "held": unit in held,
        }
    gateways = {name: addresses("gateways", name) for name in params["gateways"]}
    local = params["local_gateway"]
    if local and local not in gateways:
        raise Refused("local_gateway: %s is not one of the gateways (%s)" % (local, ", ".join(gateways) or "none"))
    if local:
        gateways[local] = sorted({*gateways[local], *_LOOPBACK})
    return {"port": params["port"], "services": services, "gateways": gateways}


def addresses(option: str, name: str) -> List[str]:
    """The addresses of a host by name or address, each in one spelling.

    :raises Refused: it has none.
    """
    try:
        return [plain(name)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(
            "%s: this host cannot resolve %s (%s); set gateway_address of that host to its IP address"
            % (option, name, error)
        ) from None
    return sorted({plain(str(entry[4][0])) for entry in found})


def _settings(config: Mapping[str, Any]) -> Dict[str, List[str]]:
    """Keys of ``[Service]``. If the kernel supports it, only packets of the gateways and this host pass."""
    peers = {address for listed in config["gateways"].values() for address in listed}
    own = {service["address"] for service in config["services"].values()}
    python = os.path.realpath(sys.executable)  # a check and a module may have it by different names
    return dict(
        _SANDBOX,
        ExecStart=["", " ".join(map(argument, [python, "-I", PROGRAM, agent.CONFIG]))],
        IPAddressDeny=["any"],
        IPAddressAllow=["localhost " + " ".join(sorted(peers | own))],
    )


def _gate(config: Mapping[str, Any]) -> Callable[[Running, bool], Verdict]:
    """It answers at its port, about the declared services. While it is down, any user may listen there."""

    def gate(running: Running, changed: bool) -> Verdict:
        import time

        while True:
            listener = running.system.listener(config["port"])
            ours = bool(listener and listener[0] in running.pids)
            if listener and listener[0] and not ours:
                return Verdict("port_taken", "port %d is used by process %d (%s)" % ((config["port"],) + listener))
            found = agent.ask(config["port"]) if ours else {}
            if found and sorted(found["services"]) == sorted(config["services"]):
                return Verdict("ok")
            if not changed or not running.alive() or time.monotonic() >= running.deadline:
                names = ", ".join(sorted(found.get("services", ()))) or "no service"
                said = "answers for " + names if found else "does not answer"
                return Verdict("not_ready", "it %s at port %d" % (said, config["port"]), remedy="restart")
            # it sends no word when it listens
            time.sleep(0.05)

    return gate


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The result in check mode."""
    return converge(params, True, warn)
