# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an Ollama server says of itself when it starts: lines of its log in, plain data out. Pure.

Once it serves, others have a say in its log, too: a worker prints what the model's file holds, line breaks included. So
nothing counts but the start, which ends before the first request is served, and of that the first word on each matter.

Since 0.7.0 lines are ``time=… level=… source=… msg=… key=value …``, before ``YYYY/MM/DD hh:mm:ss file:line: LEVEL text
key=value …``; a newer server writes the older form too, until its logger is set up.
"""

from __future__ import annotations

import re
from itertools import islice, takewhile
from typing import Dict, Iterable, Iterator, List, Optional

from ..toolbox.fields import dataclass, field
from ..toolbox.text import one_line
from .settings import LOGGED


@dataclass
class Compute:
    """One ``inference compute`` line: a device that the server will use."""

    id: str
    library: str
    """``CUDA``, ``ROCm``, ``Vulkan``, …; ``cpu`` when the server found no GPU."""
    description: str = ""
    pci_bus_id: str = ""
    """``0000:00:06.0``; empty where the server does not know."""

    @property
    def on_cpu(self) -> bool:
        return self.library.lower() == "cpu"

    @property
    def uuid(self) -> str:
        """Servers before 0.30 use the GPU's UUID as its id."""
        return self.id if self.id.startswith("GPU-") else ""


@dataclass
class StartLog:
    """What the start log reports; a part that is not (yet) there is None or empty."""

    config: Optional[Dict[str, str]] = None
    """Variable to value as the server understood it."""
    listening: Optional[str] = None
    version: Optional[str] = None
    compute: List[Compute] = field(default_factory=list)
    compute_ended: bool = False
    """The line after the last device is there; servers before 0.15.5 have none."""
    replaced: Dict[str, str] = field(default_factory=dict)
    """Variables that the server could not read, with the value it found."""
    failure: Optional[str] = None
    """The last words of a server that gave up."""


_STRING = r'"(?:[^"\\]|\\.)*"'
_CONFIG = re.compile(r'server config"? env=(%s)' % _STRING)
_PAIR = re.compile(r"(?<![A-Za-z_])([A-Za-z_]+)=(%s|\S*)" % _STRING)
_LISTENING = re.compile(r"Listening on (\S+) \(version ([^)]+)\)")
_KEY = re.compile(r"(?:\A| )(%s|OLLAMA_[A-Z0-9_]+|LLAMA_ARG_[A-Z0-9_]+):" % "|".join(map(re.escape, LOGGED)))


_START_LINES = 5000  # more than any start writes, at the highest log level too
_LONGEST = 1 << 16  # characters of a line
_LAST_WORDS = 500  # characters of them that a message repeats
_MARKS_THE_END = (0, 15, 5)  # the first version that ends its list of devices with a line


def before_serving(lines: Iterable[str]) -> Iterator[str]:
    """The lines up to the first request: a server that runs for long has logged millions since."""
    return takewhile(lambda line: not line.startswith("[GIN]"), islice(lines, _START_LINES))


def parse(lines: Iterable[str]) -> StartLog:
    """Read the start of one invocation, oldest line first; lines of other kinds are passed over."""
    log = StartLog()
    for line in lines:
        line = line[:_LONGEST]
        device = "inference compute" in line
        if log.compute_ended or (log.compute and not device and not _marks_the_end(log.version)):
            break
        if "server config" in line:
            found = _CONFIG.match(line, line.index("server config"))
            if found and log.config is None:
                log.config = parse_map(unquote(found.group(1)))
        elif "Listening on " in line:
            found = _LISTENING.match(line, line.index("Listening on "))
            if found and log.listening is None:
                log.listening, log.version = found.groups()
        elif device:
            fields = _fields(line)
            log.compute.append(
                Compute(
                    id=fields.get("id", ""),
                    library=fields.get("library", ""),
                    description=fields.get("description") or fields.get("name", ""),
                    pci_bus_id=fields.get("pci_id", "").lower(),
                )
            )
        elif "vram-based default context" in line:
            log.compute_ended = True
        elif "invalid environment variable, using default" in line:
            fields = _fields(line)
            log.replaced[fields.get("key", "")] = fields.get("value", "")
        elif "invalid port, using default" in line:
            log.replaced["OLLAMA_HOST"] = _fields(line).get("port", "")
        elif line.startswith(_LAST):
            log.failure = _said(line)
    return log


_LAST = ("Error: ", "panic: ")


def last_words(lines: Iterable[str]) -> str:
    """What a server said when it gave up; empty when it said nothing."""
    return next((_said(line) for line in reversed(list(lines)) if line.startswith(_LAST)), "")


def _said(line: str) -> str:
    return one_line(line, _LAST_WORDS)


def _marks_the_end(version: Optional[str]) -> bool:
    """Whether a server of this version ends its list of devices with a line; one built by hand says 0.0.0."""
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", version or "")
    known = tuple(map(int, numbers.groups())) if numbers else (0, 0, 0)
    return known == (0, 0, 0) or known >= _MARKS_THE_END


def parse_map(printed: str) -> Dict[str, str]:
    """A Go map of strings as ``%v`` prints it: ``map[A:1 B:2]``.

    Values are not quoted and may hold blanks and colons, so the known names show where one ends; names come sorted,
    which keeps a value that looks like a name from being taken for one.
    """
    inner = printed[len("map[") : -1] if printed.startswith("map[") and printed.endswith("]") else printed
    values, name, start = {}, "", 0
    for found in _KEY.finditer(inner):
        if found.group(1) <= name:
            continue
        if name:
            values[name] = inner[start : found.start()]
        name, start = found.group(1), found.end()
    if name:
        values[name] = inner[start:]
    return values


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def unquote(quoted: str) -> str:
    """A Go string in double quotes (``strconv.Quote``) as text."""

    def decode(match: re.Match[str]) -> str:
        kind = match.group(1)
        if kind[0] in "xuU" and len(kind) > 1:
            number = int(kind[1:], 16)
            return "\ufffd" if number > 0x10FFFF or 0xD800 <= number < 0xE000 else chr(number)
        return _ESCAPES.get(kind, kind)

    return re.sub(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)", decode, quoted[1:-1], flags=re.DOTALL)


def _fields(line: str) -> Dict[str, str]:
    return {key: unquote(value) if value.startswith('"') else value for key, value in _PAIR.findall(line)}


_REMEDIES = (
    ("address already in use", "another process listens there; stop it or choose another port (host)"),
    ("cannot assign requested address", "this host has no such address; choose one of its own (host)"),
    ("not a directory", "the models directory, or a parent of it, is a file (models_dir)"),
    (
        "permission denied",
        "the service's user may not write there; give it the directory (models_dir) and x on every parent",
    ),
    (
        "read-only file system",
        "the file system, or the unit's sandbox, forbids writing there (models_dir, ReadWritePaths=)",
    ),
    ("no space left on device", "make room there, or choose another models_dir"),
    (
        "out of memory",
        "it needs more GPU memory than is free: see in nvidia-smi who holds it, or ask for less (context_length, "
        "num_parallel, kv_cache_type)",
    ),
    ("timed out waiting for llama-server", "loading stalled; raise load_timeout if the storage is only slow"),
    ("$HOME is not defined", "the unit's user has no home; give it one, or set models_dir"),
)


def remedy(failure: str) -> str:
    """What to do about the last words of a server; empty when they are not known."""
    return next((advice for words, advice in _REMEDIES if words in failure), "")
