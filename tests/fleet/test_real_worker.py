# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host with nothing made up but its GPUs: the real server, the real worker for the CPU, a real model, real tokens.

The first run builds the worker (6.5 minutes on 2 cores), later ones find it in the cache.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/ollama"))

import archive
import hostsetup

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.fingerprint import deviation, read


@pytest.fixture(scope="module")
def served(lab: Any) -> Iterator[str]:
    """A host that serves the tiny model by the real worker."""
    host = lab.reset("gpu1")
    hostsetup.install(host, archive.path(worker="cpu"))
    hostsetup.override(host, {"OLLAMA_NO_CLOUD": "1"})
    hostsetup.add_models(host, "tiny")
    yield host
    hostsetup.uninstall(host)


def test_it_finds_no_gpu_and_says_so(served: str) -> None:
    lines = [line for line in hostsetup.journal(served).splitlines() if 'msg="inference compute"' in line]
    assert len(lines) == 1
    assert "library=cpu" in lines[0]


def test_real_tokens(served: str) -> None:
    ask = {"model": "tiny", "prompt": "hello", "stream": False, "options": {"num_predict": 8, "seed": 1}}
    first, again = (hostsetup.api(served, "/api/generate", ask) for _ in range(2))
    assert first["done"] is True, first
    assert first["done_reason"] == "length"
    assert first["eval_count"] == 8
    assert first["prompt_eval_count"] > 0
    assert len(first["response"]) == 8
    assert first["response"].isascii()
    assert first["response"] == again["response"], "the same seed, the same tokens"
    other = hostsetup.api(served, "/api/generate", {**ask, "prompt": "goodbye, and thanks"})
    assert other["response"] != first["response"], "the prompt must count"


def test_it_says_that_it_runs_on_the_cpu(served: str) -> None:
    hostsetup.api(served, "/api/generate", {"model": "tiny"})
    (resident,) = hostsetup.api(served, "/api/ps")["models"]
    assert resident["size"] > 0
    assert resident["size_vram"] == 0


def test_a_model_given_to_create_is_rewritten_by_the_real_tool(served: str) -> None:
    made = hostsetup.api(served, "/api/create", {"model": "again", "from": "tiny", "stream": False})
    assert made.get("status") == 200, made
    answer = hostsetup.api(
        served, "/api/generate", {"model": "again", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    )
    assert answer["done"] is True


def test_it_reports_log_probabilities(served: str) -> None:
    """Fingerprints need them; the second answer is the same to the last digit that counts."""
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    ask.update(temperature=0, seed=0, logprobs=True, top_logprobs=5)
    one, other = (read(hostsetup.api(served, "/v1/chat/completions", ask)) for _ in range(2))
    assert len(one) == 4
    assert all(token.text in token.others for token in one)
    assert deviation(one, other) < 0.01
