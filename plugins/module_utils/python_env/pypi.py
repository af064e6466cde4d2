# Copyright: (c) The gpufleet developers
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
    Published("torch", "2.15.0", "cu132", ((3, 11), (3, 16)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.14.1", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.14.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.13.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.12.1", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.12.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.11.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("torch", "2.10.0", "cu128", ((3, 10), (3, 15)), (("x86_64", (2, 28)),)),
    Published("torch", "2.9.1", "cu128", ((3, 10), (3, 15)), (("x86_64", (2, 28)),)),
    Published("torch", "2.9.0", "cu128", ((3, 10), (3, 15)), (("x86_64", (2, 28)),)),
    Published("torch", "2.8.0", "cu128", ((3, 9), (3, 14)), (("x86_64", (2, 28)),)),
    Published("torch", "2.7.1", "cu126", ((3, 9), (3, 14)), (("x86_64", (2, 28)),)),
    Published("torch", "2.7.0", "cu126", ((3, 9), (3, 14)), (("x86_64", (2, 28)),)),
    Published("torch", "2.6.0", "cu124", ((3, 9), (3, 14)), (("x86_64", (2, 5)),)),
    Published("torch", "2.5.1", "cu124", ((3, 9), (3, 14)), (("x86_64", (2, 5)),)),
    Published("torch", "2.5.0", "cu124", ((3, 9), (3, 14)), (("x86_64", (2, 5)),)),
    Published("vllm", "0.33.0", "cu130", ((3, 11), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.32.0", "cu130", ((3, 11), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.31.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.30.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.29.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.28.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.27.1", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.27.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.26.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.25.1", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.25.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.24.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.23.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.22.1", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.22.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.21.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 28)), ("x86_64", (2, 28)))),
    Published("vllm", "0.20.2", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 35)), ("x86_64", (2, 35)))),
    Published("vllm", "0.20.1", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 35)), ("x86_64", (2, 35)))),
    Published("vllm", "0.20.0", "cu130", ((3, 10), (3, 15)), (("aarch64", (2, 35)), ("x86_64", (2, 35)))),
    Published("vllm", "0.19.1", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.19.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.18.1", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.18.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.17.1", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.17.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.16.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.15.1", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.15.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.14.1", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.14.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.13.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.12.0", "cu129", ((3, 10), (3, 14)), (("x86_64", (2, 31)),)),
    Published("vllm", "0.11.2", "cu128", ((3, 10), (3, 14)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.11.1", "cu128", ((3, 10), (3, 14)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.11.0", "cu128", ((3, 9), (3, 14)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.10.2", "cu128", ((3, 9), (3, 14)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.10.1.1", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.10.1", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.10.0", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.9.2", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.9.1", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.9.0.1", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.9.0", "cu128", ((3, 9), (3, 13)), (("x86_64", (2, 28)),)),
    Published("vllm", "0.8.5", "cu124", ((3, 9), (3, 13)), (("x86_64", (2, 5)),)),
)
# fmt: on
