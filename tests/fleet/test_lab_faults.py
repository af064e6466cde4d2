# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault the lab can make of Ollama is the one it says, as the real server tells it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/ollama"))

import faults
import hostsetup

GENERATE = {"model": "m8b", "prompt": "hello", "stream": False, "options": {"num_predict": 4, "num_ctx": 4096}}


@pytest.fixture(scope="module")
def installed(lab: Any) -> Iterator[str]:
    """A host with four H200s, Ollama and one model."""
    host = lab.reset("gpu2")
    hostsetup.install(host)
    hostsetup.override(host, {"OLLAMA_NO_CLOUD": "1", "OLLAMA_LOAD_TIMEOUT": "6s"})
    hostsetup.add_models(host, "m8b")
    yield host
    faults.clear(host)
    hostsetup.uninstall(host)


@pytest.fixture
def ollama(installed: str) -> Iterator[str]:
    """The same, serving, nothing loaded, no fault; afterwards again without faults."""
    faults.clear(installed)
    hostsetup.sh(installed, "systemctl is-active --quiet ollama || systemctl restart ollama")
    hostsetup.wait_for_api(installed)
    hostsetup.api(installed, "/api/generate", {"model": "m8b", "keep_alive": 0})
    hostsetup.sh(installed, "timeout 60 sh -c 'while pgrep -x llama-server; do sleep 0.05; done' >/dev/null")
    yield installed
    faults.clear(installed)


def generate(host: str, timeout: float = 60) -> Dict[str, Any]:
    return hostsetup.api(host, "/api/generate", GENERATE, timeout)


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("die-at-load", 500, "exit status 1: error loading model: told to die at load"),
        ("out-of-memory", 500, "exit status 1: cudaMalloc failed: out of memory"),
        ("stalled-load", 500, "timed out waiting for llama-server to start"),
        ("die-at-token", 500, "an error was encountered while running the model"),
    ],
)
def test_a_worker_that_fails(ollama: str, fault: str, status: int, error: str) -> None:
    faults.worker(ollama, fault)
    answer = generate(ollama)
    assert (answer["status"], error in answer["error"]) == (status, True), answer


def test_a_worker_that_loads_slowly_shows_life(ollama: str) -> None:
    faults.worker(ollama, "slow-load:8")  # longer than OLLAMA_LOAD_TIMEOUT
    answer = generate(ollama)
    assert answer["done"], answer
    assert answer["load_duration"] > 8e9


def test_a_worker_with_slow_tokens(ollama: str) -> None:
    faults.worker(ollama, "slow-token:0.3")
    answer = generate(ollama)
    assert answer["eval_count"] == 4
    assert answer["eval_duration"] > 1.2e9


def test_a_worker_with_part_of_the_model_on_the_gpu(ollama: str) -> None:
    faults.worker(ollama, "partial-offload:10")
    assert generate(ollama)["done"]
    (resident,) = hostsetup.api(ollama, "/api/ps")["models"]
    assert 0 < resident["size_vram"] < resident["size"]


def test_a_worker_that_repeats_itself_is_cut_off_in_silence(ollama: str) -> None:
    faults.worker(ollama, "repeat")
    answer = generate(ollama)
    assert (answer["status"], answer["done"]) == (200, False)


def test_a_worker_that_yields_nothing(ollama: str) -> None:
    faults.worker(ollama, "stall")
    assert generate(ollama, timeout=8)["status"] == 0
    assert [one["model"] for one in hostsetup.api(ollama, "/api/ps")["models"]] == ["m8b:latest"]


def test_a_deaf_worker_is_still_there_after_sigterm(ollama: str) -> None:
    faults.worker(ollama, "deaf")
    assert generate(ollama)["done"]
    hostsetup.sh(ollama, "pkill -TERM -x llama-server")
    assert generate(ollama)["load_duration"] < 1e9, "the same worker answers"
    hostsetup.sh(ollama, "systemctl stop ollama; ! pgrep -x llama-server")


def test_a_worker_that_hears_gives_its_memory_back(ollama: str) -> None:
    assert generate(ollama)["done"]
    assert sum(map(len, hostsetup.held(ollama))) == 1
    hostsetup.sh(ollama, "pkill -TERM -x llama-server; timeout 60 sh -c 'while pgrep -x llama-server; do :; done'")
    assert sum(map(len, hostsetup.held(ollama))) == 0


def test_a_server_that_starts_slowly(ollama: str) -> None:
    faults.server(ollama, "slow-start:4")
    hostsetup.sh(ollama, "systemctl restart ollama")
    assert hostsetup.api(ollama, "/api/version", timeout=1)["status"] == 0
    hostsetup.wait_for_api(ollama)
    assert generate(ollama)["done"]


def test_a_server_that_serves_nothing(ollama: str) -> None:
    faults.server(ollama, "serves-nothing")
    hostsetup.sh(ollama, "systemctl restart ollama")
    hostsetup.wait_for_api(ollama)
    assert hostsetup.api(ollama, "/api/version")["version"] == "0.32.15"
    assert generate(ollama)["done"] is False


def test_a_server_that_crashes_again_and_again(ollama: str) -> None:
    faults.server(ollama, "crash-loop:0.1")
    hostsetup.sh(ollama, "systemctl restart ollama")
    again = "until [ $(systemctl show -p NRestarts --value ollama) -ge 2 ]; do sleep 0.1; done"
    hostsetup.sh(ollama, "timeout 60 sh -c '%s'" % again)
    assert "Main process exited" in hostsetup.sh(ollama, "journalctl --sync; journalctl -u ollama -n 50 -o cat")


def test_a_server_that_hangs_at_stop(ollama: str) -> None:
    faults.server(ollama, "hang-at-stop")
    hostsetup.sh(
        ollama,
        "mkdir -p /run/systemd/system/ollama.service.d; cd /run/systemd/system/ollama.service.d\n"
        "printf '[Service]\\nTimeoutStopSec=2\\n' >stop.conf; systemctl daemon-reload; systemctl restart ollama",
    )
    hostsetup.wait_for_api(ollama)
    hostsetup.sh(ollama, "systemctl stop ollama")
    assert hostsetup.sh(ollama, "systemctl show -p Result --value ollama").strip() == "timeout"
    hostsetup.sh(ollama, "rm -r /run/systemd/system/ollama.service.d; systemctl daemon-reload")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (faults.port, "bind: address already in use"),
        (faults.store, "permission denied: ensure path elements are traversable"),
    ],
)
def test_what_the_host_denies(ollama: str, make: Any, words: str) -> None:
    make(ollama)
    hostsetup.sh(ollama, "systemctl restart ollama")
    again = "until [ $(systemctl show -p NRestarts --value ollama) -ge 1 ]; do sleep 0.1; done"
    hostsetup.sh(ollama, "timeout 60 sh -c '%s'" % again)
    assert words in hostsetup.sh(ollama, "journalctl --sync; journalctl -u ollama -n 20 -o cat")
