# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make wheel-table`: writes plugins/module_utils/python_env/pypi.py from the package index that pip is configured for.

The result is reviewed as a diff. Of each wheel only its metadata and one small file are read, by HTTP range requests:
ten seconds in all. What no index has (builds outside PyPI, drivers) is in table.py, with its source.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename
from packaging.version import Version
from pip._internal.commands import create_command

TARGET = Path(__file__).resolve().parents[1] / "plugins/module_utils/python_env/pypi.py"
OLDEST = {"torch": Version("2.5"), "vllm": Version("0.8.5")}
"""What older releases need, this collection does not support."""

# MAIN_CUDA_VERSION in setup.py of the source distributions; later releases have it in vllm/envs.py.
VLLM_CUDA_BEFORE_0_11 = ((Version("0.9"), "cu128"), (Version("0.8"), "cu124"))

HEAD = '''# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wheels of each engine on PyPI. Written by ``make wheel-table`` from their metadata; data alone, newest first."""

from __future__ import annotations

from typing import NamedTuple, Tuple

Numbers = Tuple[int, int]


class Published(NamedTuple):
    """One release of an engine."""

    engine: str
    version: str
    cuda: str
    """The newest CUDA of what is built into its wheels; that of torch counts for vLLM, too."""
    python: Tuple[Numbers, Numbers]
    """The first Python that it runs on, and the first that it does not."""
    glibc: Tuple[Tuple[str, Numbers], ...]
    """Each machine that it has a wheel with CUDA for, and the oldest glibc there."""


# fmt: off
PUBLISHED: Tuple[Published, ...] = (
'''


class Remote(io.RawIOBase):
    """A file at a URL, of which only the parts are fetched that are read."""

    def __init__(self, session: Any, url: str) -> None:
        self.session, self.url, self.place = session, url, 0
        answer = session.head(url, allow_redirects=True)
        answer.raise_for_status()
        self.size = int(answer.headers["content-length"])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        last = min(self.place + len(buffer), self.size) - 1
        if last < self.place:
            return 0
        answer = self.session.get(self.url, headers={"Range": "bytes=%d-%d" % (self.place, last)})
        answer.raise_for_status()
        part = answer.content[: last + 1 - self.place]
        buffer[: len(part)] = part
        self.place += len(part)
        return len(part)


class Release(NamedTuple):
    """What the wheels of one version say."""

    metadata: Metadata
    cuda: str
    python: Tuple[Tuple[int, int], Tuple[int, int]]
    glibc: Dict[str, Tuple[int, int]]


def main() -> None:
    command = create_command("download")
    options, _words = command.parse_args([])
    index = Index(command._build_session(options), options.index_url)
    torch = {version: release(index, "torch", version, files) for version, files in index.releases("torch").items()}
    rows = [row("torch", version, found) for version, found in torch.items()]
    for version, files in index.releases("vllm").items():
        rows.append(row("vllm", version, on_torch(version, release(index, "vllm", version, files), torch)))
    TARGET.write_text(HEAD + "".join(rows) + ")\n# fmt: on\n", encoding="utf-8")


class Index:
    """A package index."""

    def __init__(self, session: Any, url: str) -> None:
        self.session, self.url = session, url.rstrip("/")

    def releases(self, engine: str) -> Dict[Version, List[Dict[str, Any]]]:
        """The wheels for Linux of each final release, newest first."""
        accepted = {"Accept": "application/vnd.pypi.simple.v1+json"}
        answer = self.session.get("%s/%s/" % (self.url, engine), headers=accepted)
        answer.raise_for_status()
        found: Dict[Version, List[Dict[str, Any]]] = defaultdict(list)
        for file in answer.json()["files"]:
            if not re.search(r"manylinux.*\.whl\Z", file["filename"]) or file.get("yanked"):
                continue
            version = parse_wheel_filename(file["filename"])[1]
            if version >= OLDEST[engine] and not version.is_prerelease and not version.is_postrelease:
                found[version].append(file)
        return dict(sorted(found.items(), reverse=True))

    def wheel(self, file: Dict[str, Any]) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BufferedReader(Remote(self.session, file["url"]), 1 << 20))


def release(index: Index, engine: str, version: Version, files: List[Dict[str, Any]]) -> Release:
    tags = [tag for file in files for tag in parse_wheel_filename(file["filename"])[3] if "t" not in tag.abi[2:]]
    intel = next(file for file in files if "x86_64" in file["filename"])
    with index.wheel(intel) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(wheel.read(name), validate=False)
        cuda = vllm_cuda(version, wheel) if engine == "vllm" else ""
    glibc: Dict[str, Tuple[int, int]] = {}
    for tag in tags:
        machine, numbers = platform(tag.platform)
        if engine == "vllm" or torch_cuda(metadata, machine):
            glibc[machine] = min(numbers, glibc.get(machine, numbers))
    cuda = cuda or torch_cuda(metadata, "x86_64") or ""
    return Release(metadata, cuda, pythons({tag.interpreter for tag in tags}, metadata.requires_python), glibc)


def platform(tag: str) -> Tuple[str, Tuple[int, int]]:
    """The machine of a platform tag, and its glibc (PEP 600; manylinux1 and its sisters by PEP 513 and 599)."""
    found = re.match(r"manylinux_(\d+)_(\d+)_(\w+)\Z", tag)
    if found:
        return found.group(3), (int(found.group(1)), int(found.group(2)))
    name, _underscore, machine = tag.partition("_")
    return machine, {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}[name]


def torch_cuda(metadata: Metadata, machine: str) -> Optional[str]:
    """The CUDA that a torch asks for on a machine; None of a build for the CPU."""
    for requirement in metadata.requires_dist or ():
        place = {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": machine, "extra": ""}
        if requirement.marker and not requirement.marker.evaluate(place):
            continue
        if requirement.name == "cuda-toolkit" or requirement.name.startswith("nvidia-cuda-runtime"):
            first, second = str(requirement.specifier).removeprefix("==").split(".")[:2]
            return "cu%s%s" % (first, second)
    return None


def vllm_cuda(version: Version, wheel: zipfile.ZipFile) -> str:
    found = re.search(r'VLLM_MAIN_CUDA_VERSION: str = "(\d+)\.(\d+)"', wheel.read("vllm/envs.py").decode())
    if found:
        return "cu%s%s" % found.groups()
    for first, cuda in VLLM_CUDA_BEFORE_0_11:
        if Version("0.11") > version >= first:
            return cuda
    raise SystemExit(
        "vllm %s: vllm/envs.py no longer has VLLM_MAIN_CUDA_VERSION; find out its CUDA another way" % version
    )


def on_torch(version: Version, found: Release, torch: Dict[Version, Release]) -> Release:
    """A vLLM with the torch that it pins: it runs where both do."""
    pinned = next(one for one in found.metadata.requires_dist or () if one.name == "torch")
    base = torch[Version(str(pinned.specifier).removeprefix("=="))]
    shared = found.glibc.keys() & base.glibc.keys()
    return found._replace(
        cuda=max(found.cuda, base.cuda),
        python=(max(found.python[0], base.python[0]), min(found.python[1], base.python[1])),
        glibc={machine: max(found.glibc[machine], base.glibc[machine]) for machine in shared},
    )


def pythons(tags: set, required: Optional[SpecifierSet]) -> Tuple[Tuple[int, int], Tuple[int, int]]:
    """The Pythons that the tags and Requires-Python have in common; ``cp38`` of a stable ABI is for all later ones."""
    named = {int(tag[3:]) for tag in tags if re.match(r"cp3\d+\Z", tag)}
    fitting = range(min(named), 40) if len(named) == 1 else sorted(named)
    known = [minor for minor in fitting if not required or required.contains("3.%d.99" % minor)]
    return (3, known[0]), (3, known[-1] + 1)


def row(engine: str, version: Version, found: Release) -> str:
    glibc = tuple(sorted(found.glibc.items()))
    values = engine, str(version), found.cuda, found.python, glibc
    return "    Published%s,\n" % repr(values).replace("'", '"')


if __name__ == "__main__":
    sys.exit(main())
