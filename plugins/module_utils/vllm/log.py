# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vLLM says before it ends: lines of its log in, the cause and what to do out. Pure.

Held to recorded failures of 0.32.0 (tests/unit/fixtures/vllm/failures.json, ray.json).
"""

from __future__ import annotations

import re
from typing import NamedTuple, Sequence, Tuple

_PREFIX = re.compile(
    r"\A(?:(?:\x1b\[\d+m)?\(\w+(?: pid=\d+, ip=[\w.:]+| pid=\d+)?\)(?:\x1b\[0m)? )?"  # of Ray, for another process
    r"(?:\([A-Za-z_0-9 -]+ pid=\d+\) )?(?:(?:INFO|WARNING|ERROR|CRITICAL|DEBUG) [\d-]+ [\d:]+ \[[\w./-]+:\d+\] ?)?"
)
_ERROR = re.compile(r"\A[\w.]*(Error|Exception|Interrupt)\b|error: |Value error, ")

_CAUSES: Tuple[Tuple[str, str, str], ...] = (
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
        "To serve at least one request with the model's max seq len",
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
    (
        "Failed to infer device type",
        "cpu_fallback",
        "vLLM sees no GPU: driver, device nodes, or a wheel for another one",
    ),
    ("No CUDA GPUs are available", "cpu_fallback", "vLLM sees no GPU: look at visible_devices and the driver"),
    (
        "The current node timed out during startup",
        "port_taken",
        "another process has a port of Ray's, three to five above master_port: choose another master_port",
    ),
    ("is gone: all hosts of this model end", "peer_lost", "its own result says why"),
    ("died unexpectedly, shutting down executor", "crash_loop", "the journal of the host with that rank may say why"),
    ("Engine core initialization failed", "crash_loop", "the cause stands above it in the journal"),
    ("No module named", "crash_loop", "the environment is not whole: build it anew"),
)


class LastWords(NamedTuple):
    verdict: str
    line: str
    advice: str

    @property
    def sentence(self) -> str:
        return self.line + (": " + self.advice if self.advice else "")


def bare(line: str) -> str:
    """A line without the process, level, time and place before it."""
    return _PREFIX.sub("", line).strip()


def last_words(lines: Sequence[str]) -> LastWords:
    """Why a server ended, out of what it logged, oldest first; an empty line when nothing tells."""
    said = [bare(line) for line in lines]
    for words, verdict, advice in _CAUSES:
        for line in reversed(said):
            if words in line:
                return LastWords(verdict, line, advice)
    for line in reversed(said):
        if _ERROR.search(line) and not line.startswith("File "):
            return LastWords("crash_loop", line, "")
    return LastWords("crash_loop", next((line for line in reversed(said) if line), ""), "")
