# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Prometheus of a fleet: the distribution's unit with our configuration, which a change of it reloads."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any, Callable, Dict, Mapping, Optional, Set

from ..converge import run as convergence
from ..converge.model import Change, Fault, Outcome, Running, Verdict
from ..systemd.manager import System
from ..toolbox.addresses import host_port, is_loopback, reachable
from ..toolbox.errors import Needed, Refused
from ..toolbox.http_stream import HttpError, Stream, decode
from . import prometheus

UNIT = "prometheus.service"
PROGRAM = "/usr/bin/prometheus"
CHECKER = "/usr/bin/promtool"


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Optional[System] = None
) -> Dict[str, Any]:
    """Bring the Prometheus of this host to its declared state.

    :param params: the module's parameters.
    :returns: the module's result.
    :raises Refused: an option is wrong, or promtool refuses the configuration; nothing was changed.
    :raises Needed: Prometheus is not installed; nothing was changed.
    :raises ServiceError: the previous state is restored.
    """
    system, place = system or System(), prometheus.Place()
    stale: Dict[str, Optional[str]] = {"%s/%s" % (place.folder, name): None for name in system.names(place.folder)}
    if params["state"] == "absent":
        outcome = convergence.converge(
            Change(unit=UNIT, state="absent", files=stale, timeout=params["timeout"]),
            check_mode=check_mode,
            system=system,
        )
        return dict(outcome.as_result(), msg="%s: %s" % (UNIT, "left to itself" if outcome.changed else "not ours"))
    _check(params)
    if not os.path.exists(system.root + PROGRAM):
        if not check_mode:
            raise Needed([PROGRAM])
        return dict(Outcome(changed=True).as_result(), msg="would change: Prometheus is not installed")
    config = "%s/%s" % (place.folder, prometheus.CONFIG)
    address = host_port(params["host"], params["port"])
    words = [PROGRAM, "--config.file=" + config, "--web.listen-address=" + address, "$ARGS"]
    change = Change(
        unit=UNIT,
        settings={"Service": {"ExecStart": ["", " ".join(words)]}},
        credentials={name: str(key) for name, key in params["keys"].items()},
        files={**stale, **prometheus.files(params, place)},
        reloads=True,
        enabled=True,
        started=True,
        timeout=params["timeout"],
        pre_change_check=lambda: _invalid(params),
    )
    outcome = convergence.converge(change, gate=Gate(params), check_mode=check_mode, system=system)
    for warning in outcome.warnings:
        warn(warning)
    return dict(
        outcome.as_result(),
        msg=_line(outcome, params, check_mode),
        url="http://%s" % host_port(reachable(params["host"]), params["port"]),
    )


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The lean question: the module's result, in check mode."""
    return converge(params, True, warn)


class Gate:
    """The proof: Prometheus is ready, runs these files, and knows the declared targets."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.address, self.port = reachable(params["host"]), params["port"]
        self.digest = prometheus.digest(params)
        self.targets = {(row["job"], prometheus.instance(row)) for row in params["targets"]}

    def __call__(self, running: Running, changed: bool) -> Verdict:
        return running.await_ok(self._look, changed)  # after a start it reads its WAL

    def _look(self) -> Verdict:
        self._get("/-/ready")
        rules = decode(self._get("/api/v1/rules"))["data"]["groups"]
        digests = {
            rule["labels"]["digest"] for group in rules for rule in group["rules"] if rule["name"] == prometheus.INFO
        }
        if digests != {self.digest}:
            taken = decode(self._get("/api/v1/status/runtimeinfo"))["data"]["reloadConfigSuccess"]
            if not taken:
                raise Fault("not_reloaded", "Prometheus cannot use the new configuration and keeps the previous one")
            raise Fault("old_configuration", "Prometheus runs files other than those on disk", remedy="reload")
        found = decode(self._get("/api/v1/targets?state=active"))["data"]["activeTargets"]
        have: Set[Any] = {(row["labels"]["job"], row["labels"]["instance"]) for row in found}
        if have != self.targets:
            missing = ", ".join("%s %s" % row for row in sorted(self.targets - have)) or "none"
            raise Fault("wrong_targets", "its targets differ from the declared ones; missing: %s" % missing)
        up = sum(row["health"] == "up" for row in found)
        return Verdict("ok", evidence={"targets": len(have), "up": up})

    def _get(self, path: str) -> bytes:
        try:
            with Stream(self.address, self.port, "GET", path, 5) as answer:
                if answer.status != 200:
                    raise Fault("not_ready", "GET %s answers %d, expected 200" % (path, answer.status))
                return answer.rest(time.monotonic() + 5)
        except HttpError as error:
            raise Fault("not_ready", "GET %s: %s" % (path, error)) from None


def _check(params: Mapping[str, Any]) -> None:
    """:raises Refused: an option is wrong."""
    prometheus.check(params)
    if not (is_loopback(params["host"]) or params["allow_unauthenticated"]):
        raise Refused(
            "host: %s is reachable from other hosts, and Prometheus asks for no password: anyone there could read all "
            "metrics. Listen on 127.0.0.1 behind an authenticating proxy, or set allow_unauthenticated: true"
            % params["host"]
        )


def _invalid(params: Mapping[str, Any]) -> Optional[str]:
    """Why promtool refuses the configuration, tried in a folder that is gone afterwards."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gpufleet-") as scratch:
        place = prometheus.Place(scratch, scratch)
        texts = prometheus.files(params, place)
        texts.update(("%s/%s" % (scratch, name), "") for name in params["keys"])  # promtool only wants them there
        for path, text in texts.items():
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
        words = [CHECKER, "check", "config", "%s/%s" % (scratch, prometheus.CONFIG)]
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.replace(scratch + "/", "").splitlines()]
        said = [line for line in lines if line and not line.startswith(("Checking", "SUCCESS"))]
        return "promtool refuses the configuration: %s" % " | ".join(said)[:2000]
    return None


def _line(outcome: Outcome, params: Mapping[str, Any], check_mode: bool) -> str:
    """The result in one line for a person."""
    seen = outcome.verdict.evidence
    count = len(params["targets"])
    parts = [
        "would change" if check_mode and outcome.changed else outcome.verdict.name,
        "%d target%s%s" % (count, "" if count == 1 else "s", ", %d up" % seen["up"] if "up" in seen else ""),
        "http://%s" % host_port(params["host"], params["port"]),
    ]
    if outcome.restarted:
        parts.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    elif any(command.startswith("systemctl reload") for command in outcome.planned):
        parts.append("reloaded")
    return " · ".join(parts)
