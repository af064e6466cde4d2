# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The llama-server program and the model on this host: what the program takes, and whether its user can read both.

Nobody vouches for either: the program runs, and the model is opened, with the rights of the service's user.
"""

from __future__ import annotations

import glob
import os
import re
from typing import Dict, List, Mapping, NamedTuple, Sequence

from ..toolbox import users
from ..toolbox.errors import Failed, Refused
from ..toolbox.text import near

_LARGEST = 1 << 20  # bytes of the help text
_LIMIT = 60  # seconds; a program built for CUDA looks for GPUs first


class Flag(NamedTuple):
    """An argument, out of ``--help``."""

    values: int
    """How many values it takes."""
    allowed: List[str]
    """The only values that it takes; empty: not known."""


def parse_help(text: str) -> Dict[str, Flag]:
    """Flags, and the variables that stand for them, in the text of ``--help``. Pure."""
    found: Dict[str, Flag] = {}
    for entry in re.split(r"\n(?=-[A-Za-z-])", "\n" + text):
        line = entry.split("\n", 1)[0]
        head = line[:40] if line[39:40] == " " else line  # the description begins in column 41
        head = re.sub(r"<[^>]*>", "VALUE", head)
        names = re.findall(r"(?:^|,\s*)(--?[A-Za-z][\w.-]*)", head)
        placeholder = re.sub(r".*(?:^|[\s,])--?[A-Za-z][\w.-]*", "", head).split()
        said = " ".join(entry.split())
        choices = re.search(r"\{([\w,]+)\}", head) or re.search(r"allowed values: (\w+(?:, \w+)*)", said)
        flag = Flag(len(placeholder), re.split(r",\s*", choices.group(1)) if choices else [])
        found.update(dict.fromkeys(names + re.findall(r"\(env: (\w+)\)", said), flag) if names else {})
    return found


def ask(program: str, user: str) -> Dict[str, Flag]:
    """What the program takes, by its own word.

    :raises Refused: it cannot be run, or is not llama-server.
    """
    try:
        status, text = users.output_of(_ids(user), [program, "--help"], _LIMIT, _LARGEST)
    except (OSError, Failed) as error:
        raise Refused("program: user %s cannot run %s: %s" % (user, program, error)) from None
    flags = parse_help(text)
    if status or "--model" not in flags:
        last = (text.strip().splitlines() or ["nothing"])[-1][:300]
        raise Refused(
            "program: %s --help ended with status %d and said %s; expected llama-server's help"
            % (program, status, last)
        )
    return flags


def _ids(user: str) -> users.Ids:
    return users.ids_of(user) or users.STRANGERS


def check(flags: Mapping[str, Flag], environment: Mapping[str, str], arguments: Sequence[str]) -> None:
    """:raises Refused: the program does not know an argument or a variable, or would reject its value."""
    problems = []
    for name, value in sorted(environment.items()):
        if name.startswith("LLAMA_ARG_") and name not in flags:
            problems.append("%s: this llama-server does not read it%s" % (name, near(name, flags)))
        elif name in flags and flags[name].allowed and value not in flags[name].allowed:
            problems.append("%s: %s; expected one of %s" % (name, value, ", ".join(flags[name].allowed)))
    waiting: List[str] = []
    for word in [*arguments, "--"]:
        if not (word.startswith("--") or word in flags):
            waiting.append(word)
            continue
        if waiting and waiting[0] in flags:
            name, values, flag = waiting[0], waiting[1:], flags[waiting[0]]
            if len(values) != flag.values:
                problems.append("%s: takes %d values, not %d" % (name, flag.values, len(values)))
            elif flag.allowed and values[0] not in flag.allowed:
                problems.append("%s: %s; expected one of %s" % (name, values[0], ", ".join(flag.allowed)))
        elif waiting:
            problems.append("%s: this llama-server has no such argument%s" % (waiting[0], near(waiting[0], flags)))
        waiting = [word]
    if problems:
        raise Refused("; ".join(problems))


def model_file(path: str) -> str:
    """The GGUF file that is meant by the path of a file, or of a folder with one model in it.

    :raises Refused: the folder has none or several.
    """
    if not os.path.isdir(path):
        return path
    names = sorted(name for name in os.listdir(path) if name.endswith(".gguf") and not name.startswith("mmproj"))
    first = [name for name in names if "-00001-of-" in name or not re.search(r"-\d{5}-of-\d{5}\.gguf\Z", name)]
    if len(first) != 1:
        raise Refused(
            "model: the folder %s has %s; expected one GGUF model, or set model to one of the files"
            % (path, ", ".join(first) or "no GGUF file")
        )
    return os.path.join(path, first[0])


def check_readable(option: str, path: str, user: str, magic: bytes = b"") -> None:
    """:raises Refused: the service's user cannot read a file, or it does not begin with ``magic``."""
    try:
        found = users.beginning(_ids(user), path, len(magic))
    except (OSError, Failed) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused("%s: user %s cannot read %s: %s" % (option, user, path, reason)) from None
    if found != magic:
        raise Refused("%s: %s begins with %r; expected %r" % (option, path, found, magic))


def size_of(path: str) -> int:
    """Size of a model in bytes, all parts of a split one included; 0 where it cannot be read."""
    try:
        return sum(map(os.path.getsize, glob.glob(glob.escape(path).replace("-00001-of-", "-*-of-"))))
    except OSError:
        return 0
