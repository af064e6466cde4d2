# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make wheel-table` reads out of wheels, from an index that holds a few made here."""

from __future__ import annotations

import io
import runpy
import zipfile
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[1] / "wheel_table.py"))

CUDA_ON_BOTH = "cuda-toolkit[cudart]==13.0.3; platform_system == 'Linux'"
CUDA_ON_INTEL = "nvidia-cuda-runtime-cu12==12.8.90; platform_system == 'Linux' and platform_machine == 'x86_64'"
TORCH = {
    "2.14.0": (CUDA_ON_BOTH, ("cp310-cp310", "cp311-cp311", "cp312-cp312", "cp313-cp313t")),
    "2.10.0": (CUDA_ON_INTEL, ("cp310-cp310", "cp311-cp311")),
    "2.6.0": (CUDA_ON_INTEL.replace("12.8.90", "12.4.127"), ("cp39-cp39", "cp310-cp310")),
}
VLLM = {
    "0.33.0": ("torch==2.14.0", ">=3.11,<3.15", 'VLLM_MAIN_CUDA_VERSION: str = "13.0"', "manylinux_2_31"),
    "0.19.1": ("torch==2.10.0", ">=3.10,<3.14", 'VLLM_MAIN_CUDA_VERSION: str = "12.9"', "manylinux_2_31"),
    "0.9.2": ("torch==2.6.0", ">=3.9,<3.13", "", "manylinux1"),
}


def wheel(requires, python, envs):
    lines = ["Metadata-Version: 2.1", "Name: engine", "Version: 1", "Requires-Dist: " + requires]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("big.so", b"x" * (3 << 20))
        archive.writestr("vllm/envs.py", envs)
        archive.writestr(
            "engine-1.dist-info/METADATA", "\n".join([*lines, *(["Requires-Python: " + python] if python else [])])
        )
    return content.getvalue()


class Answer:
    def __init__(self, content, found=None):
        self.content, self.found, self.headers = content, found, {"content-length": str(len(content))}

    def raise_for_status(self):
        pass

    def json(self):
        return self.found


class Session:
    """An index with the wheels above; counts the bytes that are fetched of them."""

    def __init__(self):
        self.wheels, self.fetched = {}, 0
        for version, (cuda, tags) in TORCH.items():
            for tag in tags:
                for machine in ("x86_64", "aarch64"):
                    self.wheels["torch-%s-%s-manylinux_2_28_%s.whl" % (version, tag, machine)] = wheel(cuda, "", "")
        for version, (torch, python, envs, tag) in VLLM.items():
            for machine in ("x86_64", "aarch64"):
                self.wheels["vllm-%s-cp38-abi3-%s_%s.whl" % (version, tag, machine)] = wheel(torch, python, envs)

    def head(self, url, **_more):
        return Answer(self.wheels[url])

    def get(self, url, headers):
        if url.startswith("index/"):
            engine = url.split("/")[1]
            names = [name for name in self.wheels if name.startswith(engine)]
            names += [
                engine + "-9.9-cp311-cp311-win_amd64.whl",
                engine + "-9.9rc1-cp311-cp311-manylinux_2_28_x86_64.whl",
            ]
            files = [{"filename": name, "url": name, "yanked": False} for name in names]
            gone = {"filename": engine + "-9.8-cp311-cp311-manylinux_2_28_x86_64.whl", "url": "", "yanked": "broken"}
            return Answer(b"", {"files": [*files, gone]})
        first, last = headers["Range"][len("bytes=") :].split("-")
        part = self.wheels[url][int(first) : int(last) + 1]
        self.fetched += len(part)
        return Answer(part)


@pytest.fixture
def found():
    """The releases of each engine, and the session that served them."""
    session = Session()
    index, release = TOOL["Index"](session, "index"), TOOL["release"]
    torch = {version: release(index, "torch", version, files) for version, files in index.releases("torch").items()}
    vllm = {
        version: TOOL["on_torch"](version, release(index, "vllm", version, files), torch)
        for version, files in index.releases("vllm").items()
    }
    return torch, vllm, session


def test_the_rows_of_torch(found):
    assert "".join(TOOL["row"]("torch", version, one) for version, one in found[0].items()) == (
        '    Published("torch", "2.14.0", "cu130", ((3, 10), (3, 13)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),\n'
        '    Published("torch", "2.10.0", "cu128", ((3, 10), (3, 12)), (("x86_64", (2, 28)),)),\n'
        '    Published("torch", "2.6.0", "cu124", ((3, 9), (3, 11)), (("x86_64", (2, 28)),)),\n'
    )


def test_a_vllm_runs_where_its_torch_runs_and_needs_the_newer_cuda_of_both(found):
    assert "".join(TOOL["row"]("vllm", version, one) for version, one in found[1].items()) == (
        '    Published("vllm", "0.33.0", "cu130", ((3, 11), (3, 13)), (("aarch64", (2, 31)), ("x86_64", (2, 31)))),\n'
        '    Published("vllm", "0.19.1", "cu129", ((3, 10), (3, 12)), (("x86_64", (2, 31)),)),\n'
        '    Published("vllm", "0.9.2", "cu128", ((3, 9), (3, 11)), (("x86_64", (2, 28)),)),\n'
    )


def test_most_of_a_wheel_is_not_fetched(found):
    session = found[2]
    opened = len(TORCH) + len(VLLM)
    assert 0 < session.fetched < opened * (2 << 20) < opened * (3 << 20)


def test_a_vllm_whose_cuda_nobody_knows_is_an_error():
    with (
        zipfile.ZipFile(io.BytesIO(wheel("torch==2.14.0", "", ""))) as archive,
        pytest.raises(SystemExit, match="find out its CUDA another way"),
    ):
        TOOL["vllm_cuda"](TOOL["Version"]("0.40.0"), archive)
