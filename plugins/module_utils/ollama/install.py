# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be on a host before Ollama's unit can run: its user, its release and its unit, as steps.

The server looks for its libraries at ``../lib/ollama`` from its real path (/proc/self/exe), so each release uses its
own. Upstream's install.sh removes ``lib/ollama`` and unpacks over ``PREFIX``: with links there it removes and replaces
the links alone, and this collection takes over again at its next run.
"""

from __future__ import annotations

import os
from typing import Any, List, Mapping, Optional, Sequence

from ..converge import account
from ..converge.model import Step
from ..serving.model import Installs, Service
from ..serving.release import BackStep, ProgramStep, ReleaseStep, with_checksums
from ..serving.sources import Release
from ..serving.switch import Layout
from ..serving.template import TemplateStep
from ..toolbox.errors import Refused
from . import releases, settings
from .storage import USER

HOME = "/usr/share/ollama"
_UNIT = """\
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart={prefix}/bin/ollama serve
User={user}
Group={user}
Restart=always
RestartSec=3
Environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

[Install]
WantedBy=default.target
"""


class UserStep(account.UserStep):
    """The system user that upstream's install.sh makes."""

    def __init__(self, user: str = USER, home: str = HOME) -> None:
        super().__init__(user, home)


class UnitStep(TemplateStep):
    """The unit as upstream's install.sh writes it, or the template of an instance."""

    def __init__(self, unit: str, prefix: str = "/usr/local", user: str = USER, root: str = "") -> None:
        name, at, _instance = unit.partition("@")
        file = "%s@.service" % name if at else unit
        super().__init__(file, _UNIT.format(prefix=prefix, user=user), root, also=unit)


def layout(prefix: str) -> Layout:
    """Where releases of Ollama lie."""
    return Layout("ollama", prefix, (("bin/ollama", "bin/ollama"), ("lib/ollama", "lib/ollama")))


# --- what a service needs


def steps(service: Service, user: str, system: Any) -> List[Step]:
    """What must be there before the unit can run: the release with its user and unit; for an instance its template.

    :param user: of the service.
    :raises Refused: there is no such release, or no program that an instance could start.
    """
    options, unit = service.options, service.unit
    prefix, found = options["prefix"], []  # type: str, List[Step]
    release, back = _release(options), BackStep(layout(prefix))
    if release:
        if user == USER:
            found.append(UserStep())
        found += [ReleaseStep(release, layout(prefix)), UnitStep(unit, prefix)]
    elif back.needed():
        found.append(back)
    if service.name:
        program = os.path.join(prefix, "bin", "ollama")
        if not (found or os.path.exists(program)):
            raise Refused(
                "there is no %s that it could start; expected an installed Ollama: declare archive, or the prefix "
                "below which it is" % program
            )
        found.append(ProgramStep(unit, program, system))
        if not release:
            found.append(UnitStep(unit, prefix))
    return found


def _release(options: Mapping[str, Any]) -> Optional[Release]:
    found = releases.plan(
        options["version"],
        options["mirror"],
        options["archive"],
        options["addons"],
        options["archive_checksum"],
        os.uname().machine,
    )
    return found and with_checksums(found, options["remote_src"])


def installs(options: Mapping[str, Any], listen: Any) -> Installs:
    """Which release takes the place of which; the one in use is asked for its version, if it runs.

    :param listen: where the service will listen, which is rarely another address than until now.
    """
    if not os.path.lexists(os.path.join(options["prefix"], "bin", "ollama")):
        return Installs(options["version"], first=True)
    from .api import Api, ApiError

    try:
        before = Api(*settings.reachable_at("%s:%d" % (listen.address, listen.port))).version(timeout=2)
    except (ApiError, ValueError):
        before = None
    return Installs(options["version"], before)


def check_library(library: Optional[str], prefix: str, needed: Sequence[Step]) -> None:
    """:raises Refused: the installation has no such folder of libraries, and no step replaces it."""
    there = libraries(prefix) if library else None
    if library is None or there is None or library in there:
        return
    if not any(isinstance(step, ReleaseStep) and step.needed() for step in needed):
        raise Refused(
            "llm_library: there is no folder %s under %s/lib/ollama, so Ollama would serve on the CPU; there are: %s"
            % (library, prefix, ", ".join(there) or "none")
        )


def libraries(prefix: str) -> Optional[List[str]]:
    """Names that OLLAMA_LLM_LIBRARY may have; None when there is no installation yet."""
    folder = os.path.join(prefix, "lib", "ollama")
    try:
        return sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    except OSError:
        return None


def home(user: str) -> str:
    """A user's home; where it will be while there is no such user."""
    import pwd

    try:
        return pwd.getpwnam(user).pw_dir
    except KeyError:
        return HOME
