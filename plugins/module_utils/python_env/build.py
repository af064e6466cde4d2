# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds one Python environment with pip or uv, tests it, and writes its record once it is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..toolbox import record
from ..toolbox.errors import Failed
from ..toolbox.fields import dataclass
from . import compat
from .interpreters import find_uv
from .wheels import Choice

MARKER = "gpufleet.json"
_CONSTRAINTS, _REQUIREMENTS = ".constraints.txt", ".requirements.txt"
LAST_LINES = 8  # of a failed program's output, for the message

#: Libraries that wheels leave to the host, and their packages.
LIBRARIES = {"libnuma.so.1": "Debian: libnuma1; Red Hat: numactl-libs"}

#: What must be importable in the environment of an engine.
IMPORTS = {
    "vllm": ("vllm", "vllm._custom_ops"),
    "torch": ("torch",),
    "open_webui": ("open_webui", "fastapi", "chromadb"),
}

#: Engines without PyTorch, so without arithmetic that could be tried.
PLAIN = ("open_webui",)


@dataclass
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


class Builder:
    """Builds an environment in a new, empty folder.

    :param interpreter: its real path.
    :param path: the folder.
    """

    def __init__(self, choice: Choice, interpreter: str, sources: Sources, path: str) -> None:
        self.choice = choice
        self.interpreter = interpreter
        self.sources = sources
        self.path = path
        self.python = os.path.join(path, "bin", "python")

    def build(self) -> None:
        """:raises Failed: it cannot be built or does not work; the caller removes what was built."""
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
        if self.choice.compat:
            self._add_compat(self.choice.compat)
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
        if all(masked(package) == package for package in packages):
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
        from ..programs import requirements_of
        from ..toolbox.source import source_of

        name = self.choice.packages[0]
        if os.path.basename(install[0]) == "uv":  # its environments have no pip, and so nothing that reads requirements
            self._run([*install, "packaging"], hint=_install_hint)
        program = source_of(requirements_of)
        said = self._run([self.python, "-c", program, _dist_name(name), *self.choice.without])
        return json.loads(said.rstrip("\n").rpartition("\n")[2])

    def _add_compat(self, folder: str) -> None:
        from ..toolbox.trusted import intruder

        why = intruder(folder)
        if why:
            raise Failed("%s: %s, and root would load libraries from there" % (folder, why))
        os.symlink(folder, self._inside(compat.LINK))

    def _test(self) -> None:
        from ..programs import environment_check
        from ..toolbox import files
        from ..toolbox.source import source_of

        choice = self.choice
        device = "none" if choice.engine in PLAIN else "cpu" if choice.cuda == "cpu" else "cuda"
        names = IMPORTS.get(choice.engine, (choice.engine,))
        said = self._run([self.python, "-c", source_of(environment_check), device, *names], hint=_test_hint)
        found = json.loads(said.rstrip("\n").rpartition("\n")[2])
        found.update(
            hash=asked(choice, self.interpreter), asked=_as_asked(choice, self.interpreter), python=self.interpreter
        )
        os.chmod(self.path, 0o755)
        files.sync_all(self.path)
        record.write(os.path.join(self.path, MARKER), found)

    def _run(self, command: Sequence[str], hint: Any = None) -> str:
        """Standard output of a program; Failed with its last words when it fails."""
        from ..toolbox.command import end_with_parent
        from ..toolbox.users import home

        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA"))
        }
        environment.update(self._indexes())
        # uv: the host's certificates, and no interpreter from elsewhere
        environment.update(UV_SYSTEM_CERTS="1", UV_NATIVE_TLS="1", UV_PYTHON_DOWNLOADS="never", UV_NO_CONFIG="1")
        environment["HOME"] = home()
        if os.path.lexists(self._inside(compat.LINK)):
            environment["LD_LIBRARY_PATH"] = self._inside(compat.LINK)
        try:
            done = subprocess.run(
                list(command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                cwd="/",
                preexec_fn=end_with_parent,
                timeout=self.sources.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed("%s: did not end within %d s (timeout)" % (_shown(command), self.sources.timeout)) from None
        except OSError as error:
            raise Failed("%s: %s" % (_shown(command), error.strerror)) from None
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        words = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace")
        words = masked(words)
        last = [line.strip() for line in words.splitlines() if line.strip()][-LAST_LINES:]
        advice = hint(words, self) if hint else ""
        raise Failed("%s: exit status %d: %s%s" % (_shown(command), done.returncode, " | ".join(last), advice))


def asked(choice: Choice, interpreter: str) -> str:
    """The hash of what is asked for: its packages and constraints and the interpreter's real path, not their place."""
    text = json.dumps(_as_asked(choice, interpreter), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_asked(choice: Choice, interpreter: str) -> Dict[str, Any]:
    libraries = {"compat": choice.compat} if choice.compat else {}
    return {
        **libraries,
        "engine": choice.engine,
        "version": choice.version,
        "cuda": choice.cuda,
        "packages": [masked(package) for package in choice.packages],
        "without": list(choice.without),
        "constraints": [masked(line) for line in choice.constraints],
        "interpreter": interpreter,
    }


def read_record(path: str) -> Dict[str, Any]:
    """What was written when an environment was whole; nothing when it is not."""
    return record.read(os.path.join(path, MARKER))


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
    return masked(" ".join(words[:12] + ["…"] * (len(words) > 12)))


def masked(text: str) -> str:
    """Without the passwords of URLs."""
    import re

    return re.sub(r"(://)[^/@\s]*@", r"\1***@", text)


def _venv_hint(words: str, builder: Builder) -> str:
    if "ensurepip" in words or "No module named venv" in words:
        return ". Install the venv module of %s (Debian: python3-venv), or uv" % builder.interpreter
    return ""


def _install_hint(words: str, builder: Builder) -> str:
    if "No space left" in words or os.strerror(errno.ENOSPC) in words:
        folder = os.path.dirname(builder.path)
        free = shutil.disk_usage(folder).free >> 20
        return ". Free space on the file system of %s (%d MiB are free now)" % (folder, free)
    if builder.sources.wheels:
        return ". The wheels come from %s alone (wheels): put there what is missing" % builder.sources.wheels
    return ""


def _test_hint(words: str, builder: Builder) -> str:
    for library, package in LIBRARIES.items():
        if library in words:
            return ". Install the host's package with %s (%s)" % (library, package)
    if "no kernel image" in words:
        return ". It has no kernels for this GPU; builds with CUDA 13 have none before Turing. Choose another cuda"
    if builder.choice.compat:
        return ". It was tested with the libraries in %s, which only data centre GPUs support" % builder.choice.compat
    return ". The new environment does not work on this host"


def _unpack(archive: str, folder: str) -> None:
    """The wheels of a tar, whatever folders they are in there.

    :raises Failed: it cannot be read.
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
        raise Failed("wheels: %s cannot be unpacked: %s" % (archive, error)) from None
