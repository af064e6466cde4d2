# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vLLM double held to what a real vLLM says (fixtures/vllm)."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOUBLE = ROOT / "tests/lab/vllm/double"
FIXTURES = ROOT / "tests/unit/fixtures/vllm"
CONFIG = {"num_attention_heads": 4, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package as it lies in an environment: with the recorded list of options beside it."""
    site = tmp_path_factory.mktemp("site")
    for path in DOUBLE.rglob("*.py"):
        target = site / path.relative_to(DOUBLE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (site / "vllm/options.json").write_bytes((FIXTURES / "options.json").read_bytes())
    return site


@pytest.fixture
def start(package, tmp_path, free_port):
    """`start(**options)` starts the double with a file of these; all are gone afterwards."""
    begun = []
    model = tmp_path / "tiny"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    port = free_port()

    def start(key=None, **options):
        good = {"model": str(model), "served-model-name": ["tiny"], "host": "127.0.0.1", "port": port}
        good.update({"max-model-len": 256, **{name.replace("_", "-"): value for name, value in options.items()}})
        file = tmp_path / ("config-%d.yaml" % len(begun))
        file.write_text("".join("%s: %s\n" % (name, json.dumps(value)) for name, value in good.items()))
        environment = dict(os.environ, PYTHONPATH=str(package), NVIDIA_SIM_ROOT=str(tmp_path))
        environment.update({"VLLM_API_KEY": key} if key else {})
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--config", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        process.port = port
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def ask(port, method, path, body=None, key=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(
        method, path, json.dumps(body) if body else None, {"Authorization": "Bearer " + key} if key else {}
    )
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type"), answer.read().decode()


def wait(process):
    until = time.monotonic() + 20
    while True:
        try:
            return ask(process.port, "GET", "/health")
        except ConnectionRefusedError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}
COMPLETION = {"model": "tiny", "prompt": "Say hello.", "max_tokens": 1}


def test_the_same_answers_as_the_real_one(start):
    process = start(key="sesame-key")
    assert wait(process)[0] == 200
    recorded = json.loads((FIXTURES / "api.json").read_text())
    for name, method, path, body, key in (
        ("health", "GET", "/health", None, False),
        ("version", "GET", "/version", None, False),
        ("models", "GET", "/v1/models", None, True),
        ("models-without-key", "GET", "/v1/models", None, False),
        ("chat", "POST", "/v1/chat/completions", CHAT, True),
        ("chat-without-key", "POST", "/v1/chat/completions", CHAT, False),
        ("chat-no-such-model", "POST", "/v1/chat/completions", dict(CHAT, model="nosuch"), True),
        ("chat-too-long", "POST", "/v1/chat/completions", dict(CHAT, max_tokens=100000), True),
        ("completion", "POST", "/v1/completions", COMPLETION, True),
        ("invocations-without-key", "POST", "/invocations", CHAT, False),
        ("tokenize-without-key", "POST", "/tokenize", {"model": "tiny", "prompt": "hello"}, False),
        ("no-such-path", "GET", "/nosuch", None, False),
    ):
        status, _kind, text = ask(process.port, method, path, body, "sesame-key" if key else None)
        assert status == recorded[name]["status"], name
        ours, real = (json.loads(one) if one else {} for one in (text, recorded[name]["body"]))
        if status >= 400:
            assert same_words(ours, real), name
        assert set(ours) <= set(real), name
        assert ours.get("usage", {}).items() <= real.get("usage", {}).items(), name


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_the_same_answers_of_a_model_that_generates_no_text(start, task):
    process = start(runner="pooling", convert=task)
    assert wait(process)[0] == 200
    recorded = json.loads((FIXTURES / (task + ".json")).read_text())
    bodies = {
        "chat": ("/v1/chat/completions", CHAT),
        "completion": ("/v1/completions", COMPLETION),
        "embeddings": ("/v1/embeddings", {"model": "tiny", "input": "hello"}),
        "embeddings-no-such-model": ("/v1/embeddings", {"model": "nosuch", "input": "hello"}),
        "score": ("/score", {"model": "tiny", "text_1": "hello", "text_2": "hello"}),
        "classify": ("/classify", {"model": "tiny", "input": "hello"}),
        "pooling": ("/pooling", {"model": "tiny", "input": "hello"}),
        "transcription": ("/v1/audio/transcriptions", {}),
    }
    for name, (path, body) in bodies.items():
        status, _kind, text = ask(process.port, "POST", path, body)
        ours, real = json.loads(text), json.loads(recorded[name]["body"])
        assert status == recorded[name]["status"], name
        assert set(ours) <= set(real), name
        if status == 200:
            assert set(ours["data"][0]) <= set(real["data"][0]), name
            assert ours["usage"].items() <= real["usage"].items(), name
        else:
            assert same_words(ours, real), name


def same_words(ours, real):
    """An error has the same form, and begins with the same words."""
    first = [
        str((one.get("error") or {}).get("message", one) if isinstance(one.get("error"), dict) else one)
        for one in (ours, real)
    ]
    return first[0][:30] == first[1][:30]


def test_the_same_metrics(start):
    process = start()
    wait(process)
    ask(process.port, "POST", "/v1/chat/completions", CHAT)
    real = (FIXTURES / "metrics.txt").read_text()
    ours = ask(process.port, "GET", "/metrics")[2]
    names = {line.split("{")[0] for line in ours.splitlines() if not line.startswith("#")}
    assert names and all("\n%s{engine=" % name in real for name in names)
    assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 1.0' in ours


@pytest.mark.parametrize(
    "name, options",
    [
        ("bad-flag", {"max-model-length": 256}),
        ("bad-value", {"max-num-seqs": "many"}),
        ("bad-choice", {"dtype": "float7"}),
        ("too-long", {"max-model-len": 100000}),
        ("heads", {"tensor-parallel-size": 3}),
        ("no-model", {"model": "/nosuch/model"}),
        ("port-taken", {}),
    ],
)
def test_the_same_failures(start, name, options):
    recorded = json.loads((FIXTURES / "failures.json").read_text())[name]
    taken = socket.create_server(("127.0.0.1", 0)) if name == "port-taken" else None
    process = start(**options, **({"port": taken.getsockname()[1]} if taken else {}))
    said = process.communicate(timeout=20)[0].splitlines()
    if taken:
        taken.close()
    assert process.returncode == recorded["status"]
    tells = [line for line in recorded["last"] if re.search(r"error: |Value error|^OSError", line)][-1]
    words = tells.split("(max_position")[0].partition(" --max-model-length")[0].split(" [type=")[0].strip()
    assert any(words[:60] in line for line in said), "\n".join(said[-5:])


def test_a_stop_and_what_the_log_says(start):
    process = start()
    wait(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0]
    real = (FIXTURES / "serve.log").read_text()
    assert process.returncode == 0 and "exit status 0" in real
    for words in (
        "non-default args: {",
        "Starting vLLM server on http://127.0.0.1:",
        "stopping engine client mode=abort timeout=0s",
    ):
        assert words in said and words in real
    prefix = r"^\(APIServer pid=\d+\) INFO \d\d-\d\d \d\d:\d\d:\d\d \[[\w.]+:\d+\] "
    assert re.search(prefix, said, re.MULTILINE) and re.search(prefix, real, re.MULTILINE)


@pytest.fixture
def nodes(start, free_port):
    """Node 0, which serves, and node 1."""
    more = {"nnodes": 2, "master-addr": "127.0.0.1", "master-port": free_port()}
    more.update({"distributed-executor-backend": "mp", "pipeline-parallel-size": 2})
    other = start(headless=True, node_rank=1, **more)
    said = other.stdout.readline() + other.stdout.readline() + other.stdout.readline() + other.stdout.readline()
    recorded = json.loads((FIXTURES / "nodes.json").read_text())["worker-killed"]
    assert re.sub(r"[0-9.]+:[0-9]+ for", "", said.splitlines()[-1].partition("] ")[2]) == re.sub(
        r"[0-9.]+:[0-9]+ for", "", recorded["node-1"][0].partition("] ")[2]
    )
    head = start(node_rank=0, **more)
    assert wait(head)[0] == 200
    return head, other, recorded


def test_a_server_notices_the_end_of_another_node_at_the_next_request(nodes):
    head, other, recorded = nodes
    other.kill()
    other.wait()
    assert ask(head.port, "GET", "/health")[0] == 200 and head.poll() is None
    status, _type, body = ask(head.port, "POST", "/v1/completions", COMPLETION)
    assert {"status": status, "body": json.loads(body)} == {
        "status": recorded["node-0-answer"]["status"],
        "body": json.loads(recorded["node-0-answer"]["body"]),
    }
    assert head.wait(20) == recorded["node-0-status"]


def test_another_node_does_not_notice_the_end_of_the_server(nodes):
    head, other, recorded = nodes
    head.terminate()
    assert head.wait(20) == 0
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(1)
    other.terminate()
    assert other.wait(20) == recorded["node-1-status"]


def test_the_file_is_not_read_with_an_equals_sign(package, tmp_path):
    """As the real one: two words, or it serves another model."""
    words = (
        "import sys; from vllm.server import options_of; print(options_of(['--config=x.yaml', '--port', '9'])['model'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", words], env=dict(os.environ, PYTHONPATH=str(package)), stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "Qwen/Qwen3-0.6B\n"


def test_the_same_truth_values_of_the_file(package, tmp_path):
    recorded = json.loads((FIXTURES / "parser.json").read_text())["0.33.0"]
    words = (
        "import json, sys; from vllm.server import options_of;"
        "print(json.dumps([options_of(words).get('enable_prefix_caching') for words in json.loads(sys.argv[1])]))"
    )
    asked, expected = [], []
    for command, lines in recorded.items():
        for line, value in lines.items():
            if "enable-prefix-caching" in line:
                file = tmp_path / ("%d.yaml" % len(asked))
                file.write_text('model: "/m"\n%s\n' % line)
                asked.append([*(["serve"] if command == "serve" else []), "--config", str(file)])
                expected.append(value)
    done = subprocess.run(
        [sys.executable, "-c", words, json.dumps(asked)],
        env=dict(os.environ, PYTHONPATH=str(package)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert json.loads(done.stdout) == expected and None in expected and False in expected


def test_sleep_by_the_real_ones_paths(start, monkeypatch):
    """As entrypoints/serve/dev/sleep/api_router.py of 0.33.0 has them; the gauge is in the recorded metrics."""
    process = start(enable_sleep_mode=True)
    wait(process)
    assert ask(process.port, "GET", "/is_sleeping")[0] == 404
    process.kill()
    process.wait()
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    process = start(enable_sleep_mode=True)
    wait(process)
    assert json.loads(ask(process.port, "GET", "/is_sleeping")[2]) == {"is_sleeping": False}
    assert json.loads(ask(process.port, "POST", "/sleep?level=1")[2]) == {"status": "sleeping", "level": 1}
    assert json.loads(ask(process.port, "GET", "/is_sleeping")[2]) == {"is_sleeping": True}
    gauge = 'vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} '
    assert gauge + "1.0" in (FIXTURES / "metrics.txt").read_text()
    assert gauge + "0.0" in ask(process.port, "GET", "/metrics")[2]
    assert json.loads(ask(process.port, "POST", "/wake_up")[2]) == {"status": "awake", "tags": None}
    assert ask(process.port, "POST", "/v1/chat/completions", CHAT)[0] == 200
