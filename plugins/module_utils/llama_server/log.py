# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a llama-server logs before it ends: lines in, the cause and what to do out. Pure.

Held to recorded failures of b10488 (tests/unit/fixtures/llama_server/failures.json).
"""

from __future__ import annotations

import re
from typing import Sequence

from ..serving.model import Cause, CauseTable, known_cause
from ..toolbox.text import printable

_PREFIX = re.compile(r"\A\d+\.\d\d\.\d{3}\.\d{3} ([A-Z]) ")
_CAUSES: CauseTable = (
    ("invalid argument:", "bad_config", "this version has no such argument: correct extra_args"),
    ("error while handling", "bad_config", "correct the option or variable that it names"),
    ("V cache quantization requires", "bad_config", "set extra_args: {flash-attn: 'on'}, or another cache_type_v"),
    ("built without SSL support", "bad_config", "build llama.cpp with LLAMA_OPENSSL=ON, or use a proxy for TLS"),
    (
        "couldn't bind HTTP server socket",
        "port_taken",
        "another process listens there, or the address is not this host's",
    ),
    ("failed to open GGUF file", "model_missing", "correct model, or let the service's user read the file"),
    ("model is corrupted or incomplete", "load_failed", "the file is damaged or cut short: download it again"),
    ("invalid magic characters", "load_failed", "model is not a GGUF file"),
    ("unknown model architecture", "load_failed", "this llama.cpp is older than the model: update it"),
    ("cudaMalloc failed: out of memory", "out_of_memory", "lower ctx_size, parallel or n_gpu_layers, or use more GPUs"),
    ("std::bad_alloc", "out_of_memory", "lower ctx_size or parallel"),
    ("failed to initialize CUDA", "cpu_fallback", "check the driver, the device nodes and visible_devices"),
    (
        "cannot open shared object file",
        "crash_loop",
        "a library of the program is missing: install all files of the build",
    ),
)


def explain(lines: Sequence[str]) -> Cause:
    """Why a server ended, from the last lines that it logged, oldest first."""
    said = [(_PREFIX.match(line), printable(line)) for line in lines]
    bare = [(text[found.end() :] if found else text).strip()[:500] for found, text in said]
    errors = [text for (found, _text), text in zip(said, bare) if found and found[1] == "E"]
    first = (errors or [text for text in reversed(bare) if text] or [""])[0]
    return known_cause(_CAUSES, bare) or Cause("crash_loop", first)
