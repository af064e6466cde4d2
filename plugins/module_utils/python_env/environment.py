# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python environments of an engine, one for each version: built beside the one in use, tested, then switched to.

    ROOT/ENGINE/VERSION-CUDA-HASH/     a virtual environment; HASH is of all that was asked for
    ROOT/ENGINE/VERSION-CUDA-HASH/gpufleet.json    written last: an environment without it is not whole, and is removed
    ROOT/ENGINE/current  -> VERSION-CUDA-HASH      replaced at one stroke
    ROOT/ENGINE/previous -> VERSION-CUDA-HASH      for the way back

A virtual environment has its own path in its programs and cannot be moved, so it is built where it will be used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.wheels import Choice

ROOT = "/opt/gpufleet"
MARKER = "gpufleet.json"
UNITS = "/etc/systemd/system"
_CONSTRAINTS, _REQUIREMENTS = ".constraints.txt", ".requirements.txt"
_NEW, _ASIDE = "%s.new", ".aside"
LAST_LINES = 8  # of a failed program's output, for the message

#: Libraries that wheels leave to the host, and their packages.
LIBRARIES = {"libnuma.so.1": "Debian: libnuma1; Red Hat: numactl-libs"}

#: What must be importable in the environment of an engine.
IMPORTS = {"vllm": ("vllm", "vllm._custom_ops"), "torch": ("torch",)}


class EnvironmentFault(Exception):
    """An environment cannot be built or does not work; nothing of it is left, and the one in use is untouched."""


@dataclass(frozen=True)
class Sources:
    """Where packages come from; none of it is part of what is asked for, so a mirror may move."""

    index: Optional[str] = None
    """Index in place of the host's own and of the table's. A password in it is shown nowhere."""
    extra_indexes: Tuple[str, ...] = ()
    """Indexes in place of the table's."""
    wheels: Optional[str] = None
    """Directory on this host with all wheels, or a tar of one: no index is asked."""
    installer: str = "auto"
    """``uv``, ``pip``, or ``auto``: uv when it is on the PATH."""
    timeout: float = 3600
    """Seconds for each program that is run."""


class EnvironmentStep:
    """The environment of an engine as a step of the service engine, and by itself.

    ``path`` is known before anything is built: a unit that names it directly goes on running in the environment that
    it was started in, whatever ``current`` points to meanwhile, and is restarted by the change of its own ExecStart=.
    """

    restarts = True

    def __init__(
        self, choice: Choice, interpreter: str = "python3", sources: Optional[Sources] = None, root: str = ROOT
    ) -> None:
        """:raises EnvironmentFault: there is no such interpreter."""
        self.choice = choice
        self.sources = sources or Sources()
        self.interpreter = find_interpreter(interpreter)
        self.folder = os.path.join(root, choice.engine)
        self.asked = asked(choice, self.interpreter)
        self.name = "%s-%s-%s" % (choice.version, choice.cuda, self.asked[:12])
        self.path = os.path.join(self.folder, self.name)
        self.python = os.path.join(self.path, "bin", "python")
        self._made = False
        self._before: Optional[Tuple[Optional[str], Optional[str]]] = None

    # --- as a step

    def needed(self) -> bool:
        return self.link("current") != self.name or not self.built()

    def diff(self) -> Dict[str, str]:
        def shown(name: Optional[str]) -> str:
            if not name:
                return ""
            record = read_record(os.path.join(self.folder, name))
            packages = " ".join(record.get("asked", {}).get("packages", [])) if record else "not whole"
            return "%s -> %s (%s)\n" % (os.path.join(self.folder, "current"), name, packages)

        after = "%s -> %s (%s)\n" % (
            os.path.join(self.folder, "current"),
            self.name,
            _masked(" ".join(self.choice.packages)),
        )
        return {"before": shown(self.link("current")), "after": after}

    def apply(self) -> None:
        """Build what is missing, then switch.

        :raises EnvironmentFault: nothing was switched, and nothing new is left.
        """
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.trusted import intruder

        why = intruder(self.folder)
        if why:
            raise EnvironmentFault(
                "%s cannot be built: %s, and root would run programs there. Declare a folder of root's as root, or run "
                "this as that user" % (self.path, why)
            )
        self.build()
        self.switch()

    def undo(self) -> None:
        if self._before is not None:
            for name, target in zip(("current", "previous"), self._before):
                self._point(name, target)
            self._before = None
        if self._made:
            _remove(self.path)
            self._made = False
            for folder in (self.folder, os.path.dirname(self.folder)):
                _remove_empty(folder)

    # --- by itself

    def built(self) -> bool:
        """Whether the environment is whole, in use or not. Reads one file."""
        return read_record(self.path).get("hash") == self.asked and os.path.exists(self.python)

    def record(self) -> Dict[str, Any]:
        """What is known of the built environment: ``packages`` (name → version), ``device``, ``asked``; or nothing."""
        return read_record(self.path)

    def link(self, name: str) -> Optional[str]:
        """Name of the environment that ``current`` or ``previous`` points to."""
        try:
            return os.readlink(os.path.join(self.folder, name))
        except OSError:
            return None

    def build(self) -> None:
        """Build and test the environment beside the one in use, unless it is there.

        :raises EnvironmentFault: it cannot be built or does not work; nothing of it is left.
        """
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock

        if self.built():
            return
        umask = os.umask(0o022)
        try:
            os.makedirs(self.folder, exist_ok=True)
            with lock.held("environments of " + self.folder, self.sources.timeout):
                if not self.built():  # by the one that was waited for
                    self._build_whole()
        except lock.LockError as error:
            self.undo()
            raise EnvironmentFault(str(error)) from None
        except OSError as error:
            self.undo()
            raise EnvironmentFault("%s cannot be built: %s" % (self.path, error)) from None
        except EnvironmentFault:
            self.undo()
            raise
        finally:
            os.umask(umask)

    def switch(self) -> None:
        """Have ``current`` point to this environment, and ``previous`` to the one before."""
        current, previous = self.link("current"), self.link("previous")
        if current == self.name:
            return
        self._before = (current, previous)
        self._point("previous", current)
        self._point("current", self.name)

    def prune(self, units: str = UNITS) -> List[str]:
        """After a proven switch, remove all environments but the current and the previous one, and those that a unit
        names; each takes gigabytes. Without a switch nothing is removed.

        :returns: the names of those removed.
        """
        if self._before is None:
            return []
        kept = {self.link("current"), self.link("previous")}
        named = _texts(units)
        removed = []
        for name in self._environments():
            path = os.path.join(self.folder, name)
            if name not in kept and not any(path in text for text in named):
                _remove(path)
                removed.append(name)
        return removed

    def leftovers(self) -> List[str]:
        """Names of what runs that were killed have left, and none is at work on."""
        links = [name for name in (_NEW % "current", _NEW % "previous") if os.path.lexists(self._in(name))]
        left = [name for name in self._environments() if self._outlived(name)]
        return links + [name for name in left if _free(self._in(name)) and not _writer(self._in(name))]

    def tidy(self) -> List[str]:
        """Remove :meth:`leftovers`.

        :returns: the names of those removed.
        """
        removed = []
        for name in self.leftovers():
            path = self._in(name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                with _held(path):
                    _remove(path)
            removed.append(name)
        return removed

    # --- building

    def _in(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _outlived(self, name: str) -> bool:
        """Whether an environment is not whole and nobody needs it; one in use comes back if its rebuild fails."""
        kept = (self.link("current"), self.link("previous"))
        if name.startswith(".") and name.endswith(_ASIDE):
            name = name[1 : -len(_ASIDE)]
            return name not in kept or bool(read_record(self._in(name)))
        return name not in kept and not read_record(self._in(name))

    def _environments(self) -> List[str]:
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        return [
            name
            for name in names
            if os.path.isdir(os.path.join(self.folder, name)) and not os.path.islink(os.path.join(self.folder, name))
        ]

    def _build_whole(self) -> None:
        """Build, or leave everything as it was."""
        for name in self._environments():  # of runs that were killed
            if self._outlived(name):
                _await_idle(self._in(name), self.sources.timeout)
                _remove(self._in(name))
        aside = self._in(".%s%s" % (self.name, _ASIDE))
        if os.path.isdir(self.path):  # in use, but someone has damaged it
            if os.path.isdir(aside):  # and the rebuild was killed
                _await_idle(self.path, self.sources.timeout)
                _remove(self.path)
            else:
                os.rename(self.path, aside)
        self._made = True
        try:
            os.mkdir(self.path, 0o700)
            with _held(self.path):
                self._build()
        except BaseException:
            _remove(self.path)
            if os.path.isdir(aside):
                os.rename(aside, self.path)
                self._made = False
            raise
        _remove(aside)

    def _build(self) -> None:
        sources = self.sources
        uv = find_uv(sources.installer)
        if uv:
            self._run([uv, "venv", "--quiet", "--python", self.interpreter, self.path])
        else:
            self._run([self.interpreter, "-m", "venv", self.path], hint=_venv_hint)
        self._write(_CONSTRAINTS, self.choice.constraints)
        wheels = sources.wheels
        if wheels and not os.path.isdir(wheels):
            wheels = os.path.join(self.path, ".wheels")
            _unpack(sources.wheels or "", wheels)
        install = self._installer(uv, wheels)
        packages = list(self.choice.packages)
        if self.choice.without:
            main, packages = packages[0], packages[1:]
            self._run([*install, "--no-deps", *self._named([main])], hint=_install_hint)
            packages = [*self._requirements(install), *packages]
        if packages:
            # Compiled once, as pip does anyway: the user of a service may not write here, and would at every start.
            compiled = ["--compile-bytecode"] if uv else []
            self._run([*install, *compiled, *self._named(packages)], hint=_install_hint)
        if wheels != sources.wheels:
            shutil.rmtree(wheels or "")
        for name in (_CONSTRAINTS, _REQUIREMENTS):
            if os.path.exists(self._inside(name)):
                os.unlink(self._inside(name))
        self._test()

    def _inside(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _write(self, name: str, lines: Sequence[str]) -> str:
        """A file for the installer that only root can read: there may be passwords in it."""
        path = self._inside(name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
        return path

    def _named(self, packages: Sequence[str]) -> List[str]:
        """Packages as arguments, which everybody can read; in a file where a password is among them."""
        if all(_masked(package) == package for package in packages):
            return list(packages)
        return ["--requirement", self._write(_REQUIREMENTS, packages)]

    def _installer(self, uv: Optional[str], wheels: Optional[str]) -> List[str]:
        if uv:
            words = [uv, "pip", "install", "--quiet", "--python", self.python, "--index-strategy", "unsafe-best-match"]
        else:
            words = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        words += ["--constraint", self._inside(_CONSTRAINTS)]
        return [*words, "--no-index", "--find-links", wheels] if wheels else words

    def _indexes(self) -> Dict[str, str]:
        """Where to look, as variables: everybody can read a program's arguments."""
        sources = self.sources
        extra = sources.extra_indexes or (() if sources.index else self.choice.indexes)
        found: Dict[str, str] = {}
        if sources.index:
            found.update(PIP_INDEX_URL=sources.index, UV_DEFAULT_INDEX=sources.index)
        if extra or sources.index:
            found.update(PIP_EXTRA_INDEX_URL=" ".join(extra), UV_INDEX=" ".join(extra))
        return found

    def _requirements(self, install: Sequence[str]) -> List[str]:
        """Requirements of the first package, which is installed alone, less those left out."""
        from ansible_collections.gpufleet.inference.plugins.module_utils.programs import requirements_of
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of

        name = self.choice.packages[0]
        if _has_uv(install):  # its environments have no pip, and so nothing that reads requirements
            self._run([*install, "packaging"], hint=_install_hint)
        program = source_of(requirements_of)
        said = self._run([self.python, "-c", program, _dist_name(name), *self.choice.without])
        return json.loads(said.rstrip("\n").rpartition("\n")[2])

    def _test(self) -> None:
        from ansible_collections.gpufleet.inference.plugins.module_utils.programs import environment_check
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of

        choice = self.choice
        device = "cpu" if choice.cuda == "cpu" else "cuda"
        names = IMPORTS.get(choice.engine, (choice.engine,))
        said = self._run([self.python, "-c", source_of(environment_check), device, *names], hint=_test_hint)
        record = json.loads(said.rstrip("\n").rpartition("\n")[2])
        record.update(hash=self.asked, asked=_as_asked(choice, self.interpreter), python=self.interpreter)
        beside = os.path.join(self.path, "." + MARKER)
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(record, file, sort_keys=True, indent=1)
        os.chmod(self.path, 0o755)
        files.sync_all(self.path)
        os.rename(beside, os.path.join(self.path, MARKER))
        files.sync_folder(self.path)

    def _run(self, command: Sequence[str], hint: Any = None) -> str:
        """Standard output of a program; EnvironmentFault with its last words when it fails."""
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.users import home

        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA"))
        }
        environment.update(self._indexes())
        # uv: the host's certificates, and no interpreter from elsewhere
        environment.update(UV_SYSTEM_CERTS="1", UV_NATIVE_TLS="1", UV_PYTHON_DOWNLOADS="never", UV_NO_CONFIG="1")
        environment["HOME"] = home()
        try:
            done = subprocess.run(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                preexec_fn=_end_with_parent,
                timeout=self.sources.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(
                "%s: did not end within %d s (timeout)" % (_shown(command), self.sources.timeout)
            ) from None
        except OSError as error:
            raise EnvironmentFault("%s: %s" % (_shown(command), error.strerror)) from None
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        words = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace")
        words = _masked(words)
        last = [line.strip() for line in words.splitlines() if line.strip()][-LAST_LINES:]
        advice = hint(words, self) if hint else ""
        raise EnvironmentFault(
            "%s: exit status %d: %s%s" % (_shown(command), done.returncode, " | ".join(last), advice)
        )

    def _point(self, name: str, target: Optional[str]) -> None:
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files

        path = os.path.join(self.folder, name)
        if target is None:
            if os.path.islink(path):
                os.unlink(path)
            return
        beside = self._in(_NEW % name)
        if os.path.lexists(beside):
            os.unlink(beside)
        os.symlink(target, beside)
        os.replace(beside, path)
        files.sync_folder(self.folder)


def asked(choice: Choice, interpreter: str) -> str:
    """The hash of what is asked for: its packages and constraints and the interpreter's real path, not their place."""
    text = json.dumps(_as_asked(choice, interpreter), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_asked(choice: Choice, interpreter: str) -> Dict[str, Any]:
    return {
        "engine": choice.engine,
        "version": choice.version,
        "cuda": choice.cuda,
        "packages": [_masked(package) for package in choice.packages],
        "without": list(choice.without),
        "constraints": [_masked(line) for line in choice.constraints],
        "interpreter": interpreter,
    }


def read_record(path: str) -> Dict[str, Any]:
    """What was written when an environment was whole; nothing when it is not."""
    try:
        with open(os.path.join(path, MARKER), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def find_interpreter(wanted: str) -> str:
    """Real path of an interpreter given as a path, a name (``python3.12``) or a version (``3.12``).

    :raises EnvironmentFault: there is none.
    """
    name = "python" + wanted if wanted[:1].isdigit() else wanted
    found = name if os.path.isabs(name) else shutil.which(name, path=_search_path())
    if not found or not os.access(found, os.X_OK):
        raise EnvironmentFault(
            "there is no interpreter %s on this host; there are: %s. Install it, or name another one (interpreter)"
            % (name, ", ".join(_interpreters()) or "none")
        )
    return os.path.realpath(found)


def python_version(interpreter: str) -> Tuple[int, int]:
    """Version of an interpreter, from its name where that tells, else from itself.

    :raises EnvironmentFault: it does not run.
    """
    name = os.path.basename(interpreter)
    major, dot, minor = name[len("python") :].partition(".")
    if name.startswith("python") and dot and major.isdigit() and minor.isdigit():
        return int(major), int(minor)
    if os.path.realpath(sys.executable) == interpreter:
        return sys.version_info[0], sys.version_info[1]
    program = "import sys; print('%d %d' % sys.version_info[:2])"
    try:
        said = subprocess.check_output([interpreter, "-c", program], stdin=subprocess.DEVNULL, timeout=60)
        numbers = [int(number) for number in said.split()]
        return numbers[0], numbers[1]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise EnvironmentFault("%s is no Python interpreter that runs: %s" % (interpreter, error)) from None


def find_uv(installer: str) -> Optional[str]:
    """Path of uv, or None when pip is to be used.

    :raises EnvironmentFault: uv is asked for and is not there.
    """
    found = shutil.which("uv", path=_search_path()) if installer != "pip" else None
    if installer == "uv" and not found:
        raise EnvironmentFault("installer is uv, and there is no uv on this host (looked in %s)" % _search_path())
    return found


def _search_path() -> str:
    # sudo and ssh may leave out where people install
    return ":".join(["/usr/local/bin", "/usr/bin", "/bin", "/root/.local/bin", os.environ.get("PATH", "")]).rstrip(":")


def _interpreters() -> List[str]:
    found: Set[str] = set()
    for folder in _search_path().split(":"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        found.update(os.path.join(folder, name) for name in names if name.startswith("python3.") and name[8:].isdigit())
    return sorted(found)


def _has_uv(install: Sequence[str]) -> bool:
    return os.path.basename(install[0]) == "uv"


def _dist_name(requirement: str) -> str:
    """Name of the distribution that a requirement installs."""
    bare = requirement.split("@")[0].strip()
    for sign in "<>=!~;[ ":
        bare = bare.split(sign)[0]
    base = os.path.basename(bare)
    return base.split("-")[0] if base.endswith(".whl") else base


def _shown(command: Sequence[str]) -> str:
    """A command for a message, without a program's text."""
    words = [word for word in command if "\n" not in word]
    return _masked(" ".join(words[:12] + ["…"] * (len(words) > 12)))


def _masked(text: str) -> str:
    """Without the passwords of URLs."""
    import re

    return re.sub(r"(://)[^/@\s]*@", r"\1***@", text)


def _end_with_parent() -> None:
    """In a child before it is executed: it must not go on writing when the one that waits for it is killed."""
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _venv_hint(words: str, step: EnvironmentStep) -> str:
    if "ensurepip" in words or "No module named venv" in words:
        return ". Install the venv module of %s (Debian: python3-venv), or uv" % step.interpreter
    return ""


def _install_hint(words: str, step: EnvironmentStep) -> str:
    if "No space left" in words or os.strerror(errno.ENOSPC) in words:
        free = shutil.disk_usage(step.folder).free >> 20
        return ". Free space on the file system of %s (%d MiB are free now)" % (step.folder, free)
    if step.sources.wheels:
        return ". The wheels come from %s alone (wheels): put there what is missing" % step.sources.wheels
    return ""


def _test_hint(words: str, step: EnvironmentStep) -> str:
    for library, package in LIBRARIES.items():
        if library in words:
            return ". Install the host's package with %s (%s)" % (library, package)
    return ". The new environment does not work on this host"


def _await_idle(path: str, timeout: float) -> None:
    """Wait until no program of a killed run writes there any more: children end with it, but theirs do not.

    :raises EnvironmentFault: one goes on.
    """
    until = time.monotonic() + timeout
    while True:
        found = _writer(path)
        if not found:
            return
        if time.monotonic() > until:
            raise EnvironmentFault(
                "%s is left of a run that was killed, and process %s still works there; end it first" % (path, found)
            )
        # processes of others end without a word
        time.sleep(0.2)


def _writer(path: str) -> str:
    """A process that has something of an environment among its arguments, if there is one."""
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and _names(pid, os.fsencode(path) + b"/")]
    return pids[0] if pids else ""


def _names(pid: str, path: bytes) -> bool:
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            return path in file.read()
    except OSError:
        return False


def _unpack(archive: str, folder: str) -> None:
    """The wheels of a tar, whatever folders they are in there.

    :raises EnvironmentFault: it cannot be read.
    """
    import tarfile

    os.mkdir(folder)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isfile() and member.name.endswith(".whl") else None
                if source:
                    with open(os.path.join(folder, os.path.basename(member.name)), "wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise EnvironmentFault("wheels: %s cannot be unpacked: %s" % (archive, error)) from None


def _texts(folder: str) -> List[str]:
    """The text of every unit file and drop-in below a folder."""
    found = []
    for here, _folders, names in os.walk(folder):
        for name in names:
            try:
                with open(os.path.join(here, name), encoding="utf-8", errors="replace") as file:
                    found.append(file.read())
            except OSError:
                continue
    return found


def _remove(path: str) -> None:
    """Remove an environment, if there is one: first what says that it is whole, as a kill may leave the rest."""
    from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files

    try:
        os.unlink(os.path.join(path, MARKER))
        files.sync_folder(path)
    except OSError:
        pass
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(path: str) -> Iterator[None]:
    """While an environment is built, or removed, no other run takes it for left over; only root can enter it."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _free(path: str) -> bool:
    try:
        with _held(path):
            return True
    except OSError:
        return False


def _remove_empty(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        pass  # it has something of someone else's, or is gone
