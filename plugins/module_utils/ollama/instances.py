# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several Ollama services on one host: the options of each, out of the common ones and its own. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")
"""No ``-``: systemd reads one in an instance's name as a slash."""


class InstanceError(Exception):
    """The list of instances cannot be meant as it is written."""


def services(params: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The options of each service that is declared, its full name as ``unit``.

    Without instances it is one, the options as they are. With instances each is ``NAME@INSTANCE.service``: what it
    leaves out is as the options beside ``instances`` say, and its ``environment`` is laid over theirs.
    """
    base = params["name"][: -len(".service")] if params["name"].endswith(".service") else params["name"]
    if not params["instances"]:
        return [dict(params, unit=base + ".service")]
    if "@" in base:
        raise InstanceError("name is %s; with instances expected the part before the @, such as ollama" % base)
    found: Dict[str, Dict[str, Any]] = {}
    for given in params["instances"]:
        name = given["name"]
        if not NAME.fullmatch(name):
            raise InstanceError(
                "instances: %r is no name of an instance; expected letters, digits, _ and ., as systemd takes them for "
                "themselves" % name
            )
        if name in found:
            raise InstanceError("instances: %s is there twice; give each its own name" % name)
        own = {option: value for option, value in given.items() if value is not None and option != "name"}
        environment = dict(params["environment"], **own.get("environment", {}))
        found[name] = dict(params, **own)
        found[name].update(environment=environment, unit="%s@%s.service" % (base, name))
    staying = [service for service in found.values() if service["state"] == "present"]
    for service in staying:
        if service["noprune"] is None and [other["models_dir"] for other in staying].count(service["models_dir"]) > 1:
            service["noprune"] = True  # at its start a server removes what another one is just pulling
    return list(found.values())
