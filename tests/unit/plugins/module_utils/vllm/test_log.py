# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a server ended, out of what a real one logged."""

from __future__ import annotations

import json
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import log
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.program import refusal, unknown_variables


@pytest.mark.parametrize(
    "name, verdict, words",
    [
        ("bad-flag", "bad_config", "unrecognized arguments: --max-model-length"),
        ("bad-value", "crash_loop", "argument --max-num-seqs: invalid int value: 'many'"),
        ("bad-choice", "bad_config", "argument --dtype: invalid choice: 'float7'"),
        ("too-long", "bad_config", "max_model_len (100000) is greater than the derived max_model_len"),
        ("heads", "bad_config", "heads (4) must be divisible by tensor parallel size (3)"),
        ("no-model", "model_missing", "Repo id must be in the form"),
        ("port-taken", "port_taken", "OSError: [Errno 98] Address already in use"),
    ],
)
def test_recorded_failures(fixture_text, name, verdict, words):
    lines = json.loads(fixture_text("vllm/failures.json"))[name]["last"]
    found = log.last_words(lines)
    assert found.verdict == verdict
    assert words in found.line
    assert bool(found.advice) == (verdict != "crash_loop")


@pytest.mark.parametrize(
    "name, verdict, words",
    [
        (
            "broken-weights",
            "load_failed",
            "safetensors._safetensors_rust.SafetensorError: Error while deserializing header",
        ),
        ("no-weights", "model_missing", "RuntimeError: Cannot find any model weights with `/srv/models/empty`"),
        (
            "two-workers",
            "crash_loop",
            "AssertionError: Not enough allowed NUMA nodes to bind threads of 2 local CPUWorkers",
        ),
        (
            "memory",
            "crash_loop",
            "ValueError: Available memory on node 0 (16.45/21.84 GiB) on kv cache allocation is less than",
        ),
    ],
)
def test_the_cause_is_what_the_engine_or_its_worker_said(fixture_text, name, verdict, words):
    """The front end's own last words are that the engine failed, a hundred lines below the cause."""
    lines = json.loads(fixture_text("vllm/engine.json"))[name]["said"]
    assert "Engine core initialization failed" in lines[-1]
    found = log.last_words(lines)
    assert found.line.startswith(words) and found.verdict == verdict
    assert bool(found.advice) == (verdict != "crash_loop")
    below = [number for number, line in enumerate(lines[::-1]) if words in line]
    assert max(below) >= 95


def test_the_first_of_many_workers_and_of_chained_exceptions():
    worker = "(Worker_TP%d pid=%d) ERROR 01-01 00:00:00 [multiproc_executor.py:9] %s"
    said = [worker % (0, 7, "WorkerProc failed to start."), worker % (0, 7, "Traceback (most recent call last):")]
    said += [worker % (0, 7, "    raise ValueError(x)"), worker % (0, 7, "ValueError: block_n = 128")]
    said += [worker % (1, 8, "torch.distributed.DistNetworkError: Connection reset by peer")]
    said += ["(EngineCore pid=6) ERROR 01-01 00:00:00 [core.py:9] Exception: WorkerProc initialization failed due to x"]
    said += ["During handling of the above exception, another exception occurred:", "RuntimeError: another"]
    assert log.last_words(said).line == "ValueError: block_n = 128"
    assert log.last_words(said[5:6]).advice == "the cause stands above it in the journal"
    warned = "(APIServer pid=1) WARNING 01-01 00:00:00 [x.py:1] ImportError: No module named 'flash_attn'"
    assert log.last_words([warned, *said]).line == "ValueError: block_n = 128", "a warning is no cause"
    invalid = ["pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"]
    assert log.last_words([*invalid, "  Value error, no such thing", *said]).line == "Value error, no such thing"
    assert log.last_words(invalid).line == invalid[0]
    assert log.last_words(["Exception ignored in: <x>", "all is well"]).line == "all is well"


@pytest.mark.parametrize("version", ["model's", "models's"])
def test_too_little_memory_for_the_context(version):
    line = (
        "ValueError: To serve at least one request with the %s max seq len (131072), 16 GiB KV cache is needed"
        % version
    )
    said = [
        "(EngineCore_DP0 pid=77) ERROR 01-01 00:00:00 [core.py:866] " + line,
        "RuntimeError: Engine core initialization failed.",
    ]
    assert log.last_words(said).verdict == "out_of_memory"


@pytest.mark.parametrize(
    "poison",
    [
        "ValueError: \x1b]0;owned\x07\x1b[2J\x1b[31mred\x00\x9b\u202e",
        "ValueError: " + "x" * (8 << 20),
        "(" * (1 << 20),
        "(Worker pid=1) " * (1 << 16),
        "\x1b[36m" * (1 << 18),
        "a." * (4 << 20) + "Error",
    ],
)
def test_poisoned_lines_do_no_harm(poison):
    begun = time.process_time()
    found = log.last_words([poison] * 20 + ["RuntimeError: Engine core initialization failed. See root cause above."])
    assert time.process_time() - begun < 5
    for text in (found.line, found.sentence, log.bare(poison)):
        assert text.isprintable() and len(text) < 700, text[:200]


def test_the_cause_stands_before_what_it_led_to():
    found = log.last_words(
        [
            "(EngineCore pid=7) ERROR 11-22 14:15:19 [core.py:99] ValueError: Free memory on device cuda:0 (1/2 GiB) on startup",
            "(APIServer pid=6) Traceback (most recent call last):",
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ]
    )
    assert found.verdict == "out_of_memory"
    assert found.line.startswith("ValueError: Free memory on device cuda:0")


def test_a_line_without_its_prefix():
    assert (
        log.bare("(APIServer pid=1) INFO 01-01 00:00:00 [launcher.py:279] [shutdown] stopped") == "[shutdown] stopped"
    )
    assert log.bare("(Worker pid=1) hello") == "hello"
    assert log.bare("INFO:     Started") == "INFO:     Started"


def test_nothing_that_tells():
    assert log.last_words([]).line == ""
    assert log.last_words(["all is well", ""]).line == "all is well"


def test_a_misspelt_option_and_the_nearest(fixture_text):
    said = "\n".join(json.loads(fixture_text("vllm/failures.json"))["bad-flag"]["last"])
    options = list(json.loads(fixture_text("vllm/options.json")))
    assert refusal(said, options) == "unrecognized arguments: --max-model-length; did you mean max-model-len?"
    assert refusal("x\nImportError: libcudart.so.13\n", []) == "ImportError: libcudart.so.13"
    assert refusal("", []) == "it says nothing"


def test_variables_that_this_version_does_not_read():
    (warning,) = unknown_variables({"VLLM_LOGING_LEVEL": "1", "A": "1"}, ["VLLM_LOGGING_LEVEL"])
    assert "did you mean VLLM_LOGGING_LEVEL?" in warning
    assert unknown_variables({"VLLM_X": "1"}, []) == [], "envs.py cannot be read: nothing is known"
