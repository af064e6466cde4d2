# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit's files say once systemd has merged them: every value in force, and the file and line that set it.

Pure: bytes in, plain data out. The rules are those of systemd.unit(5), systemd.syntax(7) and systemd.exec(5), each
tried on systemd 252; tests/fleet/test_unit_merge.py holds this file to a real systemd with random units.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..toolbox.errors import Refused
from ..toolbox.fields import dataclass, field

WHITESPACE = " \t\n\r"

# A line ends at LF, CR or NUL; LF and CR next to each other are one end.
LINE_END = re.compile("\n\r?\0?|\r\n?\0?|\0")
LONGEST_LINE = 1024 * 1024
"""Bytes in one line, continuations included, above which systemd gives up the file (LONG_LINE_MAX)."""

UNIT_NAME = re.compile(
    r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]*)?"
    r"\.(service|socket|timer|path|mount|automount|swap|target|slice|device|scope)"
)

# Assignments to these add up, an empty one clears them. To any other key the last assignment wins.
_LISTS = """
    Requires Requisite Wants BindsTo PartOf Upholds Conflicts Before After OnFailure OnSuccess PropagatesReloadTo
    ReloadPropagatedFrom PropagatesStopTo StopPropagatedFrom JoinsNamespaceOf RequiresMountsFor WantsMountsFor
    Documentation
    ExecCondition ExecStartPre ExecStart ExecStartPost ExecReload ExecStop ExecStopPost SuccessExitStatus
    RestartPreventExitStatus RestartForceExitStatus Sockets OpenFile
    Environment EnvironmentFile PassEnvironment UnsetEnvironment SupplementaryGroups CPUAffinity NUMAMask
    ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths NoExecPaths BindPaths BindReadOnlyPaths
    TemporaryFileSystem ExtensionImages ExtensionDirectories MountImages LoadCredential LoadCredentialEncrypted
    SetCredential SetCredentialEncrypted ImportCredential SystemCallFilter SystemCallLog SystemCallArchitectures
    RestrictAddressFamilies RestrictFileSystems RestrictNamespaces CapabilityBoundingSet AmbientCapabilities
    RuntimeDirectory StateDirectory CacheDirectory LogsDirectory ConfigurationDirectory LogExtraFields
    LogFilterPatterns
    DeviceAllow IPAddressAllow IPAddressDeny IPIngressFilterPath IPEgressFilterPath BPFProgram SocketBindAllow
    SocketBindDeny RestrictNetworkInterfaces DisableControllers NFTSet IODeviceWeight IOReadBandwidthMax
    IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax IODeviceLatencyTargetSec
    ListenStream ListenDatagram ListenSequentialPacket ListenFIFO ListenSpecial ListenNetlink ListenMessageQueue
    OnActiveSec OnBootSec OnStartupSec OnUnitActiveSec OnUnitInactiveSec OnCalendar
    PathExists PathExistsGlob PathChanged PathModified DirectoryNotEmpty
    Alias WantedBy RequiredBy UpheldBy Also
"""
LIST_KEYS = frozenset(_LISTS.split())

# An empty assignment to these is a mistake that systemd ignores. For any other key that is not a list it is a reset.
_EMPTY_IGNORED = """
    Type ExitType Restart NotifyAccess OOMPolicy DevicePolicy ProtectSystem ProtectHome ProtectProc ProcSubset
    KeyringMode UtmpMode RuntimeDirectoryPreserve TimeoutStartFailureMode TimeoutStopFailureMode ManagedOOMPreference
    RemainAfterExit GuessMainPID RootDirectoryStartOnly IgnoreSIGPIPE TTYReset TTYVHangup TTYVTDisallocate
    SyslogLevelPrefix CPUSchedulingResetOnFork RemoveIPC NonBlocking SendSIGKILL SendSIGHUP PrivateTmp PrivateDevices
    ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectClock ProtectControlGroups PrivateNetwork
    PrivateUsers PrivateMounts PrivateIPC ProtectHostname RestrictRealtime RestrictSUIDSGID LockPersonality
    NoNewPrivileges MemoryDenyWriteExecute MemoryAccounting TasksAccounting IOAccounting BlockIOAccounting IPAccounting
    StandardOutput StandardError SyslogFacility SyslogLevel LogLevelMax UMask LimitNOFILE LimitCORE LimitMEMLOCK
    RestartSec TimeoutStartSec TimeoutStopSec RuntimeMaxSec WatchdogSec KillSignal FinalKillSignal RestartKillSignal
    Slice TimerSlackNSec RuntimeDirectoryMode StateDirectoryMode BusName FileDescriptorStoreMax LogRateLimitIntervalSec
    LogRateLimitBurst StartLimitBurst StartLimitIntervalSec
"""
EMPTY_IGNORED = frozenset(_EMPTY_IGNORED.split())

# systemd acts on these itself, so a reload alone puts a new value in force: no process has to be restarted.
_LIVE = """
    Restart RestartSec RestartSteps RestartMaxDelaySec RestartMode SuccessExitStatus RestartPreventExitStatus
    RestartForceExitStatus TimeoutStartSec TimeoutStopSec TimeoutAbortSec TimeoutSec TimeoutStartFailureMode
    TimeoutStopFailureMode KillMode KillSignal RestartKillSignal FinalKillSignal SendSIGHUP SendSIGKILL ExecReload
    ExecStop ExecStopPost
"""
LIVE_KEYS = frozenset(_LIVE.split())


class Assignment(NamedTuple):
    """One ``key=value`` line of a unit file, continuations joined."""

    section: str
    key: str
    value: str
    path: str
    line: int


class Value(NamedTuple):
    """A value and where it was set; line 0 means that the place has no lines."""

    text: Optional[str]
    path: str
    line: int = 0

    @property
    def place(self) -> str:
        return "%s:%d" % (self.path, self.line) if self.line else self.path


@dataclass
class UnitFile:
    """One parsed file. ``broken`` is where and why systemd stops reading it, None when it reads all of it."""

    path: str
    assignments: List[Assignment] = field(default_factory=list)
    broken: Optional[str] = None


# --- names and directories -------------------------------------------------------------------------------------------


def unit_name(name: str) -> str:
    """``name`` with ``.service`` added when it has no suffix; raises Refused when systemd would not take it."""
    full = name if name.rpartition(".")[2] in UNIT_TYPES else name + ".service"
    if not UNIT_NAME.fullmatch(full) or len(full) > 255:
        raise Refused("%r is not a unit name: expected a name such as ollama.service or vllm@NAME.service" % name)
    stem, _dot, kind = full.rpartition(".")
    if stem.endswith("@") and stem.count("@") == 1:
        raise Refused("%s is a template: name an instance of it, such as %sNAME.%s" % (full, stem, kind))
    return full


UNIT_TYPES = ("service", "socket", "timer", "path", "mount", "automount", "swap", "target", "slice", "device", "scope")


def template_of(name: str) -> Optional[str]:
    """``vllm@.service`` for ``vllm@a.service``, None for a unit that is not an instance."""
    stem, _dot, kind = name.rpartition(".")
    prefix, _at, instance = stem.partition("@")
    return "%s@.%s" % (prefix, kind) if instance else None


def dropin_directories(name: str) -> List[str]:
    """Names of the directories whose drop-ins apply to a unit, the most specific first; ``TYPE.d`` is not among them.

    ``a-b@x.service`` has ``a-b@x.service.d``, ``a-b@.service.d`` and then those of its prefixes, ``a-.service.d``,
    ``a-@x.service.d`` and ``a-@.service.d``.
    """
    found: Dict[str, None] = {}

    def walk(current: str) -> None:
        if current + ".d" in found:
            return
        found[current + ".d"] = None
        template = template_of(current)
        if template:
            walk(template)
        stem, _dot, kind = current.rpartition(".")
        prefix, at, instance = stem.partition("@")
        shorter, dash, _last = (prefix[:-1] if prefix.endswith("-") else prefix).rpartition("-")
        if dash and shorter:
            # a template has the prefixes of a plain unit, an instance those with its own instance name
            walk(shorter + "-" + (at + instance if instance else "") + "." + kind)

    walk(name)
    return list(found)


def order_dropins(directories: Iterable[Tuple[str, Iterable[str]]]) -> List[str]:
    """Paths of the drop-ins in the order in which systemd applies them.

    ``directories`` are (path, file names), the one of highest priority first: of files with the same name only the
    first counts, and what counts is applied in byte order of the file names, wherever they lie.
    """
    chosen: Dict[str, str] = {}
    for directory, names in directories:
        for name in names:
            if name.endswith(".conf") and not name.startswith("."):
                chosen.setdefault(name, directory + "/" + name)
    return [chosen[name] for name in sorted(chosen, key=lambda name: name.encode("utf-8", "surrogateescape"))]


# --- one file --------------------------------------------------------------------------------------------------------


def is_text(raw: bytes) -> bool:
    """Whether systemd takes these bytes as UTF-8: as Python does, except for code points that are not characters."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return text.isascii() or not any(0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for c in text)


def _logical_lines(text: str) -> Iterator[Tuple[int, str]]:
    """(number of the last line, text) with continuations joined and comments left out."""
    joined: Optional[str] = None
    byte_order_mark = True
    number = 0
    for number, line in enumerate(LINE_END.split(text), 1):
        if line.lstrip(WHITESPACE)[:1] in ("#", ";"):
            continue  # also between the lines of a continuation
        if byte_order_mark and line.startswith("\ufeff"):
            line, byte_order_mark = line[1:], False
        line = line if joined is None else joined + line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            joined = line[:-1] + " "
        else:
            joined = None
            yield number, line
    if joined is not None:
        yield number, joined


def parse(content: bytes, path: str) -> UnitFile:
    """Read one unit file or drop-in as systemd reads it, including where it stops reading."""
    result = UnitFile(path)
    section = ""
    for number, line in _logical_lines(content.decode("utf-8", "surrogateescape")):
        line = line.strip(WHITESPACE)
        raw = line.encode("utf-8", "surrogateescape")
        if not raw:
            continue
        if len(raw) >= LONGEST_LINE:
            result.broken = "%s:%d: the line is longer than %d bytes" % (path, number, LONGEST_LINE)
            break
        if not is_text(raw):
            result.broken = "%s:%d: the line is not valid UTF-8" % (path, number)
            break
        if line.startswith("["):
            if not line.endswith("]"):
                result.broken = "%s:%d: %r is not a section header" % (path, number, line[:80])
                break
            section = line[1:-1]
            continue
        key, equals, value = line.partition("=")
        if section and equals and key:
            result.assignments.append(Assignment(section, key.strip(WHITESPACE), value.strip(WHITESPACE), path, number))
    return result


# --- words and environment -------------------------------------------------------------------------------------------

ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
ESCAPES.update({"\\": "\\", '"': '"', "'": "'"})
PLAIN = {quote: re.compile("[^\\\\%s]+" % (quote or WHITESPACE + "'\"")) for quote in ("", "'", '"')}
CODED = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")


def _unescape(text: str, at: int) -> Tuple[bytes, int]:
    """The bytes of the C escape whose letter is at ``at`` and the position behind it; ValueError when it is none."""
    letter = text[at : at + 1]
    if letter in ESCAPES:
        return ESCAPES[letter].encode(), at + 1
    match = CODED.match(text, at)
    if not match:
        raise ValueError("unknown escape")
    byte, short, wide, octal = match.groups()
    number = int(octal, 8) if octal else int(byte or short or wide, 16)
    if not number or number > (0xFF if byte or octal else 0x10FFFF):
        raise ValueError("escape out of range")
    if byte or octal:
        return bytes([number]), match.end()
    return chr(number).encode("utf-8", "surrogatepass"), match.end()


def split_words(text: str) -> Iterator[str]:
    """Words of a line as systemd splits them: quotes removed, C escapes decoded.

    Words before a mistake are given, then ValueError is raised: systemd keeps those and ignores the rest of the line.
    """
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in WHITESPACE:
            at += 1
        if at == end:
            return
        word, quote = bytearray(), ""
        while at < end and (quote or text[at] not in WHITESPACE):
            char = text[at]
            plain = PLAIN[quote].match(text, at)
            if plain:
                word += plain.group().encode("utf-8", "surrogateescape")
                at = plain.end()
            elif char == "\\":
                piece, at = _unescape(text, at + 1)
                word += piece
            else:
                quote = "" if quote else char
                at += 1
        if quote:
            raise ValueError("unbalanced quote")
        yield word.decode("utf-8", "surrogateescape")


def expand(text: str, specifiers: Mapping[str, str]) -> str:
    """``text`` with its ``%`` specifiers resolved; KeyError for a letter that is none, upon which systemd drops it."""
    return re.sub("%([A-Za-z0-9%])", lambda match: "%" if match.group(1) == "%" else specifiers[match.group(1)], text)


ENVIRONMENT_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def expanded_words(text: str, specifiers: Mapping[str, str]) -> Iterator[str]:
    """The words of a line, specifiers resolved, as far as systemd reads it and without those that it drops."""
    words = split_words(text)
    while True:
        try:
            yield expand(next(words), specifiers)
        except KeyError:
            continue
        except (StopIteration, ValueError):
            return


def parse_assignments(text: str, specifiers: Mapping[str, str]) -> Iterator[Tuple[str, str]]:
    """(name, value) of the value of one ``Environment=`` line, without those that systemd drops."""
    for word in expanded_words(text, specifiers):
        name, equals, value = word.partition("=")
        if equals and ENVIRONMENT_NAME.fullmatch(name) and is_text(value.encode("utf-8", "surrogateescape")):
            yield name, value


FILE_NAME = re.compile(r"([^=\n\r]*)(=?)")


def parse_environment_file(content: bytes, version: int = 0) -> Dict[str, Tuple[str, int]]:
    """Name to (value, line) of an ``EnvironmentFile=``, whose syntax is that of a simple shell script.

    Before systemd 254 a backslash at the end of a comment makes the next line part of it.

    Raises Refused for a file that keeps the unit from starting.
    """
    found: Dict[str, Tuple[str, int]] = {}
    text = content.decode("utf-8", "surrogateescape")
    if "\0" in text:
        raise Refused("the file has a NUL byte: systemd does not start a unit with it")
    at, end, line = 0, len(text), 1
    while at < end:
        char = text[at]
        if char in WHITESPACE:
            line += char == "\n"
            at += 1
            continue
        if char in "#;":
            while at < end and text[at] not in "\n\r":
                at += 2 if text[at] == "\\" and version < 254 else 1
            continue
        match = FILE_NAME.match(text, at)
        if match is None:  # never: it matches nothing as well
            break
        at, first = match.end(), line
        if not match.group(2):
            continue
        value, at = _environment_file_value(text, at)
        line += text.count("\n", match.end(), at)
        name = match.group(1).rstrip(WHITESPACE)
        if not is_text((name + value).encode("utf-8", "surrogateescape")):
            raise Refused("line %d is not valid UTF-8: systemd does not start a unit with it" % first)
        if ENVIRONMENT_NAME.fullmatch(name):
            found[name] = (value, first)
    return found


def _environment_file_value(text: str, at: int) -> Tuple[str, int]:
    """The value that begins at ``at`` and the position of the line end behind it."""
    kept, end = "", len(text)
    solid = 0  # characters up to here are not trailing blanks
    started = False
    while at < end and text[at] not in "\n\r":
        plain = PLAIN[""].match(text, at)
        if plain:
            kept += plain.group()
            at, started, solid = plain.end(), True, len(kept)
            continue
        char = text[at]
        at += 1
        if char == "\\":
            if at < end:
                kept += "" if text[at] in "\n\r" else text[at]
                at += 1
            started, solid = True, len(kept)
        elif char in "'\"" and not started:
            while at < end and text[at] != char:
                if char == '"' and text[at] == "\\":
                    at += 1
                    escaped = text[at : at + 1]
                    kept += escaped if escaped in '"\\`$' else "" if escaped == "\n" else "\\" + escaped
                else:
                    kept += text[at]
                at += 1
            at += 1
            solid = len(kept)
        elif char in WHITESPACE:
            kept += char if started else ""
        else:  # a quote that is not the first character
            kept += char
            solid = len(kept)
    return kept[:solid], at


def _simple_path(path: str) -> Optional[str]:
    """A path as systemd writes it, without ``//``, ``/./`` and a last ``/``; None for one that it ignores."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts) if path.startswith("/") and ".." not in parts else None


# --- the merged unit -------------------------------------------------------------------------------------------------

ReadFiles = Callable[[str], Iterable[Tuple[str, bytes]]]
"""Gives (path, content) of the files that the path or pattern of an ``EnvironmentFile=`` names."""


@dataclass
class Unit:
    """A unit's files merged, in the order in which they apply: the unit file first, then its drop-ins."""

    files: List[UnitFile]

    @property
    def assignments(self) -> Iterator[Assignment]:
        for unit_file in self.files:
            yield from unit_file.assignments

    def in_force(self, section: str, key: str) -> List[Assignment]:
        """The assignments to a key that count: for a list all since it was last cleared, else the last one."""
        kept: List[Assignment] = []
        for assignment in self.assignments:
            if (assignment.section, assignment.key) == (section, key):
                if not assignment.value and key in EMPTY_IGNORED:
                    continue
                if key not in LIST_KEYS or not assignment.value:
                    kept = []
                if assignment.value:
                    kept.append(assignment)
        return kept

    def settings(self) -> Dict[Tuple[str, str], List[str]]:
        """(section, key) to the values in force, of every key that is assigned to."""
        keys = dict.fromkeys((a.section, a.key) for a in self.assignments)
        return {key: [a.value for a in self.in_force(*key)] for key in keys}

    def environment(
        self,
        specifiers: Mapping[str, str],
        read_files: ReadFiles = lambda pattern: (),
        inherited: Optional[Mapping[str, str]] = None,
    ) -> Dict[str, Value]:
        """Name to value in force: ``PassEnvironment=`` under ``Environment=`` under ``EnvironmentFile=``.

        ``inherited`` is the service manager's own environment. ``UnsetEnvironment=`` has the last word.
        """
        found: Dict[str, Value] = {}
        for line in self.in_force("Service", "PassEnvironment"):
            for name in expanded_words(line.value, specifiers):
                if name in (inherited or {}):
                    found[name] = Value((inherited or {})[name], line.path, line.line)
        for line in self.in_force("Service", "Environment"):
            for name, text in parse_assignments(line.value, specifiers):
                found[name] = Value(text, line.path, line.line)
        for pattern in self.environment_files(specifiers):
            for path, content in read_files(pattern):
                try:
                    entries = parse_environment_file(content, int(specifiers.get("systemd", 0)))
                except Refused:
                    continue
                found.update((name, Value(text, path, at)) for name, (text, at) in entries.items())
        for name, removed in self._unset(specifiers):
            if name in found and removed.text in (None, found[name].text):
                del found[name]
        return found

    def environment_files(self, specifiers: Mapping[str, str]) -> Iterator[str]:
        """The paths and patterns of ``EnvironmentFile=`` as systemd keeps them, without those that it ignores."""
        for line in self.in_force("Service", "EnvironmentFile"):
            try:
                path = _simple_path(expand(line.value[line.value.startswith("-") :], specifiers))
            except KeyError:
                continue
            if path:
                yield path

    def unset(self, specifiers: Mapping[str, str]) -> Dict[str, Value]:
        """Name to the ``UnsetEnvironment=`` line that removes it; the text is the value that it must have, or None."""
        found: Dict[str, Value] = {}
        for name, removed in self._unset(specifiers):
            if name not in found or found[name].text is not None:  # one that removes any value has the largest effect
                found[name] = removed
        return found

    def _unset(self, specifiers: Mapping[str, str]) -> Iterator[Tuple[str, Value]]:
        for line in self.in_force("Service", "UnsetEnvironment"):
            for word in expanded_words(line.value, specifiers):
                name, equals, text = word.partition("=")
                yield name, Value(text if equals else None, line.path, line.line)

    @property
    def broken(self) -> List[str]:
        """Where and why systemd stops reading one of the files."""
        return [unit_file.broken for unit_file in self.files if unit_file.broken]


def merge(files: Sequence[Tuple[str, bytes]]) -> Unit:
    """Merge (path, content), the unit file first and then the drop-ins in the order of :func:`order_dropins`."""
    return Unit([parse(content, path) for path, content in files])


def process_settings(unit: Unit) -> Dict[Tuple[str, str], List[str]]:
    """The settings whose change needs a new process; the environment is compared by its values, not by its lines."""
    return {
        (section, key): values
        for (section, key), values in unit.settings().items()
        if values
        and section not in ("Unit", "Install")
        and not section.startswith("X-")
        and not key.startswith("X-")
        and key not in LIVE_KEYS
        and key not in ("Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment")
    }
