# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several services of one engine on a host: the options of each. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping

from ..toolbox.errors import Refused
from .model import STAYING, Service

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")
"""No ``-``: systemd reads one in an instance's name as a slash."""


def services(params: Mapping[str, Any], base: str) -> List[Service]:
    """Each service that is declared.

    Without ``instances`` it is one, ``BASE.service``, with the options as they are. With instances each is
    ``BASE@NAME.service``: what it leaves out is taken from the options next to ``instances``, and its variables
    are merged over theirs. With ``main: disabled`` the last one is ``BASE.service``, whose place they take.

    :raises Refused: a name is not valid for an instance, or is listed twice.
    """
    if params.get("instances") is None:
        return [Service(base + ".service", "", params)]
    if "@" in base:
        raise Refused("name is %s; with instances expected the part before the @" % base)
    found: Dict[str, Service] = {}
    for given in params["instances"]:
        name = given["name"]
        if not NAME.fullmatch(name):
            raise Refused(
                "instances: %r is not a valid name; expected letters, digits, _ and ., as in %s@NAME.service"
                % (name, base)
            )
        if name in found:
            raise Refused("instances: %s is there twice; give each its own name" % name)
        own = {option: value for option, value in given.items() if value is not None and option != "name"}
        if params["state"] == "stopped" and own.get("state") in ("present", "asleep"):
            own["state"] = "stopped"  # all of them
        options = dict(params, **own)
        for kind in ("environment", "secret_environment"):
            options[kind] = dict(params[kind], **own.get(kind, {}))
        found[name] = Service("%s@%s.service" % (base, name), name, options)
    staying = [service for service in found.values() if service.options["state"] in STAYING]
    services = [
        service._replace(siblings=[other for other in staying if other is not service]) for service in found.values()
    ]
    if staying and params.get("main") == "disabled":
        services.append(Service(base + ".service", "", dict(params, state="absent"), replaced=True))
    return services
