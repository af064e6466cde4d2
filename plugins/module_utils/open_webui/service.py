# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI as a unit of our own: its environment, its data, its proof."""

from __future__ import annotations

import glob
import os
import shutil
from typing import Any, Callable, Dict, Mapping, Optional

from ..converge import run as convergence
from ..converge.account import DirectoryStep, UserStep
from ..converge.model import Change, Outcome, Running, Verdict
from ..programs import open_webui_data
from ..serving import template
from ..systemd.manager import System
from ..systemd.render import argument
from ..systemd.unit import parse_environment_file
from ..toolbox import users
from ..toolbox.addresses import host_port
from ..toolbox.errors import Failed, Refused
from ..toolbox.source import source_of
from . import settings
from .proof import Gate

PROGRAM = "/etc/gpufleet/open_webui_data.py"
SECRETS = "/etc/gpufleet/%s.env" % settings.UNIT
_LONGEST = 3600
"""Seconds for a backup before a start, for systemd."""
_ASKED = 120
"""Seconds for questions to a database."""


def converge(
    params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None], system: Optional[System] = None
) -> Dict[str, Any]:
    """Bring Open WebUI to its declared state.

    :param params: the module's parameters.
    :returns: the module's result.
    :raises Refused: an option is wrong, or the environment has no Open WebUI; nothing was changed.
    :raises ServiceError: the previous state is restored, and with it the data, if a failed update has touched it.
    """
    system = system or System()
    if params["state"] == "absent":
        return template.leave(settings.UNIT, settings.STUB, [PROGRAM], system, check_mode)
    settings.check(params)
    home, user = params["data_dir"], params["user"]
    data, backups = home + "/data", home + "/backups"
    if check_mode and not os.path.exists(params["venv"]):
        return {"changed": True, "msg": "would install Open WebUI first, in %s" % params["venv"]}
    venv, version = _installed(params["venv"])
    # a database of PostgreSQL may have users of other hosts: it is asked before a change
    if not (params["admin_email"] or params["database_url"] or os.path.exists(data + "/webui.db")):
        raise Refused(
            "admin_email: there is no user yet, and whoever comes first would become the administrator, whatever "
            "signup says; give admin_email and admin_password"
        )
    keep = [venv + "/bin/python", "-I", PROGRAM, version, data, backups]
    change = Change(
        unit=settings.UNIT,
        environment=settings.environment(params, data),
        secret_environment=settings.secrets(params, params["secret_key"] or _known_key(system) or _new_key()),
        settings={
            "Service": {
                **settings.unit(params, venv),
                "ExecStartPre": ["", " ".join(map(argument, keep))],
                "TimeoutStartSec": [str(_LONGEST)],
            }
        },
        files={PROGRAM: source_of(open_webui_data)},
        enabled=params["enabled"],
        started=True,
        timeout=params["timeout"],
        prove=params["prove"] == "now",
        pre_change_check=lambda: _obstacle(params, data, version),
        accepted=lambda outcome: _accept(params, backups, outcome),
    )
    outcome = convergence.converge(
        change,
        gate=Gate(params, version),
        steps=[
            UserStep(user, home, ()),
            DirectoryStep(home, user),
            template.TemplateStep(settings.UNIT, settings.STUB, system.root),
        ],
        hooks=_Stop(params, warn),
        check_mode=check_mode,
        system=system,
    )
    for warning in outcome.warnings:
        warn(warning)
    url = params["url"] or "http://" + host_port(params["host"], params["port"])
    return dict(outcome.as_result(), msg=_line(outcome, params, version, url, check_mode), url=url, version=version)


def check(params: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> Dict[str, Any]:
    """The lean question: the module's result, in check mode."""
    return converge(params, True, warn)


class _Stop:
    """What happens around a stop."""

    def __init__(self, params: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.params, self.warn = params, warn

    def before_stop(self, running: Running) -> None:
        if self.params["drain_timeout"] and self.params["admin_email"]:
            from .drain import await_answers

            await_answers(self.params, running, self.warn)

    def after_stop(self) -> Verdict:
        return Verdict("ok")


def _installed(venv: str) -> "tuple[str, str]":
    """The environment, where its link leads to, and the version of Open WebUI in it.

    :raises Refused: it has none.
    """
    path = os.path.realpath(venv)
    found = glob.glob(glob.escape(path) + "/lib/python3*/site-packages/open_webui-*.dist-info")
    if len(found) != 1 or not os.path.exists(path + "/bin/open-webui"):
        raise Refused(
            "venv: %s has no Open WebUI; expected a Python environment with the package open-webui, as "
            "python_environment makes it" % venv
        )
    return path, os.path.basename(found[0])[len("open_webui-") : -len(".dist-info")]


def _known_key(system: System) -> str:
    """With what the running one signs its sessions."""
    content = system.read(SECRETS)
    return parse_environment_file(content).get("WEBUI_SECRET_KEY", ("", 0))[0] if content else ""


def _new_key() -> str:
    import secrets

    return secrets.token_hex(32)


def _obstacle(params: Mapping[str, Any], data: str, version: str) -> Optional[str]:
    """Why a change cannot be made: the backup before an update has no room, or the database cannot be put back."""
    ids = users.ids_of(params["user"])
    why = _database_obstacle(params, ids) if params["database_url"] else None
    if why or not ids or not os.path.isdir(data):
        return why

    def look() -> Any:
        found = open_webui_data.version_of(data)
        if os.path.isdir("%s/backups/%s%s" % (params["data_dir"], version, open_webui_data.UNPROVEN)):
            return ["", 0]  # it takes its own data back, which needs no room
        return [found, open_webui_data.size(data) if found not in ("", version) else 0]

    before, size = users.as_user(ids, look)
    if before in ("", version):
        return None
    free = shutil.disk_usage(data).free
    if size > free:
        return "updating %s to %s needs %d MiB for a backup of %s, whose file system has %d MiB left: free some" % (
            before,
            version,
            size >> 20,
            data,
            free >> 20,
        )
    return None


def _database_obstacle(params: Mapping[str, Any], ids: Optional[users.Ids]) -> Optional[str]:
    from . import database

    url, users_needed = params["database_url"], not params["admin_email"]
    why = users.as_user(ids or users.STRANGERS, lambda: database.obstacle(url, users_needed), _ASKED)
    if why and not ids and open_webui_data.variables(url).get("PGHOST", "/").startswith("/"):
        why += "; if PostgreSQL knows its users by those of the host, create the user %s first" % params["user"]
    return str(why) if why else None


def _accept(params: Mapping[str, Any], backups: str, outcome: Outcome) -> None:
    ids = users.ids_of(params["user"])
    try:
        if ids:
            users.as_user(ids, lambda: open_webui_data.accept(backups, params["backups"]), _LONGEST)
    except (OSError, Failed) as error:
        outcome.warnings.append("old backups in %s are not tidied up: %s" % (backups, error))


def _line(outcome: Outcome, params: Mapping[str, Any], version: str, url: str, check_mode: bool) -> str:
    """The result in one line for a person."""
    found = outcome.verdict.evidence
    parts = ["would change" if check_mode and outcome.changed else outcome.verdict.name, "Open WebUI " + version, url]
    if "models" in found:
        parts.append("%d model%s" % (len(found["models"]), "s"[: len(found["models"]) != 1]))
    if "first_token_seconds" in found:
        parts.append("first token of %s after %.1f s" % (found["model"], found["first_token_seconds"]))
    if "document" in found:
        parts.append("a document found")
    if outcome.changed and not check_mode and not params["admin_email"]:
        parts.append("no admin_email, so no answer was asked for")
    if outcome.restarted:
        parts.append("restart %.1f s" % (outcome.downtime_ms / 1000.0))
    return " · ".join(parts)
