#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what a real llama-server says, for tests/unit/fixtures/llama_server: `capture.py PROGRAM FOLDER`.

PROGRAM is the llama-server of `program.py path` (llama.cpp b10488 for the CPU was recorded). Takes half a minute.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ollama"))

import models

KEY = "sesame-key"
PORT = 18123
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}
LOGPROBS = dict(CHAT, max_tokens=3, temperature=0, logprobs=True, top_logprobs=3)
COMPLETION = {"model": "tiny", "prompt": "Say hello.", "max_tokens": 1}
REQUESTS = (
    ("health", "GET", "/health", None, False),
    ("models", "GET", "/v1/models", None, False),
    ("props", "GET", "/props", None, True),
    ("props-without-key", "GET", "/props", None, False),
    ("slots", "GET", "/slots", None, True),
    ("metrics-without-key", "GET", "/metrics", None, False),
    ("chat", "POST", "/v1/chat/completions", CHAT, True),
    ("chat-logprobs", "POST", "/v1/chat/completions", LOGPROBS, True),
    ("chat-without-key", "POST", "/v1/chat/completions", CHAT, False),
    ("chat-no-such-model", "POST", "/v1/chat/completions", dict(CHAT, model="nosuch"), True),
    ("completion", "POST", "/v1/completions", COMPLETION, True),
    ("embeddings", "POST", "/v1/embeddings", {"model": "tiny", "input": "hello"}, True),
    ("rerank", "POST", "/v1/rerank", {"model": "tiny", "query": "hello", "documents": ["hello"]}, True),
    ("score", "POST", "/score", {"model": "tiny", "text_1": "hello", "text_2": "hello"}, True),
    ("no-such-path", "GET", "/nosuch", None, True),
)
POOLING = (
    *(one for one in REQUESTS if one[1] == "POST" and one[4] and one[3] is not LOGPROBS),
    REQUESTS[0],
    REQUESTS[1],
)
GENERAL = (
    (r"\b(chatcmpl|cmpl)-\w+", r"\1-0"),
    (r'"created":\s*\d+', '"created":1'),
    (r"<__media_\w+__>", "<__media__>"),
    (r"^\d+\.\d\d\.\d\d\d\.\d\d\d ", "0.00.000.000 "),
    (r"\b\d+\.\d+ (ms|tokens per second)", r"1.00 \1"),
    (r'("\w+_(?:ms|second)":\s*)[\d.]+', r"\g<1>1.0"),
    (r"/tmp/\w+/", "/srv/models/"),
    (r"\[[-\d., e]{200,}\]", "[0.5, 0.5]"),  # an embedding
    (r"https?://(?!127\.)[^\s,)]+", "https://example.com"),  # addresses of documentation
)


def general(text: str) -> str:
    for pattern, instead in GENERAL:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


class Server:
    """A llama-server with variables of its own; its log is at `log`."""

    def __init__(self, program: str, log: Path, variables: Mapping[str, str], arguments: Tuple[str, ...] = ()) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], **variables},
            )

    def said(self) -> List[str]:
        return general(self.log.read_text("utf-8", "replace")).splitlines()

    def wait(self, tls: bool = False) -> None:
        """Until it has loaded its model."""
        begun = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                if ask("GET", "/health", None, False, tls)["status"] == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < begun + 60, self.log.read_text()
            # a server that starts announces nothing: its port is polled
            time.sleep(0.05)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(program: str, log: Path, variables: Mapping[str, str]) -> Iterator[Server]:
    server = Server(program, log, variables)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def ask(method: str, path: str, body: Any, key: bool, tls: bool = False) -> Dict[str, Any]:
    connection: http.client.HTTPConnection
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + KEY} if key else {})}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    return {"status": answer.status, "body": general(answer.read().decode())}


def cut_short(program: str, scratch: Path, good: Mapping[str, str]) -> Dict[str, Any]:
    """What comes of SIGTERM while a request is running: the server waits for its client to leave, however long."""
    seen: Dict[str, Any] = {}
    endless = {**good, "LLAMA_ARG_CONTEXT_SHIFT": "1"}
    body = json.dumps(dict(COMPLETION, max_tokens=-1, ignore_eos=True)).encode()
    with serving(program, scratch / "cut", endless) as server:
        with socket.create_connection(("127.0.0.1", PORT)) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
            client.sendall((head % (KEY, len(body))).encode() + body)
            busy = ""
            while "requests_processing 1" not in busy:
                busy = ask("GET", "/metrics", None, True)["body"]
            seen["metrics"] = [line for line in busy.splitlines() if line.startswith("llamacpp:requests_")]
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(5)
            seen["status_after_5_seconds"] = server.process.poll()
        seen["status_once_the_client_has_left"] = server.process.wait(30)
        seen["last"] = [line for line in server.said() if "context shift" not in line][-3:]
    return seen


def failures(program: str, scratch: Path, good: Mapping[str, str], taken: int) -> Dict[str, Any]:
    """The last words of servers that cannot start."""
    whole = Path(good["LLAMA_ARG_MODEL"]).read_bytes()
    (scratch / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (scratch / "text.gguf").write_text("hello\n")
    cases: Tuple[Tuple[str, Dict[str, str], Tuple[str, ...]], ...] = (
        ("no-model", {"LLAMA_ARG_MODEL": str(scratch / "nosuch.gguf")}, ()),
        ("cut-model", {"LLAMA_ARG_MODEL": str(scratch / "cut.gguf")}, ()),
        ("no-gguf", {"LLAMA_ARG_MODEL": str(scratch / "text.gguf")}, ()),
        ("port-taken", {"LLAMA_ARG_PORT": str(taken)}, ()),
        ("no-address", {"LLAMA_ARG_HOST": "192.0.2.1"}, ()),
        ("bad-flag", {}, ("--no-such-flag",)),
        ("bad-value", {"LLAMA_ARG_CTX_SIZE": "many"}, ()),
        ("bad-cache-type", {"LLAMA_ARG_CACHE_TYPE_K": "f7"}, ()),
        ("bad-argument", {}, ("--rope-scale", "wide")),
        ("no-certificate", {"LLAMA_ARG_SSL_KEY_FILE": "/nosuch.pem", "LLAMA_ARG_SSL_CERT_FILE": "/nosuch.pem"}, ()),
        ("no-device", {"LLAMA_ARG_DEVICE": "CUDA7"}, ()),
        ("no-key-file", {"LLAMA_ARG_API_KEY_FILE": "/nosuch"}, ()),
        ("no-memory", {"LLAMA_ARG_CTX_SIZE": "2000000000"}, ()),
    )
    record: Dict[str, Any] = {}
    for name, change, arguments in cases:
        command, words = program, arguments
        if name == "no-memory":  # an allocation of 2 TB that the kernel might grant and never back
            command, words = "prlimit", ("--as=3000000000", program, *arguments)
        server = Server(command, scratch / name, {**good, **change}, words)
        try:
            status: Optional[int] = server.process.wait(60)
        except subprocess.TimeoutExpired:
            server.process.kill()
            status = None
        record[name] = {"status": status, "said": [line for line in server.said() if line.strip()][-14:]}
    return record


def capture(program: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shown = subprocess.run([program, "--help"], stdout=subprocess.PIPE, check=True, text=True).stdout
    (folder / "help.txt").write_text(general(shown), "utf-8")
    version = subprocess.run([program, "--version"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, check=True)
    (folder / "version.txt").write_bytes(version.stdout)
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "tiny.gguf")
        models.write_gguf(model, "tiny")
        good = {"LLAMA_ARG_MODEL": str(model), "LLAMA_ARG_ALIAS": "tiny", "LLAMA_ARG_PORT": str(PORT)}
        good.update(LLAMA_ARG_ENDPOINT_METRICS="1", LLAMA_API_KEY=KEY, LLAMA_ARG_CTX_SIZE="512")
        with serving(program, Path(scratch, "serve"), good) as server:
            answers = {name: ask(*request) for name, *request in REQUESTS}
            (folder / "api.json").write_text(json.dumps(answers, indent=1) + "\n", "utf-8")
            metrics = ask("GET", "/metrics", None, True)["body"]
            kept = [re.sub(r" [\d.]+\Z", " 1", line) for line in metrics.splitlines() if not line.startswith("# TYPE")]
            (folder / "metrics.txt").write_text("\n".join(kept) + "\n", "utf-8")
            status = server.stop()
            (folder / "serve.log").write_text("\n".join([*server.said(), "exit status %d" % status]) + "\n", "utf-8")
        for mode, more in (("embeddings", {"LLAMA_ARG_POOLING": "mean"}), ("reranking", {})):
            with serving(program, Path(scratch, mode), {**good, **more, "LLAMA_ARG_%s" % mode.upper(): "1"}):
                answers = {name: ask(*request) for name, *request in POOLING}
                (folder / (mode + ".json")).write_text(json.dumps(answers, indent=1) + "\n", "utf-8")
        stopped = cut_short(program, Path(scratch), good)
        (folder / "stop.json").write_text(json.dumps(stopped, indent=1) + "\n", "utf-8")
        record = failures(program, Path(scratch), good, listener.getsockname()[1])
        (folder / "failures.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    capture(sys.argv[1], Path(sys.argv[2]))
