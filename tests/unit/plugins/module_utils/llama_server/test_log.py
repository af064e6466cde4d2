# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a server ended, held to recorded failures of a real one."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import log

FOUND = {
    "no-model": ("model_missing", "(No such file or directory)"),
    "cut-model": ("load_failed", "model is corrupted or incomplete"),
    "no-gguf": ("load_failed", "invalid magic characters"),
    "port-taken": ("port_taken", "couldn't bind HTTP server socket"),
    "no-address": ("port_taken", "hostname: 192.0.2.1"),
    "no-certificate": ("port_taken", "couldn't bind HTTP server socket"),
    "bad-flag": ("bad_config", "error: invalid argument: --no-such-flag"),
    "bad-value": ("bad_config", 'environment variable "LLAMA_ARG_CTX_SIZE": stoi'),
    "bad-cache-type": ("bad_config", "Unsupported cache type: f7"),
    "bad-argument": ("bad_config", 'argument "--rope-scale"'),
    "no-device": ("bad_config", "invalid device: CUDA7"),
    "no-key-file": ("bad_config", "failed to open file '/nosuch'"),
    "no-memory": ("out_of_memory", "std::bad_alloc"),
}


def test_recorded_failures(fixture_text):
    recorded = json.loads(fixture_text("llama_server/failures.json"))
    assert set(recorded) == set(FOUND)
    for name, (verdict, words) in FOUND.items():
        assert recorded[name]["status"] == 1
        cause = log.explain(recorded[name]["said"])
        assert cause.verdict == verdict and words in cause.line and cause.advice, (name, cause)


@pytest.mark.parametrize(
    ("lines", "verdict", "line"),
    [
        (["0.00.002.053 E srv          init: the server is built without SSL support"], "bad_config", "without SSL"),
        (["0.00.000.001 I a", "0.00.000.002 E first", "0.00.000.003 E then"], "crash_loop", "first"),
        (["it says something", ""], "crash_loop", "it says something"),
        ([], "crash_loop", ""),
        (["\x1b[31m0.00.000.001 E \x1b]0;x"], "crash_loop", "0;x"),
    ],
)
def test_other_last_words(lines, verdict, line):
    cause = log.explain(lines)
    assert cause.verdict == verdict and line in cause.line and "\x1b" not in cause.line


def test_a_server_that_serves_says_nothing_of_a_cause(fixture_text):
    assert log.explain(fixture_text("llama_server/serve.log").splitlines()[:7]).advice == ""
