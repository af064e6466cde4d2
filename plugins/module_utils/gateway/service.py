# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway of a fleet: HAProxy as a unit of our own, which a change of its configuration reloads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sized

from ..converge import run as convergence
from ..converge.model import Change, Fault, Outcome, Running, Verdict
from ..placement import sandbox
from ..serving import template
from ..systemd.manager import System
from ..toolbox.addresses import host_port, is_loopback, reachable
from ..toolbox.errors import Needed, Refused
from ..toolbox.http_stream import HttpError, Stream
from . import haproxy, keys, runtime
from .maps import MapsStep

UNIT = "gpufleet-gateway.service"
PROGRAM = "/usr/sbin/haproxy"
PYTHON = "/usr/bin/python3"
"""Not the one that runs this: the check and the module may be run by two."""
STUB = """\
# Written by the Ansible collection gpufleet.inference. What it runs is in its drop-in.
[Unit]
Description=Gateway of a fleet of inference servers
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/false
KillMode=mixed
KillSignal=SIGUSR1
TimeoutStopSec=30
SuccessExitStatus=143
RuntimeDirectory=gpufleet-gateway
RuntimeDirectoryMode=0700

[Install]
WantedBy=multi-user.target
"""
"""How the unit stops is set here, not in the drop-in: a removal deletes that first, and requests must still end."""
UNRESOLVED = "MAINT (resolution)"
"""Status of a server whose name did not resolve when HAProxy last read its configuration."""
EXPIRY = 14 * 86400
"""Seconds before the end of a certificate from which on a run warns of it, as the alert CertificateExpires does."""
FILES = 4096
"""Open files next to those of connections, each of which may have one to a client and one to a server."""


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Optional[System] = None
) -> Dict[str, Any]:
    """Bring the gateway of this host to its declared state.

    :param params: the module's parameters.
    :returns: the module's result.
    :raises Refused: an option or a pool is wrong; nothing was changed.
    :raises Needed: HAProxy is not installed; nothing was changed.
    :raises ServiceError: the previous state is restored.
    """
    system, place = system or System(), haproxy.Place()
    if params["state"] == "absent":
        return template.leave(UNIT, STUB, place.files, system, check_mode, [os.path.dirname(place.state)])
    pools: keys.Pools = params["pools"]
    keys.check(pools, params["affinity"])
    _check(params)
    params = dict(params, tls_digest=_digest(params["tls_certificate"]))
    files = haproxy.files(params, pools, place)
    maps = haproxy.maps(params, pools)
    live = all(system.read(path) == text.encode() for path, text in files.items())
    change = Change(
        unit=UNIT,
        settings={"Service": _settings(place, params["connections"])},
        files=dict(files),
        reloads=True,
        enabled=params["enabled"],
        started=True,
        timeout=params["timeout"],
        pre_change_check=lambda: _invalid(params, maps, check_mode),
    )
    outcome = convergence.converge(
        change,
        gate=Gate(params, pools, haproxy.digest_of(files["%s/%s" % (place.folder, haproxy.CONFIG)]), place),
        steps=[template.TemplateStep(UNIT, STUB, system.root), MapsStep(maps, live, place)],
        check_mode=check_mode,
        system=system,
    )
    for name in outcome.verdict.evidence.get("unresolved", ()):
        outcome.warnings.append(
            "%s does not resolve on this host: its servers get no requests. Set gateway_address of that host to its IP "
            "address, or make the name resolve and run again" % name
        )
    certificates = _certificates(params["tls_certificate"], place)
    for warning in [*outcome.warnings, *_expiry(certificates)]:
        warn(warning)
    scheme = "https" if params["tls_certificate"] else "http"
    return dict(
        outcome.as_result(),
        msg=_line(outcome, pools, params, check_mode),
        url="%s://%s" % (scheme, host_port(reachable(params["host"]), params["port"])),
        pools={model: [haproxy.server(row) for row in rows] for model, rows in pools.items()},
        certificates=certificates,
    )


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The lean question: the module's result, in check mode."""
    return converge(params, True, warn)


class Gate:
    """The proof: the port answers, HAProxy runs this configuration, and has the declared servers."""

    def __init__(self, params: Mapping[str, Any], pools: keys.Pools, digest: str, place: haproxy.Place) -> None:
        self.params, self.digest, self.socket = params, digest, place.run + "/admin.sock"
        self.master = place.run + "/master.sock"
        self.failed = runtime.failed_reloads(self.master)
        self.wanted = {
            "%s/%s" % (runtime.slug(model), haproxy.server(row)): str(row["address"])
            for model, rows in pools.items()
            for row in rows
        }
        """Name of a server to its address."""
        if params["web_port"]:
            web = {"%s/%s" % (haproxy.WEB, haproxy.web_server(row)): str(row["address"]) for row in params["web"]}
            self.wanted.update(web)

    def __call__(self, running: Running, changed: bool) -> Verdict:
        return running.await_ok(lambda: self._look(changed), changed)

    def _look(self, changed: bool) -> Verdict:
        try:
            info, rows = runtime.info(self.socket), runtime.servers(self.socket)
        except runtime.RuntimeFault as error:
            raise Fault("not_ready", str(error)) from None
        if info.get("description") != self.digest:
            if runtime.failed_reloads(self.master) > self.failed:
                raise Fault("not_reloaded", "HAProxy cannot use the new configuration and keeps the previous one")
            raise Fault("old_configuration", "HAProxy runs a configuration other than the one on disk", remedy="reload")
        found = {"%s/%s" % (row["pxname"], row["svname"]): row["status"] for row in rows}
        if set(found) != set(self.wanted):
            missing = ", ".join(sorted(set(self.wanted) - set(found))) or "none"
            raise Fault("wrong_servers", "the servers in HAProxy differ from the declared ones; missing: %s" % missing)
        unresolved = sorted({self.wanted[name] for name, status in found.items() if status == UNRESOLVED})
        late = [] if changed else [name for name in unresolved if resolves(name)]
        if late:
            raise Fault("unresolved", "HAProxy could not resolve %s, which resolves now" % late[0], remedy="reload")
        self._ask()
        up = sum(status.startswith("UP") for status in found.values())
        return Verdict("ok", evidence={"servers": found, "up": up, "unresolved": unresolved})

    def _ask(self) -> None:
        import ssl

        params, tls = self.params, None
        if params["tls_certificate"]:
            tls = ssl.create_default_context()  # only whether it answers: clients check its name
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        try:
            with Stream(reachable(params["host"]), params["port"], "GET", "/health", 5, tls=tls) as answer:
                if answer.status != 200:
                    raise Fault("not_ready", "GET /health answers %d, expected 200" % answer.status)
        except HttpError as error:
            raise Fault("not_ready", "GET /health: %s" % error) from None


def resolves(name: str) -> bool:
    """Whether this host knows an address of that name."""
    import socket

    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return False


# --- what is refused


def _check(params: Mapping[str, Any]) -> None:
    """Check the options.

    :raises Refused: keys would cross the network without TLS, or HAProxy would not understand a value.
    """
    if not keys.PLACE.match(params["host"]):
        raise Refused("host: %r is not an address" % params["host"])
    certificate = params["tls_certificate"]
    if certificate and not os.path.isfile(certificate):
        raise Refused(
            "tls_certificate: there is no file %s; expected the certificate, its chain and its key" % certificate
        )
    if certificate and any(sign in certificate for sign in " \t\n\"'\\$#"):
        raise Refused("tls_certificate: %r has a character that is special in HAProxy's configuration" % certificate)
    if not (certificate or is_loopback(params["host"]) or params["allow_plaintext"]):
        raise Refused(
            "host: %s is reachable from other hosts, so keys would cross the network unencrypted. Set "
            "tls_certificate, listen on 127.0.0.1 behind a proxy, or set allow_plaintext: true" % params["host"]
        )
    for client in params["status_clients"]:
        if not _is_network(client):
            raise Refused("status_clients: %r is not an IPv4 address or network such as 192.0.2.0/28" % client)
    if params["web_port"] and not params["web"]:
        raise Refused(
            "web_port: this gateway cannot reach any Open WebUI; add this host to the group open_webui, or set "
            "open_webui_host on a host of that group to an address that this one can reach"
        )
    for row in params["web"]:
        wrong = keys.wrong_server(dict(row, engine="ollama", unit="open-webui", api="openai"))
        if wrong:
            raise Refused("web: a server %s" % wrong)
    if params["redirect_port"] and not certificate:
        raise Refused("redirect_port: there is no https to redirect to; set tls_certificate, or leave it out")


def _is_network(text: str) -> bool:
    import ipaddress

    try:
        return bool(ipaddress.IPv4Network(text))
    except ValueError:
        return False


def _digest(certificate: Optional[str]) -> str:
    """A renewed certificate is another configuration."""
    if not certificate:
        return ""
    with open(certificate, "rb") as stream:
        return hashlib.sha256(stream.read(1 << 20)).hexdigest()[:16]


def _certificates(file: Optional[str], place: haproxy.Place) -> Dict[str, int]:
    """The certificate in use, and when it ends; none for a gateway that does not run yet."""
    try:
        ends = runtime.certificate_ends(file, place.run + "/admin.sock") if file else None
    except runtime.RuntimeFault:
        return {}
    return {} if file is None or ends is None else {file: ends}


def _expiry(certificates: Mapping[str, int]) -> Iterator[str]:
    for file, ends in certificates.items():
        left = ends - time.time()
        if left < EXPIRY:
            then = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ends))
            when = ("ended on %s, %.1f days ago" if left < 0 else "ends on %s, in %.1f days") % (
                then,
                abs(left) / 86400,
            )
            yield "the certificate that HAProxy has read from %s %s: renew it, and run again" % (file, when)


def _invalid(params: Mapping[str, Any], maps: Mapping[str, Mapping[str, str]], check_mode: bool) -> Optional[str]:
    """Why HAProxy itself refuses the configuration, tried in a folder that is gone afterwards."""
    import tempfile

    if not os.path.exists(PROGRAM):
        if not check_mode:
            raise Needed([PROGRAM])
        return None  # as a run would install it first
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as scratch:
        place = haproxy.Place(folder=scratch)
        texts = haproxy.files(params, params["pools"], place)
        texts.update((place.map(name), haproxy.map_text(entries)) for name, entries in maps.items())
        for path, text in texts.items():
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
        words = [PROGRAM, "-c", "-f", "%s/%s" % (scratch, haproxy.CONFIG)]  # with -q it would not say why
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done.returncode:
        said = [line for line in done.stdout.split("\n") if "[ALERT]" in line]
        return "HAProxy refuses the configuration: %s" % " | ".join(said or done.stdout.split("\n"))[:2000]
    return None


# --- the unit


def _settings(place: haproxy.Place, connections: int) -> Dict[str, List[str]]:
    """Keys of ``[Service]``. The master stays root to read root's files again; workers are HAProxy's own user."""
    config = "%s/%s" % (place.folder, haproxy.CONFIG)
    test = "%s -Ws -c -q -f %s" % (PROGRAM, config)
    keep = "-%s -I %s/%s" % (PYTHON, place.folder, haproxy.KEEPER)
    save = "%s save %s/admin.sock %s" % (keep, place.run, place.state)
    return {
        **sandbox.PROFILE,
        "Type": ["notify"],
        "ExecStartPre": ["", test, "%s start %s" % (keep, place.state)],
        "ExecStart": ["", "%s -Ws -f %s -S %s/master.sock,mode,600" % (PROGRAM, config, place.run)],
        "ExecReload": ["", test, save, "/bin/kill -USR2 $MAINPID"],
        "ExecStop": ["", save],
        "Restart": ["always"],
        "RestartSec": ["1"],
        "SyslogIdentifier": ["gpufleet-gateway"],
        "LimitNOFILE": [str(2 * connections + FILES)],
        "StateDirectory": ["gpufleet-gateway"],
        "StateDirectoryMode": ["0700"],
        "CapabilityBoundingSet": ["CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_KILL"],
        "PrivateDevices": ["yes"],
        "RestrictAddressFamilies": ["AF_UNIX AF_INET AF_INET6"],
        "SystemCallFilter": ["@system-service"],
    }


def _line(outcome: Outcome, pools: keys.Pools, params: Mapping[str, Any], check_mode: bool) -> str:
    """The result in one line for a person."""
    servers = {(row["host"], row["unit"]) for rows in pools.values() for row in rows}
    scheme = "https" if params["tls_certificate"] else "http"
    parts = [
        "would change" if check_mode and outcome.changed else outcome.verdict.name,
        "%s on %s" % (_count(pools, "model"), _count(servers, "server")),
        _count(params["keys"], "key"),
        "%s://%s" % (scheme, host_port(params["host"], params["port"])),
    ]
    found = outcome.verdict.evidence
    if "up" in found:
        parts.insert(2, "%d of %d up" % (found["up"], len(found["servers"])))
    if outcome.restarted:
        parts.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    elif any(command.startswith("systemctl reload") for command in outcome.planned):
        parts.append("reloaded")
    return " · ".join(parts)


def _count(things: Sized, name: str) -> str:
    return "%d %s%s" % (len(things), name, "" if len(things) == 1 else "s")
