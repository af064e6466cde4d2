# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway in front of three engines, for the tests of this folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Semaphore
from typing import Any, Callable, Iterator, List

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engines import Engine
from gateways import ENGINE_KEY, Gateway, row
from waiting import until


@pytest.fixture(scope="module")
def engines() -> Iterator[List[Engine]]:
    found = [Engine("gpu%d" % number) for number in range(1, 4)]
    yield found
    for engine in found:
        engine.shutdown()
        engine.server_close()


@pytest.fixture(scope="module")
def shared(engines: List[Engine], free_port: Callable[[], int], tmp_path_factory: Any) -> Iterator[Gateway]:
    """A gateway: chat on two hosts (vLLM, with a key of its own), tiny and big on one (Ollama)."""
    ollama = {"engine": "ollama", "api": "both"}
    pools = {
        "chat": [row(engines[0], "vllm@chat", key=ENGINE_KEY), row(engines[1], "vllm@chat.service", key=ENGINE_KEY)],
        "tiny": [row(engines[2], "ollama", **ollama)],
        "big": [row(engines[2], "ollama", **ollama)],
    }
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), free_port(), free_port(), pools).start()
    until(lambda: set(gateway.states().values()) == {"UP"})
    yield gateway
    gateway.kill()


@pytest.fixture
def gateway(shared: Gateway, engines: List[Engine]) -> Iterator[Gateway]:
    """The same, as it was at its start."""
    for engine in engines:
        engine.seen.clear()
        engine.stepwise, engine.health = False, 200
        engine.go.set()
        engine.cut.clear()
        engine.step, engine.arrived = Semaphore(0), Semaphore(0)
    options, pools = dict(shared.options), dict(shared.pools)
    yield shared
    if (shared.options, shared.pools) != (options, pools):
        shared.options, shared.pools = options, pools
        shared.reload()


@pytest.fixture
def tls(gateway: Gateway, tmp_path: Path, free_port: Any) -> Iterator[Gateway]:
    """The gateway with a certificate of its own, and a port that redirects to it."""
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway", "-days", "2"]
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    both = tmp_path / "gateway.pem"
    both.write_text(certificate.read_text() + key.read_text())
    gateway.options.update(tls_certificate=str(both), redirect_port=free_port())
    gateway.reload()
    yield gateway
