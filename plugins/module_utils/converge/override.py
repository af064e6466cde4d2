# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our files for one unit: where they belong, what they must contain, and what of that may be shown.

Pure: it does not read them.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List, Optional, Set

from ..systemd import render
from ..systemd.unit import parse_environment_file, unit_name
from ..toolbox.errors import Refused
from .atomic import Wanted, names
from .model import Change

DIRECTORY = "/etc/systemd/system"
DROP_IN = "zz-gpufleet.conf"
"""Sorts after ``override.conf``, the file of ``systemctl edit``, so that the declared values are in force."""
SECRETS = "/etc/gpufleet"
SECRET = "<secret>"
SHORT, LONG = 4, 8
"""Fewest characters of a secret, and of a line or word of one, that are masked: shorter text occurs anywhere."""


def checked(change: Change) -> str:
    """The unit's full name; Refused if something that is declared cannot be done."""
    name = unit_name(change.unit)
    if change.state == "absent":
        return name
    both = sorted(set(change.environment) & set(change.secret_environment))
    if both:
        raise Refused("%s is declared both as environment and as secret_environment: leave one out" % ", ".join(both))
    variables = dict(change.environment, **change.secret_environment)
    if (variables or change.credentials) and not name.endswith(".service"):
        raise Refused("%s is not a service: only a service has environment and credentials" % name)
    render.check_environment(variables)
    render.check_settings(change.settings)
    render.check_credentials(change.credentials)
    return name


class Override:
    """What is declared for a unit, as files. ``unit`` is the unit's own full name."""

    def __init__(self, unit: str, change: Change) -> None:
        present = change.state == "present"
        self.unit = unit
        self.drop_in = "%s/%s.d/%s" % (DIRECTORY, unit, DROP_IN)
        self.secret_file = "%s/%s.env" % (SECRETS, unit)
        self.secret_pattern = self.secret_file.replace("\\", "\\\\")
        """As ``EnvironmentFile=`` names it, which is a pattern: a backslash of the unit's name would escape there."""
        self.credential_directory = "%s/credentials/%s" % (SECRETS, unit)
        self.environment: Dict[str, str] = change.environment if present else {}
        self.secret_environment: Dict[str, str] = change.secret_environment if present else {}
        self.credentials: Dict[str, str] = change.credentials if present else {}
        self.variables = dict(self.environment, **self.secret_environment)
        self.settings = self._settings(change.settings if present else {})
        self.files: Dict[str, Optional[str]] = {path: text if present else None for path, text in change.files.items()}
        self._secrets = [*self.secret_environment.values(), *self.credentials.values()]

    def _settings(self, declared: Dict[str, Dict[str, List[str]]]) -> Dict[str, Dict[str, List[str]]]:
        """The declared settings and those that pass the secrets."""
        settings = {section: dict(keys) for section, keys in declared.items()}
        service = dict(settings.get("Service", {}))
        if self.secret_environment:
            service["EnvironmentFile"] = [*service.get("EnvironmentFile", []), self.secret_pattern]
        if self.credentials:
            loads = ["%s:%s/%s" % (name, self.credential_directory, name) for name in sorted(self.credentials)]
            service["LoadCredential"] = [*service.get("LoadCredential", []), *loads]
        if service:
            settings["Service"] = service
        return settings

    def content(self, path: str) -> Optional[bytes]:
        """What the drop-in or the secret file must contain; None if it must not exist."""
        if path == self.drop_in:
            text = render.drop_in(self.unit, self.environment, self.settings)
        else:
            text = render.environment_file(self.secret_environment)
        return as_bytes(text) if text else None

    def wanted(self, entries: Iterable[str]) -> List[Wanted]:
        """Our files; the drop-in is the last one, as it names the others.

        ``entries`` are those of the directory of the unit's credentials.
        """
        found = [Wanted(self.secret_file, self.content(self.secret_file), 0o600)]
        for name in sorted({*names(entries), *self.credentials}):
            path = "%s/%s" % (self.credential_directory, name)
            content = as_bytes(self.credentials[name]) if name in self.credentials else None
            found.append(Wanted(path, content, 0o600, 0o700, own_directories=3))
        for path, text in self.files.items():
            found.append(Wanted(path, as_bytes(text) if text is not None else None))
        return [*found, Wanted(self.drop_in, self.content(self.drop_in))]

    # --- what may be shown

    def shown(self, path: str, content: bytes, previous: Optional[bytes] = None) -> str:
        """A file's content as a person may see it; ``previous`` is what it replaces."""
        if path == self.secret_file:
            old = parse_environment_file(previous) if previous else {}
            return "\n".join(
                "%s=%s" % (name, SECRET if name not in old or old[name][0] == text else "<secret, changed>")
                for name, (text, _line) in parse_environment_file(content).items()
            )
        if path.startswith(self.credential_directory + "/"):
            return SECRET if previous in (None, content) else "<secret, changed>"
        return content.decode("utf-8", "replace")

    def hide(self, texts: Iterable[str]) -> None:
        """Add secrets for ``masked`` to hide, such as those that are being replaced."""
        self._secrets += texts

    def masked(self, value: Any) -> Any:
        """Text, or data of any depth, without the secrets, however they are spelled."""
        known = sorted(set().union(*map(spellings, set(self._secrets))), key=len, reverse=True)

        def mask(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: mask(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [mask(item) for item in value]
            if isinstance(value, str):
                for secret in known:
                    value = value.replace(secret, SECRET)
            return value

        return mask(value)


def spellings(secret: str) -> Set[str]:
    """A secret, each of its lines and words: as is, as written in our files, and as quoted by Python and JSON.

    A word, as some secrets are several keys.
    """
    found = set()
    parts = (part.strip() for part in (*secret.splitlines(), *secret.split()) if len(part) >= LONG)
    for text in {secret, secret.strip(), *parts}:
        drop_in = render.environment_line("", text)[len('Environment="=') : -1]
        file = render.environment_file({"": text})[len('="') : -len('"\n')]
        quoted = repr(text), json.dumps(text), json.dumps(text, ensure_ascii=False)
        found |= {text, drop_in, file, *(spelling[1:-1] for spelling in quoted)}
    return {spelling for spelling in found if len(spelling) >= SHORT}


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
