# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vLLM says before it ends: lines of its log in, the cause and what to do out. Pure.

Held to recorded failures of 0.32.0 (tests/unit/fixtures/vllm/failures.json).
"""

from __future__ import annotations

import re
from typing import Sequence, Tuple

from ..serving.model import Cause, CauseTable, known_cause
from ..toolbox.text import printable

_PREFIX = re.compile(
    r"\A(?:\([A-Za-z_0-9 =-]+ pid=\d+\) )?"
    r"(?:(INFO|WARNING|ERROR|CRITICAL|DEBUG) [\d-]+ [\d:]+ \[[\w./-]+:\d+\] ?)?"
)
_ERROR = re.compile(r"\A[\w.]+(Error|Exception|Interrupt|Exit)(:|\Z)|\A\S+: error: |\AValue error, ")
_INVALID = re.compile(r"\A[\w.]+ValidationError: \d+ validation error")
"""Pydantic's line that only counts; the next one says what is wrong."""
_WIDTH = 500
"""Characters of a line; a process can log megabytes."""

_CAUSES: CauseTable = (
    (
        "Free memory on device",
        "out_of_memory",
        "others hold the memory that it is to take: see in nvidia-smi who, or lower gpu_memory_utilization",
    ),
    (
        "No available memory for the cache blocks",
        "out_of_memory",
        "the weights leave nothing for the cache: more GPUs, a quantised model, or a higher gpu_memory_utilization",
    ),
    (
        "To serve at least one request with the model",  # up to 0.20 it says "models's"
        "out_of_memory",
        "lower max_model_len, or give it more memory (gpu_memory_utilization, more GPUs, kv_cache_dtype: fp8)",
    ),
    ("CUDA out of memory", "out_of_memory", "lower gpu_memory_utilization, max_num_seqs or max_num_batched_tokens"),
    ("OutOfMemoryError", "out_of_memory", "lower gpu_memory_utilization, max_num_seqs or max_num_batched_tokens"),
    ("Address already in use", "port_taken", "another process listens there: stop it, or choose another port"),
    ("is greater than the derived max_model_len", "bad_config", "lower max_model_len"),
    ("must be divisible by tensor parallel size", "bad_config", "choose another tensor_parallel_size, or auto"),
    ("unrecognized arguments", "bad_config", "this version has no such option: correct extra_args"),
    ("invalid choice", "bad_config", "this version does not know the value"),
    ("Repo id must be in the form", "model_missing", "there is no such directory or model: correct model"),
    ("is not a local folder and is not a valid model identifier", "model_missing", "correct model, or set hf_token"),
    ("We couldn't connect to", "model_missing", "the model is not in the cache and its hub is not reached"),
    ("gated repo", "model_missing", "the model needs a token: set hf_token"),
    ("Cannot find any model weights", "model_missing", "its directory has no weights: download it again"),
    ("SafetensorError", "load_failed", "a file of the weights is damaged or cut short: download the model again"),
    (
        "Failed to infer device type",
        "cpu_fallback",
        "vLLM sees no GPU: driver, device nodes, or a wheel for another one",
    ),
    ("No CUDA GPUs are available", "cpu_fallback", "vLLM sees no GPU: look at visible_devices and the driver"),
    ("is gone: all hosts of this model end", "peer_lost", "its own result says why"),
    ("No module named", "crash_loop", "the environment is incomplete: build it again"),
    (
        "provided PTX was compiled with an unsupported toolchain",
        "crash_loop",
        "the driver is older than the CUDA of the wheel: update the driver, or declare a vllm_cuda that it runs",
    ),
    (
        "no kernel image is available",
        "crash_loop",
        "the wheel has no code for this GPU's compute capability: declare another vllm_version",
    ),
)

_CONSEQUENCES: CauseTable = (
    ("died unexpectedly, shutting down executor", "crash_loop", "the journal of the host with that rank may say why"),
    ("Executor failed", "crash_loop", "the journal may say why"),
    ("EngineCore encountered an issue", "crash_loop", "the journal may say why"),
    ("WorkerProc initialization failed", "crash_loop", "the cause stands above it in the journal"),
    ("Engine core initialization failed", "crash_loop", "the cause stands above it in the journal"),
)
"""What one process says of another that has failed; the other one's own words are the cause."""


def bare(line: str) -> str:
    """A line without the process, level, time and place before it, and without what no terminal should get."""
    return _split(line)[1].strip()


def _split(line: str) -> Tuple[str, str]:
    """The level of a line, if it has one, and its text, still indented."""
    line = line[: 2 * _WIDTH]
    prefix = _PREFIX.match(line)
    text = line[prefix.end() :] if prefix else line
    return (prefix.group(1) or "") if prefix else "", printable(text)[:_WIDTH]


def last_words(lines: Sequence[str]) -> Cause:
    """Why a server ended, out of what it logged, oldest first; an empty line when nothing explains it.

    The first exception is the cause: what other processes, and handlers around it, say of it comes later.
    """
    split = [_split(line) for line in lines]
    said = [text.strip() for _level, text in split]
    serious = [text for level, text in split if level not in ("INFO", "WARNING", "DEBUG")]
    known = known_cause(_CAUSES, serious)
    if known:
        return known
    for number, text in enumerate(serious):
        if _ERROR.search(text) and not any(words in text for words, _verdict, _advice in _CONSEQUENCES):
            counted = _INVALID.match(text) and serious[number + 1 : number + 2]
            return Cause("crash_loop", (counted[0] if counted else text).strip(), "")
    last = Cause("crash_loop", next((line for line in reversed(said) if line), ""))
    return known_cause(_CONSEQUENCES, serious) or last
