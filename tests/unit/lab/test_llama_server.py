# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's llama-server: which GPUs it claims memory of, and that everything else is the real program's."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "lab/llama_server/llama-server"
UUIDS = ["GPU-a", "GPU-b", "GPU-c"]

loader = importlib.machinery.SourceFileLoader("lab_llama_server", str(PROGRAM))
double: Any = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
loader.exec_module(double)


@pytest.mark.parametrize(
    ("words", "environ", "claimed"),
    [
        ([], {}, UUIDS),
        (["-ngl", "99"], {}, UUIDS),
        (["-ngl", "0"], {}, []),
        (["--device", "none"], {}, []),
        ([], {"LLAMA_ARG_DEVICE": "none"}, []),
        ([], {"LLAMA_ARG_N_GPU_LAYERS": "0"}, []),
        (["-ngl", "5"], {"LLAMA_ARG_N_GPU_LAYERS": "0"}, UUIDS),
        (["-sm", "none", "-mg", "1"], {}, ["GPU-b"]),
        ([], {"LLAMA_ARG_SPLIT_MODE": "none"}, ["GPU-a"]),
    ],
)
def test_the_gpus_that_it_uses(words: List[str], environ: Dict[str, str], claimed: List[str]) -> None:
    shares = double.shares(double.told(words, environ), UUIDS, 300)
    assert list(shares) == claimed
    assert all(size == double.CONTEXT + 300 // len(claimed) for size in shares.values())


@pytest.mark.parametrize(
    ("value", "left"),
    [(None, UUIDS), ("2,0", ["GPU-c", "GPU-a"]), ("GPU-b", ["GPU-b"]), ("7", []), ("0,7,1", ["GPU-a"]), ("", [])],
)
def test_visible_devices_as_cuda_reads_them(value: Any, left: List[str]) -> None:
    assert double.visible(value, UUIDS) == left


def test_the_real_program_has_its_arguments_its_process_and_its_words(tmp_path: Path) -> None:
    real = tmp_path / "cpu/llama-server"
    real.parent.mkdir()
    real.write_text('#!/bin/sh\necho "$$ $*"; exit 7\n')
    real.chmod(0o755)
    (tmp_path / "llama-server").write_bytes(PROGRAM.read_bytes())
    (tmp_path / "llama-server").chmod(0o755)
    for words in (["--help"], ["--version"]):
        process = subprocess.Popen([str(tmp_path / "llama-server"), *words], stdout=subprocess.PIPE, text=True)
        said, _err = process.communicate(timeout=60)
        assert (said, process.returncode) == ("%d %s\n" % (process.pid, " ".join(words)), 7)
