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
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

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

    :raises Refused: it cannot be run.
    """
    from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users

    def run() -> List[Any]:
        import resource
        import subprocess
        import tempfile

        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST, _LARGEST))
        with tempfile.TemporaryFile() as out:
            done = subprocess.run(
                [program, "--help"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                timeout=_LIMIT,
                check=False,
            )
            out.seek(0)
            return [done.returncode, out.read(_LARGEST).decode("utf-8", "replace")]

    try:
        status, text = users.as_user(users.ids_of(user) or users.STRANGERS, run, _LIMIT + 5)
    except (OSError, users.UserError) as error:
        raise Refused("program: %s cannot be run as user %s: %s" % (program, user, error)) from None
    flags = parse_help(text)
    if status or "--model" not in flags:
        last = (text.strip().splitlines() or ["nothing"])[-1][:300]
        raise Refused(
            "program: %s --help ended with status %d: %s; expected llama-server's help" % (program, status, last)
        )
    return flags


def check(flags: Mapping[str, Flag], environment: Mapping[str, str], arguments: Sequence[str]) -> None:
    """:raises Refused: the program does not know an argument or a variable, or would reject its value."""
    problems = []
    for name, value in sorted(environment.items()):
        if name.startswith("LLAMA_ARG_") and name not in flags:
            problems.append("%s: this llama-server does not read it%s" % (name, _near(name, flags)))
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
            problems.append("%s: this llama-server has no such argument%s" % (waiting[0], _near(waiting[0], flags)))
        waiting = [word]
    if problems:
        raise Refused("; ".join(problems))


def _near(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return "; did you mean %s?" % near[0] if near else ""


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


def check_model(path: str, user: str) -> int:
    """Size of a model in bytes, all parts of a split one included.

    :raises Refused: the service's user cannot read it, or it is not a GGUF file.
    """
    from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users

    def begin() -> List[Any]:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            parts = glob.glob(glob.escape(path).replace("-00001-of-", "-*-of-"))
            return [sum(map(os.path.getsize, parts)), stream.read(4).hex()]

    try:
        size, magic = users.as_user(users.ids_of(user) or users.STRANGERS, begin, 20)
    except (OSError, users.UserError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused("model: user %s cannot read %s: %s" % (user, path, reason)) from None
    if bytes.fromhex(magic) != b"GGUF":
        raise Refused(
            "model: %s is not a GGUF file: it begins with %r; expected b'GGUF'" % (path, bytes.fromhex(magic))
        )
    return int(size)
