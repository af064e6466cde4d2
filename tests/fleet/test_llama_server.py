# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module llama_server_service on a lab host, with a real llama-server, a real model and real tokens.

Only the GPUs are simulated, and that the server uses their memory (tests/lab/llama_server).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/llama_server"))

import program

KEY = "open-sesame-4711"
DROP_IN = "/etc/systemd/system/llama-server@%s.service.d/zz-gpufleet.conf"
MODEL = "/srv/models/tiny.gguf"
HAND_MADE = """[Unit]
Description=Set up manually

[Service]
User=nobody
Environment=LLAMA_ARG_THREADS=1 LLAMA_ARG_CTX_SIZE=512
ExecStart=/opt/llama.cpp/bin/llama-server --model %s --port 8099 -np 2 --no-warmup --alias theirs

[Install]
WantedBy=multi-user.target
""" % (MODEL)

Bring = Callable[..., Dict[str, Any]]


@pytest.fixture(scope="module")
def ready(lab: Any) -> Iterator[str]:
    """A host with four H200s, the program and a model."""
    host = lab.reset("gpu2")
    program.uninstall(host)
    program.install(host)
    program.add_model(host)
    yield host
    program.uninstall(host)
    lab.reset(host)


@pytest.fixture
def bring(lab: Any, ready: str) -> Iterator[Bring]:
    """`bring(*instances, **options)` runs the module; all instances are gone afterwards."""

    def run(*instances: Dict[str, Any], check: bool = False, **options: Any) -> Dict[str, Any]:
        given = {"model": MODEL, "visible_devices": "all", "drain_timeout": 2, "release_timeout": 60, "timeout": 120}
        given.update(environment={"LLAMA_ARG_THREADS": "1"}, extra_args={"no-warmup": True})  # less work for the host
        if instances:
            given["instances"] = list(instances)
        return lab.module(ready, "llama_server_service", {**given, **options}, check=check)

    yield run
    left = "systemctl list-units --all --plain --no-legend 'llama-server@*' | cut -d' ' -f1"
    names = [unit.partition("@")[2][: -len(".service")] for unit in lab.sh(ready, left).split()]
    if names:
        assert not run(*({"name": name, "state": "absent"} for name in names))["failed"]
    names_of_ours = "-name '*llama-server@?*.service*' -o -name '*.new'"
    places = "$(ls -d /etc/gpufleet /var/lib/gpufleet/fingerprints 2>/dev/null || :)"
    found = "find /etc/systemd/system %s %s -o -name '*llama-server@?*.json'" % (places, names_of_ours)
    assert lab.sh(ready, found) == ""


@pytest.fixture
def on(lab: Any, ready: str) -> Callable[[str], str]:
    """`on(command)` gives the output of a shell command on the host."""
    return lambda command: lab.sh(ready, command)


BROKEN = (
    'case "$*" in *--help*) exec /opt/llama.cpp/bin/llama-server --help;; esac; echo error: broken build >&2; exit 1'
)
"""A build that knows its arguments, and cannot run."""
CHAT = {"name": "chat", "visible_devices": [0, 1]}
EMBED = {"name": "embed", "visible_devices": [2], "port": 8081, "embeddings": True}
EMBED["environment"] = {"LLAMA_ARG_POOLING": "mean"}  # which the file of an embedding model says itself


def ask(on: Callable[[str], str], path: str, port: int = 8080, key: str = "", body: Any = None, tls: str = "") -> str:
    header = "-H 'Authorization: Bearer %s'" % key if key else ""
    data = "-d '%s'" % json.dumps(body) if body else ""
    return on("curl -sk -w '\\n%%{http_code}' %s %s http%s://127.0.0.1:%d%s" % (header, data, tls, port, path))


def processes(on: Callable[[str], str]) -> str:
    return on("pgrep -a llama-server || :")


def used(on: Callable[[str], str]) -> Dict[str, int]:
    """Index of each GPU on which somebody uses memory, to the process, as nvidia-smi says."""
    smi = on("nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader")
    uuids = on("nvidia-smi --query-gpu=uuid --format=csv,noheader").split()
    return {str(uuids.index(line.split(", ")[0])): int(line.split(", ")[1]) for line in smi.splitlines()}


def main_pid(on: Callable[[str], str], unit: str) -> int:
    return int(on("systemctl show -p MainPID --value %s" % unit))


def test_two_instances_serve_real_tokens_and_are_left_alone(bring: Bring, on: Any) -> None:
    planned = bring(CHAT, EMBED, check=True)
    assert planned["changed"] and not planned["failed"], planned["msg"]
    assert processes(on) == "" and on("ls -d /etc/gpufleet 2>/dev/null || :") == ""
    result = bring(CHAT, EMBED)
    assert not result["failed"], result["msg"]
    chat, embed = result["instances"]["llama-server@chat.service"], result["instances"]["llama-server@embed.service"]
    assert chat["msg"].startswith("ok · 2× H200 · chat at http://127.0.0.1:8080, ") and " · a token in " in chat["msg"]
    assert embed["msg"].startswith("ok · 1× H200 · embed at http://127.0.0.1:8081, ")
    assert "an embedding of 128 dimensions in" in embed["msg"]
    first, second = main_pid(on, "llama-server@chat"), main_pid(on, "llama-server@embed")
    assert used(on) == {"0": first, "1": first, "2": second}
    answer = json.loads(ask(on, "/v1/completions", body={"prompt": "hello", "max_tokens": 8}).rpartition("\n")[0])
    assert answer["usage"]["completion_tokens"] == 8 and len(answer["choices"][0]["text"]) == 8
    assert on("systemctl is-active llama-server@chat; systemctl is-enabled llama-server@chat").split() == [
        "active",
        "enabled",
    ]
    assert on("ps -o user= -p %d" % first).strip() == "llama-server"
    before = processes(on)
    again = bring(CHAT, EMBED)
    assert not again["changed"] and not again["failed"], again["msg"]
    assert processes(on) == before


def test_an_option_changes_one_instance_and_nothing_else(bring: Bring, on: Any) -> None:
    assert not bring(CHAT, EMBED)["failed"]
    other = main_pid(on, "llama-server@embed")
    planned = bring({**CHAT, "ctx_size": 1024}, EMBED, check=True)
    chat = planned["instances"]["llama-server@chat.service"]
    assert chat["restarted"] and chat["drift"]["LLAMA_ARG_CTX_SIZE"]["declared"] == "1024"
    result = bring({**CHAT, "ctx_size": 1024}, EMBED)
    assert not result["failed"], result["msg"]
    assert result["instances"]["llama-server@chat.service"]["environment"]["LLAMA_ARG_CTX_SIZE"] == "1024"
    assert json.loads(ask(on, "/props").rpartition("\n")[0])["default_generation_settings"]["n_ctx"] == 1024
    assert main_pid(on, "llama-server@embed") == other
    assert not bring({**CHAT, "ctx_size": 1024}, EMBED)["changed"]


def test_what_fails_is_rolled_back(bring: Bring, on: Any) -> None:
    assert not bring(CHAT)["failed"]
    on("head -c 900000 %s >/srv/models/cut.gguf" % MODEL)
    before = on("cat " + DROP_IN % "chat")
    result = bring({**CHAT, "model": "/srv/models/cut.gguf"})
    assert result["failed"] and result["verdict"] == "load_failed" and result["rolled_back"], result["msg"]
    assert "model is corrupted or incomplete" in result["msg"] and "download it again" in result["msg"]
    assert on("cat " + DROP_IN % "chat") == before
    assert ask(on, "/v1/models").endswith("200")
    assert not bring(CHAT)["changed"]


def test_another_build_takes_over_and_a_broken_one_is_rolled_back(bring: Bring, on: Any) -> None:
    assert not bring(CHAT)["failed"]
    on("rm -rf /opt/llama.cpp-next /opt/llama.cpp-bad; cp -a /opt/llama.cpp /opt/llama.cpp-next")
    on("mkdir /opt/llama.cpp-bad; printf '#!/bin/sh\\n%s\\n' >/opt/llama.cpp-bad/llama-server" % BROKEN)
    on("chmod 755 /opt/llama.cpp-bad/llama-server")
    result = bring(CHAT, program="/opt/llama.cpp-next/bin/llama-server")
    assert not result["failed"], result["msg"]
    pid = main_pid(on, "llama-server@chat")
    assert on("tr '\\0' ' ' </proc/%d/cmdline" % pid).startswith("/opt/llama.cpp-next/")
    assert not bring(CHAT, program="/opt/llama.cpp-next/bin/llama-server")["changed"]
    before = on("cat " + DROP_IN % "chat")
    result = bring(CHAT, program="/opt/llama.cpp-bad/llama-server")
    assert result["failed"] and result["rolled_back"] and "error: broken build" in result["msg"], result["msg"]
    assert on("cat " + DROP_IN % "chat") == before
    assert ask(on, "/v1/models").endswith("200")
    on("rm -rf /opt/llama.cpp-bad")


def test_wrong_answers_are_noticed(bring: Bring, on: Any, lab: Any, ready: str) -> None:
    """Recorded, kept by an option that does not change them, and compared: a template and weights that do."""
    prompts = {"fingerprints": ["Say hello.", "Name three colours."]}
    record = "/var/lib/gpufleet/fingerprints/llama-server@chat.service.json"
    assert bring(CHAT, **prompts)["instances"]["llama-server@chat.service"]["fingerprint"]["state"] == "recorded"
    before = on("cat " + record)
    read = lab.module(ready, "fingerprints_info", {})["fingerprints"]
    assert read == {"llama-server@chat.service": json.loads(before)}
    other = bring({**CHAT, "ctx_size": 1024}, **prompts)["instances"]["llama-server@chat.service"]
    assert (other["fingerprint"]["state"], on("cat " + record)) == ("same", before)

    on("echo '{% for one in messages %}{{ one.content }}{% endfor %}' >/srv/models/bare.jinja")
    template = {"jinja": True, "no-warmup": True, "chat-template-file": "/srv/models/bare.jinja"}
    result = bring({**CHAT, "ctx_size": 1024}, **prompts, extra_args=template)
    assert result["failed"] and result.get("verdict") == "wrong_answers" and result["rolled_back"], result["msg"]
    assert "the answers of chat differ from those recorded on this host: to 'Say hello.', token " in result["msg"]
    assert not bring({**CHAT, "ctx_size": 1024}, **prompts)["changed"]
    assert not bring({**CHAT, "ctx_size": 1024}, **prompts, new_answers=True, extra_args=template)["failed"]
    assert on("cat " + record) != before
    assert not bring({**CHAT, "ctx_size": 1024}, **prompts, new_answers=True)["failed"]

    # one bit of one weight, in the model that is served; nothing in the inventory says so
    flip = (
        "f=open('%s','r+b'); f.seek(-1200001,2); b=f.read(1)[0]; f.seek(-1200001,2); f.write(bytes([b^0x40]))" % MODEL
    )
    on('cp %s /srv/models/good.gguf; python3 -c "%s"; systemctl restart llama-server@chat' % (MODEL, flip))
    try:
        result = bring({**CHAT, "ctx_size": 1024}, **prompts, prove="now", check=True)
        assert result["failed"] and result["verdict"] == "wrong_answers", result["msg"]
    finally:
        on("mv /srv/models/good.gguf %s; systemctl restart llama-server@chat" % MODEL)
    same = bring({**CHAT, "ctx_size": 1024}, **prompts, prove="now", check=True)
    assert same["instances"]["llama-server@chat.service"]["fingerprint"]["state"] == "same"
    assert " · answers as recorded" in same["msg"]


def test_a_value_that_somebody_else_has_changed_is_noticed(bring: Bring, on: Any) -> None:
    assert not bring({**CHAT, "parallel": 2})["failed"]
    other = "/run/systemd/system/llama-server@chat.service.d/zzz-other.conf"
    on(
        "mkdir -p %s; printf '[Service]\\nEnvironment=LLAMA_ARG_N_PARALLEL=3\\n' >%s; systemctl daemon-reload; "
        "systemctl restart llama-server@chat" % (Path(other).parent, other)
    )
    try:
        result = bring({**CHAT, "parallel": 2})
        assert result["failed"], result["msg"]
        assert other in result["msg"] and "LLAMA_ARG_N_PARALLEL" in result["msg"]
    finally:
        on("rm -r %s; systemctl daemon-reload" % Path(other).parent)
    assert not bring({**CHAT, "parallel": 2})["failed"]
    assert json.loads(ask(on, "/props").rpartition("\n")[0])["total_slots"] == 2


def test_isolated_instances_can_open_their_own_gpus_alone(bring: Bring, on: Any) -> None:
    result = bring(CHAT, EMBED, isolate=True, sandbox=True)
    assert not result["failed"], result["msg"]
    first, second = main_pid(on, "llama-server@chat"), main_pid(on, "llama-server@embed")
    assert used(on) == {"0": first, "1": first, "2": second}
    allowed = on("systemctl show -p DeviceAllow llama-server@embed")
    assert "/dev/nvidia2 " in allowed and "/dev/nvidia0 " not in allowed
    exposure = on("systemd-analyze security --no-pager llama-server@embed | tail -1")
    assert float(exposure.split(": ")[1].split()[0]) <= 1.6, exposure
    assert not bring(CHAT, EMBED, isolate=True, sandbox=True)["changed"]


def test_the_key_is_asked_for_and_shown_nowhere(bring: Bring, on: Any) -> None:
    result = bring(CHAT, api_key=KEY, host="0.0.0.0")
    assert not result["failed"], result["msg"]
    body = {"prompt": "hello", "max_tokens": 1}
    assert ask(on, "/v1/completions", body=body).endswith("401")
    assert ask(on, "/v1/completions", key=KEY, body=body).endswith("200")
    changed = bring(CHAT, api_key=KEY + "-new", host="0.0.0.0")
    assert not changed["failed"], changed["msg"]
    units = "systemctl cat llama-server@chat; systemctl show llama-server@chat; journalctl -o cat -u llama-server@chat"
    seen = on("ps axww -o args; %s" % units) + json.dumps([result, changed])
    assert KEY not in seen
    assert on("stat -c %a:%U /etc/gpufleet/llama-server@chat.service.env").strip() == "600:root"
    assert ask(on, "/v1/completions", key=KEY + "-new", body=body).endswith("200")
    assert not bring(CHAT, api_key=KEY + "-new", host="0.0.0.0")["changed"]


def test_it_serves_by_tls(bring: Bring, on: Any) -> None:
    on(
        "mkdir -p /srv/models/tls; cd /srv/models/tls; openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem"
        " -out cert.pem -days 2 -subj /CN=localhost 2>/dev/null; chmod 644 key.pem"
    )
    tls = {"ssl_key_file": "/srv/models/tls/key.pem", "ssl_cert_file": "/srv/models/tls/cert.pem"}
    result = bring(CHAT, **tls)
    assert not result["failed"], result["msg"]
    assert "chat at https://127.0.0.1:8080" in result["msg"]
    assert ask(on, "/v1/models", tls="s").endswith("200")
    assert not bring(CHAT, **tls)["changed"]


def test_a_reranker_is_verified_by_a_score(bring: Bring) -> None:
    result = bring({**CHAT, "reranking": True})
    assert not result["failed"], result["msg"]
    assert "a score in " in result["msg"]


def test_it_serves_on_the_cpu_where_that_is_declared(bring: Bring, on: Any) -> None:
    result = bring({"name": "chat", "visible_devices": "none"})
    assert not result["failed"], result["msg"]
    assert result["msg"].startswith("llama-server@chat: ok · CPU · chat at ")
    assert used(on) == {}


def test_a_server_that_uses_no_gpu_is_not_kept(bring: Bring, on: Any) -> None:
    result = bring({**CHAT, "n_gpu_layers": "0"})
    assert result["failed"] and result["verdict"] == "cpu_fallback", result["msg"]
    assert processes(on) == ""


def test_a_running_request_ends_before_a_restart(bring: Bring, on: Any) -> None:
    more = {"LLAMA_ARG_CONTEXT_SHIFT": "1", "LLAMA_ARG_THREADS": "1"}
    assert not bring(CHAT, environment=more)["failed"]
    body = json.dumps({"prompt": "hello", "max_tokens": 40000, "ignore_eos": True})
    on(
        "systemd-run --quiet --unit=client --remain-after-exit sh -c \"curl -s -o /run/answer -w %%{http_code} -d '%s'"
        ' http://127.0.0.1:8080/v1/completions >/run/status"; timeout 60 sh -c "until curl -s'
        ' http://127.0.0.1:8080/metrics | grep -q processing.1; do :; done"' % body.replace('"', '\\"')
    )
    try:
        result = bring(CHAT, environment=more, parallel=2, drain_timeout=120)
        assert not result["failed"], result["msg"]
        assert on("cat /run/status") == "200"
        assert json.loads(on("cat /run/answer"))["usage"]["completion_tokens"] == 40000
    finally:
        on("systemctl stop client 2>/dev/null; rm -f /run/answer /run/status")


def test_a_request_that_does_not_end_is_cut(bring: Bring, on: Any) -> None:
    """A server that is told to stop waits for the clients of its requests, however long."""
    more = {"LLAMA_ARG_CONTEXT_SHIFT": "1", "LLAMA_ARG_THREADS": "1"}
    assert not bring(CHAT, environment=more)["failed"]
    body = json.dumps({"prompt": "hello", "max_tokens": -1, "ignore_eos": True}).replace('"', '\\"')
    on(
        "systemd-run --quiet --unit=client sh -c \"curl -s -o /dev/null -d '%s' http://127.0.0.1:8080/v1/completions\";"
        ' timeout 60 sh -c "until curl -s http://127.0.0.1:8080/metrics | grep -q processing.1; do :; done"' % body
    )
    try:
        result = bring(CHAT, environment=more, parallel=2, drain_timeout=0.5)
        assert not result["failed"], result["msg"]
        assert "stop-sigterm' timed out. Killing" in on("journalctl -o cat -u llama-server@chat")
    finally:
        on("systemctl stop client 2>/dev/null; systemctl reset-failed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra_args": {"no-warmpu": True}}, "has no such argument; did you mean --no-warmup?"),
        ({"extra_args": {"ctx-size": 5}}, "extra_args.ctx-size: use the option ctx_size"),
        ({"extra_args": {"api-key": "x"}}, "extra_args.api-key: use the option api_key"),
        ({"extra_args": {"top-k": True}}, "--top-k: takes 1 values, not 0"),
        ({"environment": {"LLAMA_ARG_THREAD": "2"}}, "did you mean LLAMA_ARG_THREADS?"),
        ({"environment": {"LLAMA_API_KEY": "x"}}, "environment.LLAMA_API_KEY: use the option api_key"),
        ({"cache_type_k": "f7"}, "LLAMA_ARG_CACHE_TYPE_K: f7; expected one of f32, f16, bf16, q8_0"),
        ({"host": "0.0.0.0"}, "is reachable from other hosts"),
        ({"model": "/srv/models/nosuch.gguf"}, "cannot read /srv/models/nosuch.gguf: No such file"),
        ({"model": "/etc/hostname"}, "model: /etc/hostname begins with b'gpu2'; expected b'GGUF'"),
        ({"program": "/opt/nosuch"}, "program: there is no program /opt/nosuch"),
        ({"program": "/usr/bin/true"}, "program: /usr/bin/true --help"),
        ({"visible_devices": [7]}, "visible_devices: There is no GPU 7"),
        ({"parallel": 0}, "parallel: 0; expected 1 or more"),
        ({"port": 22}, "port 22"),
        ({"ssl_key_file": "/x"}, "ssl_key_file, ssl_cert_file: set both or neither"),
    ],
)  # fmt: skip
def test_what_would_fail_is_refused_before_anything_is_touched(
    bring: Bring, on: Any, options: Dict[str, Any], words: str
) -> None:
    assert not bring(CHAT)["failed"]
    state = "cat %s; systemctl show -p InvocationID llama-server@chat" % (DROP_IN % "chat")
    before = processes(on), on(state)
    result = bring({**CHAT, **options})
    assert result["failed"] and words in result["msg"], result["msg"]
    assert "nothing was changed" in result["msg"] and "llama-server@chat.service" in result["msg"]
    assert (processes(on), on(state)) == before


def test_claims_of_all_instances_are_checked_before_the_first_is_touched(bring: Bring, on: Any) -> None:
    result = bring(CHAT, {**EMBED, "visible_devices": [1]})
    assert result["failed"] and "both claim GPU 1" in result["msg"], result["msg"]
    assert processes(on) == "" and on("ls -d /etc/systemd/system/llama-server@?*.service* 2>/dev/null || :") == ""


def test_an_instance_is_removed_and_the_other_serves_on(bring: Bring, on: Any) -> None:
    assert not bring(CHAT, EMBED)["failed"]
    before = main_pid(on, "llama-server@chat")
    gone = {"name": "embed", "state": "absent"}
    assert bring(gone)["changed"] and not bring(gone)["changed"]
    assert main_pid(on, "llama-server@chat") == before
    assert on("systemctl show -p UnitFileState --value llama-server@embed").strip() == "disabled"
    assert set(used(on)) == {"0", "1"}


def test_a_unit_that_was_written_manually_is_adopted(bring: Bring, on: Any, lab: Any, ready: str) -> None:
    """Its arguments, variables and user stay in force; what the inventory declares otherwise replaces just that."""
    path = "/etc/systemd/system/llama-server.service"
    on("cat >%s <<'end'\n%send\nsystemctl daemon-reload; systemctl start llama-server" % (path, HAND_MADE))
    try:
        theirs = {"model": None, "environment": {}, "extra_args": {}}
        result = bring(ctx_size=512, **theirs)
        assert not result["failed"], result["msg"]
        assert "theirs at http://127.0.0.1:8099" in result["msg"]
        command = on("systemctl show -p ExecStart --value llama-server")
        assert "--model %s --port 8099 -np 2 --no-warmup --alias theirs ;" % MODEL in command
        drop_in = on("cat /etc/systemd/system/llama-server.service.d/zz-gpufleet.conf")
        assert "ExecStart" not in drop_in and "User=" not in drop_in and "THREADS" not in drop_in
        assert on("ps -o user= -p %d" % main_pid(on, "llama-server")).strip() == "nobody"
        assert not bring(ctx_size=512, **theirs)["changed"]
        result = bring(ctx_size=512, parallel=3, **theirs)
        assert not result["failed"], result["msg"]
        assert json.loads(ask(on, "/props", port=8099).rpartition("\n")[0])["total_slots"] == 3
        command = on("systemctl show -p ExecStart --value llama-server")
        assert "--model %s --port 8099 --no-warmup --alias theirs ;" % MODEL in command
        assert not bring(ctx_size=512, parallel=3, **theirs)["changed"]
        assert not bring(state="absent")["failed"]
        assert on("cat " + path) == HAND_MADE
        assert json.loads(ask(on, "/props", port=8099).rpartition("\n")[0])["total_slots"] == 2
    finally:
        on("systemctl disable --now llama-server; rm -rf %s*; systemctl daemon-reload" % path)
