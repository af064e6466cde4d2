#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what a real vLLM says, for tests/unit/fixtures/vllm: `capture.py PYTHON MODEL FOLDER`.

PYTHON is the interpreter of an environment with vLLM (0.32.0 for the CPU was recorded), MODEL what tiny_model.py made.
Takes some seven minutes: three servers that answer, and one start for each failure.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

KEY = "sesame-key"
MODULE = "vllm.entrypoints.openai.api_server"
LIST_OPTIONS = (
    """
import argparse, json, os, runpy, sys
def told(self, args=None, namespace=None):
    found = {name: action.nargs == 0 for name, action in self._option_string_actions.items()}
    sys.stdout.write(json.dumps(dict(sorted(found.items())), indent=0))
    sys.stdout.flush()
    os._exit(0)
argparse.ArgumentParser.parse_args = told
sys.argv = ["api_server"]
runpy.run_module(%r, run_name="__main__")
"""
    % MODULE
)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}
COMPLETION = {"model": "tiny", "prompt": "Say hello.", "max_tokens": 1}
REQUESTS = (
    ("health", "GET", "/health", None, False),
    ("ping", "GET", "/ping", None, False),
    ("version", "GET", "/version", None, False),
    ("models", "GET", "/v1/models", None, True),
    ("models-without-key", "GET", "/v1/models", None, False),
    ("chat", "POST", "/v1/chat/completions", CHAT, True),
    ("chat-without-key", "POST", "/v1/chat/completions", CHAT, False),
    ("chat-no-such-model", "POST", "/v1/chat/completions", dict(CHAT, model="nosuch"), True),
    ("chat-too-long", "POST", "/v1/chat/completions", dict(CHAT, max_tokens=100000), True),
    ("completion", "POST", "/v1/completions", COMPLETION, True),
    ("embeddings", "POST", "/v1/embeddings", {"model": "tiny", "input": "hello"}, True),
    ("invocations-without-key", "POST", "/invocations", CHAT, False),
    ("tokenize-without-key", "POST", "/tokenize", {"model": "tiny", "prompt": "hello"}, False),
    ("no-such-path", "GET", "/nosuch", None, False),
)
POOLING = (
    *(request for request in REQUESTS if request[0] in ("chat", "completion")),
    ("embeddings", "POST", "/v1/embeddings", {"model": "tiny", "input": "hello"}, True),
    ("embeddings-no-such-model", "POST", "/v1/embeddings", {"model": "nosuch", "input": "hello"}, True),
    ("score", "POST", "/score", {"model": "tiny", "text_1": "hello", "text_2": "hello"}, True),
    ("classify", "POST", "/classify", {"model": "tiny", "input": "hello"}, True),
    ("pooling", "POST", "/pooling", {"model": "tiny", "input": "hello"}, True),
    ("transcription", "POST", "/v1/audio/transcriptions", {}, True),
)
GENERAL = (
    (r"\b(chatcmpl|cmpl|modelperm|resp|embd|score|classify|pooling)-[0-9a-f]+", r"\1-0"),
    (r'"created":\s*\d+', '"created":1'),
    (r"vllm-0.32.0-[0-9a-f]{8}", "vllm-0.32.0-0"),
    (r"pid=\d+", "pid=1"),
    (r"\b\d\d-\d\d \d\d:\d\d:\d\d\b", "01-01 00:00:00"),
)


def general(text: str) -> str:
    text = text.replace(str(Path(sys.argv[1]).parents[1]), "/opt/vllm")
    for pattern, instead in GENERAL:
        text = re.sub(pattern, instead, text)
    return text


def said(log: Path) -> List[str]:
    """The lines of a log, without empty ones and addresses of documentation."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return [general(line) for line in lines if line.strip() and "https://" not in line]


def start(python: str, options: Dict[str, Any], log: Path, environment: Optional[Dict[str, str]] = None) -> Any:
    config = log.with_suffix(".yaml")
    config.write_text("".join("%s: %s\n" % (key, json.dumps(value)) for key, value in options.items()), "utf-8")
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [python, "-W", "ignore", "-m", MODULE, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own, **(environment or {})},
            start_new_session=True,
        )


def ask(port: int, method: str, path: str, body: Any, key: bool) -> Dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + KEY} if key else {})}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    return {"status": answer.status, "type": answer.getheader("Content-Type"), "body": general(text)}


def wait(server: Any, log: Path) -> None:
    """Until it answers."""
    begun = time.monotonic()
    while True:
        try:
            if ask(8123, "GET", "/health", None, False)["status"] == 200:
                return
        except OSError:
            assert server.poll() is None, log.read_text()
        assert time.monotonic() < begun + 300, log.read_text()
        # a server that starts announces nothing: its port is polled
        time.sleep(0.2)


def capture(python: str, model: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run([python, "-W", "ignore", "-c", LIST_OPTIONS], stdout=subprocess.PIPE, check=True)
    (folder / "options.json").write_text(listed.stdout.decode() + "\n", "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken, tempfile.TemporaryDirectory() as scratch:
        port = taken.getsockname()[1]
        good = {"model": model, "served-model-name": ["tiny"], "host": "127.0.0.1", "port": 8123, "dtype": "float32"}
        good.update({"max-model-len": 256, "enforce-eager": True})
        record: Dict[str, Any] = {}
        for name, change in (
            ("bad-flag", {"max-model-length": 256}),
            ("bad-value", {"max-num-seqs": "many"}),
            ("bad-choice", {"dtype": "float7"}),
            ("too-long", {"max-model-len": 100000}),
            ("heads", {"tensor-parallel-size": 3}),
            ("no-model", {"model": "/nosuch/model"}),
            ("port-taken", {"port": port}),
        ):
            log = Path(scratch, name)
            status = start(python, {**good, **change}, log).wait(300)
            lines = said(log)
            record[name] = {"status": status, "last": lines[-12:]}
        (folder / "failures.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")

        broken = Path(scratch, "broken")
        shutil.copytree(model, broken)
        weights = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        empty = Path(scratch, "empty")
        shutil.copytree(model, empty, ignore=shutil.ignore_patterns("*.safetensors"))
        record = {}
        for name, change, environment in (
            ("broken-weights", {"model": str(broken)}, {}),
            ("no-weights", {"model": str(empty)}, {}),
            ("two-workers", {"tensor-parallel-size": 2}, {}),  # on a machine with one NUMA node
            ("memory", {}, {"VLLM_CPU_KVCACHE_SPACE": "4000"}),
        ):
            log = Path(scratch, name)
            status = start(python, {**good, **change}, log, environment).wait(300)
            record[name] = {"status": status, "said": said(log)}
        (folder / "engine.json").write_text(json.dumps(record, indent=0) + "\n", "utf-8")

        log = Path(scratch, "serve")
        server = start(python, good, log, {"VLLM_API_KEY": KEY})
        wait(server, log)
        answers = {name: ask(8123, *request) for name, *request in REQUESTS}
        (folder / "api.json").write_text(json.dumps(answers, indent=1) + "\n", "utf-8")
        metrics = ask(8123, "GET", "/metrics", None, False)["body"]
        kept = [line for line in metrics.splitlines() if "vllm:" in line and "_created" not in line]
        (folder / "metrics.txt").write_text("\n".join(line for line in kept if "_bucket" not in line) + "\n", "utf-8")
        routes = ask(8123, "GET", "/openapi.json", None, False)["body"]
        (folder / "paths.json").write_text(json.dumps(sorted(json.loads(routes)["paths"]), indent=0) + "\n", "utf-8")
        server.send_signal(signal.SIGTERM)
        status = server.wait(120)
        (folder / "serve.log").write_text("\n".join([*said(log), "exit status %d" % status]) + "\n", "utf-8")

        for task in ("embed", "classify"):
            log = Path(scratch, task)
            server = start(python, {**good, "runner": "pooling", "convert": task}, log, {"VLLM_API_KEY": KEY})
            wait(server, log)
            answers = {name: ask(8123, *request) for name, *request in POOLING}
            (folder / (task + ".json")).write_text(json.dumps(answers, indent=1) + "\n", "utf-8")
            server.send_signal(signal.SIGTERM)
            server.wait(120)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    capture(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
