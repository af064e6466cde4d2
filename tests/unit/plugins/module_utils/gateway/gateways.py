# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HAProxy with the configuration that the module writes, in front of small servers on loopback."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from engines import Engine
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import haproxy, keys, runtime, service
from ansible_collections.gpufleet.inference.plugins.module_utils.gateway.options import OPTIONS

ALICE, BOB, EVE = "alice-sesame-4711-open", "bob-sesame-4711-open!", "eve-sesame-4711-open!"
KEYS = [{"name": "alice", "key": ALICE, "pools": ["*"]}, {"name": "bob", "key": BOB, "pools": ["chat"]}]
ENGINE_KEY = "the-engines-own-key"


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        """Of an error in OpenAI's shape."""
        return str(self.json["error"]["code"])


class Gateway:
    """A running HAProxy. ``options`` and ``pools`` may be changed; ``apply`` writes them and reloads."""

    def __init__(self, folder: Path, port: int, status_port: int, pools: Dict[str, Any]) -> None:
        self.place = haproxy.Place(str(folder), str(folder), str(folder / "state"), "")
        defaults = {row.name: row.default for row in OPTIONS}
        self.options: Dict[str, Any] = dict(
            defaults,
            port=port,
            status_port=status_port,
            agent_port=0,
            keys=KEYS,
            tls_digest="",
            client_timeout=60,
            connections=2000,
        )
        self.pools = pools
        self.folder, self.port = folder, port
        self.log = folder / "log"
        self.process: Optional[subprocess.Popen] = None

    @property
    def socket(self) -> str:
        return self.place.run + "/admin.sock"

    @property
    def worker(self) -> str:
        """The process that takes new requests; empty while one takes the other's place."""
        try:
            return runtime.info(self.socket).get("Pid", "")
        except runtime.RuntimeFault:
            return ""

    def write(self) -> str:
        """Write all files; gives the digest."""
        keys.check(self.pools)
        files = haproxy.files(self.options, self.pools, self.place)
        for path, text in files.items():
            Path(path).write_text(text)
        for name, entries in self.maps().items():
            Path(self.place.map(name)).write_text(haproxy.map_text(entries))
        return haproxy.digest_of(files["%s/haproxy.cfg" % self.folder])

    def maps(self, **options: Any) -> Dict[str, Dict[str, str]]:
        """The maps with other options; the keys of engines are in the pools, as the action plugin gets them."""
        secret = {"%s %s" % (row["host"], row["unit"]): row["key"] for rows in self.pools.values() for row in rows}
        return haproxy.maps({**self.options, "engine_keys": secret, **options}, self.pools)

    def start(self) -> "Gateway":
        digest = self.write()
        self.keep("start", self.place.state)
        words = [service.PROGRAM, "-Ws", "-f", str(self.folder / "haproxy.cfg"), "-S", str(self.folder / "master.sock")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.await_digest(digest)
        return self

    def await_digest(self, digest: str) -> None:
        def runs() -> bool:
            try:
                return runtime.info(self.socket).get("description") == digest
            except runtime.RuntimeFault:
                assert self.process and self.process.poll() is None, self.log.read_text()
                return False

        until(runs)

    def keep(self, *words: str) -> None:
        """What the unit runs before a start, a reload and a stop."""
        subprocess.run([sys.executable, "-I", str(self.folder / haproxy.KEEPER), *words], check=True)

    def reload(self) -> None:
        """As the unit does it."""
        assert self.process
        worker, digest = self.worker, self.write()
        self.keep("save", self.socket, self.place.state)
        self.process.send_signal(signal.SIGUSR2)
        until(lambda: self.worker not in ("", worker), said=lambda: self.log.read_text()[-3000:])
        self.await_digest(digest)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            workers = children(self.process.pid)
            self.process.kill()
            self.process.wait()
            for worker in workers:
                try:
                    os.kill(worker, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def states(self) -> Dict[str, str]:
        return {"%s/%s" % (row["pxname"], row["svname"]): row["status"] for row in runtime.servers(self.socket)}

    def ask(
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        body: Any = None,
        key: str = ALICE,
        **headers: str,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if key:
                sent["Authorization"] = "Bearer " + key
            data = json.dumps(body) if isinstance(body, dict) else body
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read().decode())
        finally:
            connection.close()

    def chat(self, model: str = "chat", key: str = ALICE, **more: Any) -> Answer:
        return self.ask(
            body=dict({"model": model, "messages": [{"role": "user", "content": "hello"}]}, **more), key=key
        )

    def logged(self) -> List[Dict[str, Any]]:
        """The requests in the log, without lines of HAProxy's own."""
        lines = self.log.read_text(errors="replace").splitlines()
        found = [line[line.index("{") :] for line in lines if '{"time"' in line]
        return [json.loads(line) for line in found]


def asked(gateway: Gateway, **body: Any) -> http.client.HTTPResponse:
    """An answer of which only the header was read."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"Authorization": "Bearer " + ALICE}
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": "chat", **body}), headers)
    return connection.getresponse()


def children(pid: int) -> List[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if parent == str(pid):
            found.append(int(path.parent.name))
    return found


def row(server: Engine, unit: str, **more: Any) -> Dict[str, Any]:
    found = {"host": server.name, "address": "127.0.0.1", "port": server.port, "unit": unit}
    return {**found, "engine": "vllm", "api": "openai", "max_concurrent": None, "tls": False, "key": "", **more}


LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def exchange(gateway: Gateway, raw: bytes, last: bytes = LAST) -> bytes:
    """What comes back for these bytes, and for a last request after which the connection is closed."""
    found = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        try:
            connection.sendall(raw + last)
            while True:
                piece = connection.recv(1 << 16)
                if not piece:
                    break
                found += piece
        except OSError:
            pass
    return found


def status_of(gateway: Gateway, raw: bytes) -> int:
    """The status of the first answer to these bytes."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(raw)
        with connection.makefile("rb") as answer:
            return int(answer.readline().split(b" ", 2)[1])
