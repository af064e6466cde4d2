# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway takes, and where chats go: a real HAProxy with the generated configuration, and stand-in engines.

gateway.py [--connections N]     memory of the worker for connections and bodies; chats at the server of their beginning
"""

from __future__ import annotations

import argparse
import random
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit/plugins/module_utils/gateway"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit"))

from engines import Engine
from gateways import ALICE, ENGINE_KEY, Gateway, row
from waiting import until

HEAD = "%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + ALICE + "\r\n"
LIST = (HEAD % "GET /v1/models" + "\r\n").encode()
LONG = 800_000
PROMPTS, TURNS, CLIENTS = 40, 16, 16


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory(gateway: Gateway) -> int:
    """MiB of the worker."""
    lines = Path("/proc/%s/status" % gateway.worker).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10


def connections(gateway: Gateway, number: int) -> None:
    print("worker, nothing to do: %d MiB" % memory(gateway))
    idle = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(number)]
    print("%d silent connections: %d MiB" % (number, memory(gateway)))
    for connection in idle:
        connection.sendall(LIST)
    for connection in idle:
        connection.recv(1 << 16)
    print("the same, idle after a request each: %d MiB" % memory(gateway))
    begun = (HEAD % "POST /v1/chat/completions" + "Content-Length: %d\r\n\r\n" % (LONG + 1)).encode()
    for connection in idle[:500]:
        connection.sendall(begun + b'{"model":"chat","x":"'.ljust(LONG, b"x"))
    seen: List[int] = []

    def settled() -> bool:
        """It has grown no more for ten looks: what was sent is there."""
        seen.append(memory(gateway))
        return len(seen) >= 10 and len(set(seen[-10:])) == 1

    until(settled)
    print("500 bodies of %d kB on their way: %d MiB" % (LONG // 1000, memory(gateway)))
    started = time.monotonic()
    assert gateway.chat().status == 200
    print("a chat meanwhile: %.0f ms" % (1000 * (time.monotonic() - started)))
    for connection in idle:
        connection.close()
    until(lambda: gateway.worker)  # it is busy with what it has of the bodies


def share(gateway: Gateway) -> float:
    """Share of chats that went to the server that most chats with their beginning went to."""
    places: Dict[int, Counter] = {number: Counter() for number in range(PROMPTS)}

    def chat(number: int) -> None:
        system = {"role": "system", "content": "You are number %d. %s" % (number, "x" * 3000)}
        answer = gateway.chat(messages=[system, {"role": "user", "content": str(random.random())}])
        places[number][answer.json["engine"]] += 1

    order = [number for number in range(PROMPTS) for _ in range(TURNS)]
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(chat, order))
    return sum(max(found.values()) for found in places.values()) / len(order)


def main(words: List[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=9500)
    number = parser.parse_args(words).connections
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engines = [Engine("gpu%d" % index) for index in range(1, 5)]
    pools: Dict[str, Any] = {"chat": [row(engine, "vllm@chat", key=ENGINE_KEY) for engine in engines]}
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder), free_port(), free_port(), pools)
        gateway.options.update(connections=number + 200, address_connections=number + 100, client_timeout=300)
        gateway.options.update(address_rate=10**6)
        gateway.start()
        try:
            until(lambda: set(gateway.states().values()) == {"UP"})
            connections(gateway, number)
            for name, models in (("fewest requests", []), ("affinity", ["*"])):
                gateway.options["affinity"] = models
                gateway.reload()
                until(lambda: set(gateway.states().values()) == {"UP"})
                print("%d chats, %d beginnings, 4 servers, %s: %.2f at one server" % (
                    PROMPTS * TURNS, PROMPTS, name, share(gateway)))  # fmt: skip
        finally:
            gateway.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
