# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes values so that systemd hands them on byte for byte, and refuses those that it cannot carry.

Pure: plain data in, text out. The limits were found by trying them on systemd 252 with Linux 6.1:
what is refused here is what systemd drops in silence, cuts off, or fails to start a process with.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Sequence

from ..toolbox.errors import Refused
from .unit import ENVIRONMENT_NAME, LONGEST_LINE, WHITESPACE, is_text

LONGEST_VARIABLE = 128 * 1024
"""Bytes of ``NAME=value`` and its NUL that Linux takes for one variable (MAX_ARG_STRLEN)."""
LARGEST_ENVIRONMENT = 1900000
"""Bytes of all variables together: Linux takes a quarter of the 8 MiB stack for them and the arguments."""
LARGEST_CREDENTIAL = 1024 * 1024
"""Bytes of all credentials of a unit together."""

SECTION = re.compile("[A-Z][A-Za-z0-9]*|X-[A-Za-z0-9_-]+")
KEY = re.compile("[A-Za-z][A-Za-z0-9-]*")
CREDENTIAL = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
PLAIN = re.compile("[A-Za-z0-9_@%+=:,./-]+")
ESCAPED = re.compile('[\x01-\x1f\x7f"\\\\%]')


def _escape(match: "re.Match[str]") -> str:
    char = match.group()
    return {'"': '\\"', "\\": "\\\\", "%": "%%", "\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, "\\x%02x" % ord(char))


def argument(text: str, variables: bool = False) -> str:
    """One word of an ``ExecStart=``, escaped so that the program gets exactly ``text``.

    With ``variables`` systemd's own ``$NAME`` and ``$$`` are left as they are.
    """
    escaped = ESCAPED.sub(_escape, text)
    if not variables:
        escaped = escaped.replace("$", "$$")
    return escaped if PLAIN.fullmatch(escaped) else '"%s"' % escaped


def environment_line(name: str, value: str) -> str:
    """``Environment="NAME=value"``, escaped so that the process gets exactly ``value``."""
    return 'Environment="%s=%s"' % (name, ESCAPED.sub(_escape, value))


def environment_file(variables: Mapping[str, str]) -> str:
    """The text of an ``EnvironmentFile=`` that gives exactly these values; in it no ``%`` is special."""
    return "".join('%s="%s"\n' % (name, re.sub(r'(["\\`$])', r"\\\1", value)) for name, value in variables.items())


def drop_in(unit: str, environment: Mapping[str, str], settings: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """The text of our drop-in, "" when there is nothing to say."""
    sections: Dict[str, List[str]] = {
        section: ["%s=%s" % (key, value) for key, values in keys.items() for value in values]
        for section, keys in settings.items()
    }
    variables = [environment_line(name, environment[name]) for name in sorted(environment)]
    if variables:
        sections["Service"] = variables + sections.get("Service", [])
    text = "".join("\n[%s]\n%s\n" % (section, "\n".join(lines)) for section, lines in sections.items() if lines)
    return text and (
        "# Written by the Ansible collection gpufleet.inference, which replaces this file on its next run.\n"
        "# Declare changes in the inventory. `systemctl edit %s` writes override.conf, which is left alone.\n"
        % unit
        + text
    )


def check_environment(variables: Mapping[str, str]) -> None:
    """Raise Refused for what no process would get as it is: the message names the variable, not its value."""
    total = 0
    for name, value in variables.items():
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise Refused(
                "environment variable %r: systemd drops a name that is not letters, digits and _, no digit first" % name
            )
        if "\0" in value:
            raise Refused("environment variable %s: the value has a NUL byte, which no process can be given" % name)
        raw = _text("environment variable %s" % name, value)
        size = len(name) + len(raw) + 2
        if size > LONGEST_VARIABLE:
            raise Refused(
                "environment variable %s: %d bytes with its name; Linux takes %d at most for one variable"
                % (name, size, LONGEST_VARIABLE)
            )
        total += size
    if total > LARGEST_ENVIRONMENT:
        raise Refused("environment: %d bytes in all; Linux takes about %d at most" % (total, LARGEST_ENVIRONMENT))


def check_settings(settings: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Raise Refused for a setting that systemd would read as something else, or not at all."""
    for section, keys in settings.items():
        if not SECTION.fullmatch(section):
            raise Refused("settings: %r is not a section of a unit file: expected one such as Service" % section)
        for key, values in keys.items():
            where = "settings: [%s] %s" % (section, key)
            if not KEY.fullmatch(key):
                raise Refused("%s: expected the name of a setting such as LimitNOFILE" % where)
            if key == "Environment":
                raise Refused("%s: declare variables as environment, which are escaped and proven" % where)
            for value in values:
                if any(char in value for char in "\0\n\r"):
                    raise Refused("%s: the value has a line end or NUL: give a list, one item for each line" % where)
                if value != value.strip(WHITESPACE):
                    raise Refused("%s: systemd cuts blanks off both ends of %r: leave them out" % (where, value))
                if (len(value) - len(value.rstrip("\\"))) % 2:
                    raise Refused("%s: the backslash ending %r would join the next line to it" % (where, value))
                if len(_text(where, value)) + len(key) + 1 >= LONGEST_LINE:
                    raise Refused("%s: systemd stops reading at a line of more than %d bytes" % (where, LONGEST_LINE))


def check_credentials(credentials: Mapping[str, str]) -> None:
    """Raise Refused for a credential that ``LoadCredential=`` refuses."""
    for name in credentials:
        if not CREDENTIAL.fullmatch(name):
            raise Refused("credential %r: expected the name of a file of letters, digits, ., _ and -" % name)
    total = sum(len(_encode("credential %s" % name, text)) for name, text in credentials.items())
    if total > LARGEST_CREDENTIAL:
        raise Refused("credentials: %d bytes in all; systemd passes on %d at most" % (total, LARGEST_CREDENTIAL))


def _encode(what: str, value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise Refused("%s: the value cannot be written as UTF-8 (%s)" % (what, error.reason)) from None


def _text(what: str, value: str) -> bytes:
    """The value's bytes; Refused when systemd does not take them for text."""
    raw = _encode(what, value)
    if not is_text(raw):
        raise Refused(
            "%s: systemd drops the value: it is not valid UTF-8, or has a code point that is not a character" % what
        )
    return raw
