#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where requests go by different routers, and what that costs: cached beginnings, loads of models, time to first token.

    .venv/bin/python benchmarks/routing.py prefix [--rounds N]     four real llama-servers on the CPU of this machine
    .venv/bin/python benchmarks/routing.py models [--rounds N]     four lab hosts with a real Ollama, for one model each
                                                                   at a time; only its worker is a stand-in

The routers are HAProxy with the gateway's configuration, the same with round robin, Debian's nginx with least_conn, and
PyPI's vllm-router, which does not start in front of Ollama, as that has no /health. All get the same requests, one
router after the other in each round (A B C A B C …), each with engines that have nothing cached or loaded. The figures
are medians of the rounds, the ratio that of each round.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit/plugins/module_utils/gateway"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab/ollama"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab/llama_server"))
os.environ["GPUFLEET_LAB"] = os.environ.get("GPUFLEET_LAB", "routing")
import faults
import hostsetup
import models
import program
from gateways import ALICE, Gateway
from waiting import until

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

CACHE = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "routers"
VLLM_ROUTER = "vllm-router==0.1.17"
CLIENTS, SLOTS, BEGINNINGS, TURNS = 12, 8, 16, 10
MODELS, REQUESTS, PARALLEL = ("m70b", "m32b", "m8b", "tiny"), 40, 4
AGENT = 8405
LOADED = 'msg="loading model via llama-server"'
NGINX = """
daemon off; user root; worker_processes 1; pid %(folder)s/pid; error_log %(folder)s/log;
events { worker_connections 1024; }
http {
  access_log off; client_body_temp_path %(folder)s/1; proxy_temp_path %(folder)s/2; fastcgi_temp_path %(folder)s/3;
  uwsgi_temp_path %(folder)s/4; scgi_temp_path %(folder)s/5;
  upstream engines { least_conn; %(servers)s }
  server {
    listen 127.0.0.1:%(port)d; client_body_buffer_size 1m;
    location / { proxy_pass http://engines; proxy_http_version 1.1; proxy_buffering off; }
  }
}
"""


class Chat(NamedTuple):
    """One chat: seconds to the first token, and what the engine says of it."""

    first: float
    engine: str = ""
    cached: int = 0
    computed: int = 0


class Process:
    """A router, or an engine, that runs until it is stopped."""

    def __init__(self, command: list[str], log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.log = log

    def kill(self) -> None:
        self.process.terminate()
        self.process.wait()


class LeastConnections(Gateway):
    """The gateway's configuration, but for the choice of a server."""

    balance = "leastconn"

    def write(self) -> str:
        digest = super().write()
        file = self.folder / "haproxy.cfg"
        file.write_text(re.sub("balance (leastconn|first)", "balance " + self.balance, file.read_text()))
        return digest


class RoundRobin(LeastConnections):
    balance = "roundrobin"


Places = list[tuple[str, int]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*command: str) -> str:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=CACHE, env=environment)
    if done.returncode:
        raise SystemExit("%s failed:\n%s%s" % (" ".join(command), done.stdout[-2000:], done.stderr[-2000:]))
    return done.stdout


# --- routers


def haproxy(folder: Path, port: int, places: Places, names: list[str], kind: type = Gateway, **options: Any) -> Gateway:
    engine = "ollama" if names != ["tiny"] else "llama_server"
    limit = PARALLEL if engine == "ollama" else SLOTS
    rows = [
        {"host": "gpu%d" % number, "address": address, "port": port, "unit": engine, "engine": engine, "api": "openai"}
        for number, (address, port) in enumerate(places, 1)
    ]
    rows = [{**row, "max_concurrent": limit, "tls": False, "key": ""} for row in rows]
    gateway = kind(folder, port, free_port(), dict.fromkeys(names, rows))
    gateway.options.update(address_rate=10**6, keys=[{"name": "bench", "key": ALICE, "pools": ["*"]}], **options)
    gateway.start()
    until(lambda: all(state.startswith("UP") for state in gateway.states().values()))
    return gateway


def nginx(folder: Path, port: int, places: Places) -> Process:
    home = CACHE / "nginx"
    if not home.exists():
        run("apt-get", "download", "nginx")
        run("dpkg-deb", "-x", str(next(CACHE.glob("nginx_*.deb"))), str(home))
    servers = " ".join("server %s:%d;" % place for place in places)
    (folder / "nginx.conf").write_text(NGINX % {"folder": folder, "port": port, "servers": servers})
    return Process([str(home / "usr/sbin/nginx"), "-c", str(folder / "nginx.conf")], folder / "out")


def vllm_router(folder: Path, port: int, places: Places) -> Process:
    home = CACHE / VLLM_ROUTER
    if not (home / "bin/vllm-router").exists():
        venv.create(home, with_pip=True, clear=True)
        run(str(home / "bin/pip"), "install", "-q", VLLM_ROUTER)
    words = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--worker-urls"]
    words += ["http://%s:%d" % place for place in places]
    words += ["--policy", "cache_aware"]
    return Process([str(home / "bin/vllm-router"), *words], folder / "out")


# --- requests


def chat(port: int, body: dict[str, Any]) -> Chat:
    """One chat, read as a stream to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    begun, first, last = time.monotonic(), 0.0, {}
    try:
        header = {"Authorization": "Bearer " + ALICE, "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}), header)
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit("status %d: %s" % (answer.status, answer.read(500)))
        for line in answer:
            if line.startswith(b"data: {"):
                last = json.loads(line[6:])
                if not first and last["choices"] and last["choices"][0]["delta"].get("content"):
                    first = time.monotonic() - begun
    finally:
        connection.close()
    said = last.get("timings", {})
    return Chat(first, last.get("model", ""), said.get("cache_n", 0), said.get("prompt_n", 0))


def answers(port: int, bodies: list[dict[str, Any]], clients: int) -> list[Chat]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda body: chat(port, body), bodies))


def ready(port: int, body: dict[str, Any]) -> None:
    """Until a router answers."""

    def answered() -> bool:
        try:
            return chat(port, body).first > 0
        except (OSError, SystemExit, http.client.HTTPException):
            return False

    until(answered)


def table(columns: list[str], ways: dict[str, Callable[[], list[float]]], rounds: int) -> None:
    """Rows of medians; the ratio is that of the last column to the first row's."""
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
            print("    %s: %s" % (name, found[name][-1]), file=sys.stderr, flush=True)
    print("| router | %s | relative to round robin |" % " | ".join(columns))
    print("| --- |%s" % (" --- |" * (len(columns) + 1)))
    for name, own in found.items():
        cells = ["%.3g" % statistics.median(column) for column in zip(*own, strict=True)]
        base = next(iter(found.values()))
        ratio = statistics.median(mine[-1] / other[-1] for mine, other in zip(own, base, strict=True))
        print("| %s | %s | %.2f |" % (name, " | ".join(cells), ratio))


# --- beginnings of chats


def prefix(folder: Path) -> tuple[list[str], dict[str, Callable[[], list[float]]]]:
    """Chats with few beginnings: share at the server that most with their beginning went to, share of the prompts that
    was cached, median seconds to the first token."""
    model = folder / "tiny.gguf"
    models.write_gguf(model, "tiny")
    places: Places = [("127.0.0.1", free_port()) for _ in range(4)]
    order = [number for number in range(BEGINNINGS) for _ in range(TURNS)]
    random.Random(1).shuffle(order)
    bodies = [asked(number, turn) for turn, number in enumerate(order)]

    def measured(start: Callable[[Path, int], Any]) -> Callable[[], list[float]]:
        def way() -> list[float]:
            started = [llama_server(folder, model, number, place[1]) for number, place in enumerate(places)]
            try:
                for _address, engine in places:
                    ready(engine, asked(-1, 0))
                port, scratch = free_port(), Path(tempfile.mkdtemp(dir=folder))
                started.append(start(scratch, port))
                ready(port, asked(-1, 0))
                chats = answers(port, bodies, CLIENTS)
            finally:
                for process in started:
                    process.kill()
            where = {number: Counter[str]() for number in order}
            for number, one in zip(order, chats, strict=True):
                where[number][one.engine] += 1
            share = sum(max(count.values()) for count in where.values()) / len(chats)
            cached, computed = sum(one.cached for one in chats), sum(one.computed for one in chats)
            return [share, cached / (cached + computed), statistics.median(one.first for one in chats)]

        return way

    names = ["tiny"]
    ways: dict[str, Callable[[Path, int], Any]] = {
        "HAProxy, round robin": lambda to, port: haproxy(to, port, places, names, RoundRobin, agent_port=0),
        "HAProxy, least connections (the gateway's default)": lambda to, port: haproxy(
            to, port, places, names, agent_port=0
        ),
        "the gateway with `gateway_affinity`": lambda to, port: haproxy(
            to, port, places, names, agent_port=0, affinity=["*"]
        ),
        "nginx, least_conn": lambda to, port: nginx(to, port, places),
        "vllm-router, cache_aware": lambda to, port: vllm_router(to, port, places),
    }
    columns = ["chats at the server of their beginning", "tokens of prompts cached", "s to the first token"]
    return columns, {name: measured(start) for name, start in ways.items()}


def asked(number: int, turn: int) -> dict[str, Any]:
    beginning = "%d is your number. %s" % (number, random.Random(number).randbytes(500).hex())
    words = [{"role": "system", "content": beginning}, {"role": "user", "content": "question %d" % turn}]
    return {"model": "tiny", "messages": words, "max_tokens": 4}


def llama_server(folder: Path, model: Path, number: int, port: int) -> Process:
    words = [
        "-m",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--alias",
        "gpu%d" % number,
        "--threads",
        "1",
    ]
    words += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * 2048), "--cache-ram", "0", "--no-warmup"]
    return Process([str(program.path() / "llama-server"), *words], folder / ("gpu%d" % number))


# --- models


def loaded(folder: Path, clients: int) -> tuple[list[str], dict[str, Callable[[], list[float]]]]:
    """Chats with four models on four hosts that have room for one each: loads of models, median and 95 % seconds to
    the first token."""
    places = hosts(folder)
    rng = random.Random(2)
    bodies = [
        {"model": rng.choice(MODELS), "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        for _ in range(REQUESTS)
    ]

    def measured(start: Callable[[Path, int], Any]) -> Callable[[], list[float]]:
        def way() -> list[float]:
            for name in HOSTS:
                hostsetup.sh(name, "systemctl restart ollama")
            for name in HOSTS:
                hostsetup.wait_for_api(name)
            port, scratch = free_port(), Path(tempfile.mkdtemp(dir=folder))
            router = start(scratch, port)
            try:
                until(lambda: listens(port))
                chats = answers(port, bodies, clients)
            finally:
                router.kill()
            loads = sum(hostsetup.journal(name).count(LOADED) for name in HOSTS)
            first = sorted(one.first for one in chats)
            return [loads, first[int(0.95 * len(first))], statistics.median(first)]

        return way

    names = list(MODELS)
    ways: dict[str, Callable[[Path, int], Any]] = {
        "HAProxy, round robin": lambda to, port: haproxy(to, port, places, names, RoundRobin, agent_port=0),
        "HAProxy, least connections": lambda to, port: haproxy(to, port, places, names, LeastConnections, agent_port=0),
        "the gateway": lambda to, port: haproxy(to, port, places, names, agent_port=AGENT),
        "nginx, least_conn": lambda to, port: nginx(to, port, places),
    }
    columns = ["loads of models", "s to the first token, 95 %", "median"]
    return columns, {name: measured(start) for name, start in ways.items()}


HOSTS = ("gpu1", "gpu2", "gpu3", "gpu4")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def hosts(folder: Path) -> Places:
    """Four hosts with Ollama and an agent, which this machine may ask."""
    lab = [sys.executable, str(TESTS / "lab/lab.py")]
    run(*lab, "down")
    run(*lab, "up", "--hosts", str(len(HOSTS)))
    inventory = run(*lab, "inventory").strip()
    listed = yaml.safe_load(Path(inventory).read_text())["ollama"]["hosts"]
    places = []
    for name in HOSTS:
        hostsetup.install(name)
        faults.worker(name, "slow-token:0.02")
        hostsetup.override(
            name, {"OLLAMA_HOST": "0.0.0.0", "OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_NUM_PARALLEL": str(PARALLEL)}
        )
        hostsetup.add_models(name, *MODELS)
        address = listed[name]["ansible_host"]
        places.append((address, 11434))
        service = {"unit": "ollama", "engine": "ollama", "address": address, "port": 11434, "max_concurrent": PARALLEL}
        here = hostsetup.sh(name, "ip route show default").split()[2]
        options = json.dumps({"gateways": [here], "services": [service], "port": AGENT})
        ansible = [str(Path(sys.executable).parent / "ansible"), "-i", inventory, name, "--become"]
        run(*ansible, "-m", "gpufleet.inference.gateway_agent", "-a", options)
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prefix", "models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4, help="of the models; default 4")
    wanted = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            here = Path(folder)
            columns, ways = prefix(here) if wanted.what == "prefix" else loaded(here, wanted.clients)
            table(columns, ways, wanted.rounds)
        finally:
            if wanted.what == "models":
                run(sys.executable, str(TESTS / "lab/lab.py"), "down")


if __name__ == "__main__":
    main()
