# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every verdict of the proof, from a server that earns it."""

from __future__ import annotations

import threading
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import checks
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import checks as neutral
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import gate as make_gate
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System

GIB = 1 << 30

CONFIG = (
    'time=2026-11-22T08:43:08.787Z level=INFO source=routes.go:1951 msg="server config" env="map[CUDA_VISIBLE_DEVICES:%s '
    'OLLAMA_HOST:http://127.0.0.1:11434 OLLAMA_KEEP_ALIVE:%s OLLAMA_SCHED_SPREAD:true no_proxy:]"'
)
LISTENING = 'time=… level=INFO source=routes.go:2008 msg="Listening on 127.0.0.1:11434 (version 0.32.15)"'
ON_CPU = 'time=… level=INFO source=types.go:50 msg="inference compute" id=cpu library=cpu compute="" name=cpu pci_id=""'

LAST = 'level=INFO source=routes.go:2058 msg="vram-based default context" total_vram="559.2 GiB" default_num_ctx=262144'


def compute(index: int, pci: bool = True) -> str:
    place = "0000:00:0%d.0" % (6 + index) if pci else '""'
    return 'level=INFO msg="inference compute" id=%d library=CUDA description="NVIDIA H200" pci_id=%s' % (index, place)


def start_log(visible="0,1,2,3", keep_alive="5m0s", gpus=None):
    lines = [CONFIG % (visible, keep_alive), LISTENING]
    return [*lines, *(gpus if gpus is not None else [compute(index) for index in range(4)]), LAST]


EFFECTIVE = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "OLLAMA_KEEP_ALIVE": "5m0s"}
SPREAD = (11 * GIB, 11 * GIB, 11 * GIB, 11 * GIB)


@pytest.fixture
def gate(ollama, monkeypatch, fakes):
    """`gate(...)` runs a gate over a running unit and gives the verdict; four GPUs are declared unless told otherwise."""
    monkeypatch.setattr(checks, "_LOG_DELAY", 0.1)
    monkeypatch.setattr(neutral, "_MEMORY_DELAY", 0.1)

    def run(
        log=None, changed=True, before=None, after=None, running=None, declared=(0, 1, 2, 3), gather=None, **options
    ):
        known = before or fakes.facts()
        effective = dict(options.pop("effective", EFFECTIVE))
        if options.pop("spread", False):
            effective["OLLAMA_SCHED_SPREAD"] = "true"
        run.gate = make_gate(
            checks.checks(effective, **options),
            devices=[known["devices"][index] for index in declared],
            facts=known,
            gather=gather or (lambda: after or known),
            explain=checks.explain,
        )
        run.running = running or fakes.FakeRunning(
            start_log() if log is None else log, {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port}
        )
        return run.gate(run.running, changed)

    return run


def test_ok_without_a_model(gate, ollama):
    assert gate().name == "ok"
    assert gate.gate.proof.figures["version"] == "0.32.15"
    assert [path for path, _body in ollama.requests] == ["/api/version"]


@pytest.mark.parametrize("changed", [True, False])
def test_another_version_answers(gate, changed):
    verdict = gate(version="0.32.14", changed=changed)
    assert verdict.name == "wrong_version"
    assert "reports version 0.32.15, expected 0.32.14 (version)" in verdict.message
    assert gate(version="0.32.15", changed=changed).name == "ok"


def test_ok_with_a_model_that_is_spread(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    verdict = gate(model="m70b", spread=True, after=fakes.facts(SPREAD))
    assert verdict.name == "ok", verdict
    assert [gpu["used_bytes"] for gpu in gate.gate.gpus()] == list(SPREAD)
    assert [path for path, _body in ollama.requests] == ["/api/version", "/api/generate", "/api/ps"]


def test_ok_on_a_host_without_gpus(gate, ollama, fakes):
    ollama.loads(4 * GIB, 0)
    nothing = dict(fakes.facts(()), source="procfs")
    assert gate(log=start_log(gpus=[ON_CPU]), before=nothing, declared=(), model="m70b").name == "ok"


def test_the_model_may_need_a_moment_to_show_in_nvml(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    answers = iter([fakes.facts(), fakes.facts(SPREAD)])
    assert gate(model="m70b", spread=True, gather=lambda: next(answers)).name == "ok"


# --- crash_loop


def test_crash_loop_with_the_servers_last_words(gate, fakes):
    running = fakes.FakeRunning(
        ["Error: listen tcp 127.0.0.1:11434: bind: address already in use"], {"OLLAMA_HOST": "127.0.0.1:1"}
    )
    running.is_alive = lambda: False
    verdict = gate(running=running)
    assert verdict.name == "crash_loop"
    assert "address already in use" in verdict.message
    assert "choose another port" in verdict.message


def test_the_last_words_of_a_busy_journald(gate, fakes):
    running = fakes.FakeRunning([], {"OLLAMA_HOST": "127.0.0.1:1"})
    running.is_alive = lambda: False
    running.behind = ["Error: listen tcp 127.0.0.1:11434: bind: address already in use"]
    assert "address already in use" in gate(running=running).message


def test_crash_loop_without_words(gate, fakes):
    running = fakes.FakeRunning([], {"OLLAMA_HOST": "127.0.0.1:1"})
    running.is_alive = lambda: False
    assert gate(running=running).message == "the server ended and said nothing"


def test_another_server_answers_on_the_port(gate, ollama):
    log = ["Error: listen tcp 127.0.0.1:%d: bind: address already in use" % ollama.port]
    assert gate(log=log).name == "crash_loop"


def test_crash_while_the_log_is_waited_for(gate, ollama, fakes):
    running = fakes.FakeRunning([], {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})
    lives = iter([True, False, False])
    running.is_alive = lambda: next(lives)
    assert gate(running=running).name == "crash_loop"


def test_crash_while_a_token_is_generated(gate, ollama, fakes):
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})

    def die(_body):
        running.is_alive = lambda: False

    ollama.answers["/api/generate"] = die
    assert gate(running=running, model="m70b").name == "crash_loop"


@pytest.mark.parametrize("changed, name", [(True, "port_taken"), (False, "ok")])
def test_a_process_of_another_unit_answers(gate, ollama, fakes, changed, name):
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})
    running.listening = (4711, "python3")
    verdict = gate(running=running, changed=changed)
    assert verdict.name == name
    if changed:
        assert "port %d is answered by process 4711 (python3)" % ollama.port in verdict.message
        assert "does not belong to ollama.service" in verdict.message


# --- not_ready, unproven


def test_not_ready_when_nothing_answers(gate, fakes):
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "127.0.0.1:1"}, timeout=0.2)
    verdict = gate(running=running)
    assert verdict.name == "not_ready"
    assert "http://127.0.0.1:1" in verdict.message
    assert "Connection refused" in verdict.message


def test_not_ready_when_it_answers_and_serves_nothing(gate, ollama, fakes):
    ollama.answers["/api/version"] = (200, b"<html>hello</html>")
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port}, timeout=0.2)
    assert gate(running=running).name == "not_ready"


def test_a_server_that_runs_for_long_must_answer_soon(gate, monkeypatch, fakes):
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "127.0.0.1:1"}, timeout=3600)
    running.started_monotonic -= 600
    now = [time.monotonic()]
    monkeypatch.setattr(neutral.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(neutral.time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    before = now[0]
    assert gate(running=running, changed=False).name == "not_ready"
    assert 5 <= now[0] - before < 6


def test_not_ready_when_the_api_breaks_down(gate, ollama):
    ollama.answers["/api/ps"] = (500, b"oops")
    assert gate(model="m70b").name == "not_ready"


def test_a_start_log_that_is_still_being_written_is_read_to_its_end(gate, ollama, fakes, monkeypatch):
    monkeypatch.setattr(checks, "_LOG_DELAY", 60)
    running = fakes.FakeRunning([], {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})
    lines = iter(range(3, len(start_log()) + 1))  # the API answers while the journal knows of one GPU, of two, …
    running.journal_from_start = lambda: start_log()[: next(lines)]
    assert gate(running=running).name == "ok"
    assert next(lines, None) is None


@pytest.mark.parametrize("changed", [True, False])
def test_a_start_log_that_a_busy_journald_has_not_read(gate, ollama, fakes, monkeypatch, changed):
    """Neither is it missing, nor are the GPUs that it has not come to; others may have started it just now."""
    monkeypatch.setattr(checks, "_LOG_DELAY", 0)
    running = fakes.FakeRunning(start_log()[:3], {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})
    running.behind = start_log()[3:]
    assert gate(running=running, changed=changed).name == "ok" and not running.behind


def test_a_server_that_does_not_end_its_list_of_gpus(gate):
    assert gate(log=start_log()[:-1]).name == "ok"
    assert gate(log=start_log()[:-2]).name == "wrong_gpu"


def test_unproven_when_the_log_goes_elsewhere(gate):
    verdict = gate(log=["unrelated"])
    assert verdict.name == "unproven"
    assert "'server config' or 'Listening on' or 'inference compute'" in verdict.message


def test_unproven_when_nobody_can_say_who_holds_memory(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    verdict = gate(model="m70b", after=fakes.facts(source="procfs"))
    assert verdict.name == "unproven"
    assert "pynvml" in verdict.message


# --- misread


def test_misread_value(gate):
    verdict = gate(log=start_log(keep_alive="30m0s"))
    assert verdict.name == "misread"
    assert "OLLAMA_KEEP_ALIVE: declared 5m0s, understood 30m0s" in verdict.message


def test_misread_because_the_server_is_too_old(gate):
    verdict = gate(effective={"OLLAMA_NO_CLOUD": "true"})
    assert verdict.name == "misread"
    assert "server 0.32.15 does not list it" in verdict.message


def test_misread_host_of_another_drop_in(gate, fakes):
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "https://127.0.0.1"})
    verdict = gate(running=running)
    assert verdict.name == "misread"
    assert "plain HTTP only" in verdict.message


# --- cpu_fallback, wrong_gpu


def test_cpu_fallback_at_start(gate):
    verdict = gate(log=start_log(gpus=[ON_CPU]))
    assert verdict.name == "cpu_fallback"
    assert "this host has 4; declared: 0 (NVIDIA H200" in verdict.message


@pytest.mark.parametrize("changed", [True, False])
def test_what_a_model_has_the_worker_print_is_no_evidence(gate, changed):
    """Its name may hold line breaks, and behind them whatever a server says of GPUs that it found."""
    forged = [*start_log()[2:], start_log()[0], LISTENING]
    assert (
        gate(log=[*start_log(gpus=[ON_CPU]), "print_info: name = x", *forged], changed=changed).name == "cpu_fallback"
    )


@pytest.mark.parametrize("size", ["x", [], -1, 1e400, None, {}])
def test_sizes_that_are_none(gate, ollama, fakes, size):
    ollama.loads(size, size)
    assert gate(model="m70b", after=fakes.facts(SPREAD)).name == "cpu_fallback"


def test_cpu_fallback_also_where_no_gpus_are_declared(gate):
    verdict = gate(log=start_log(gpus=[ON_CPU]), declared=())
    assert verdict.name == "cpu_fallback"


def test_cpu_fallback_of_the_model(gate, ollama):
    ollama.loads(43 * GIB, 0)
    assert gate(model="m70b").name == "cpu_fallback"


def test_wrong_gpu_at_start(gate):
    verdict = gate(log=start_log(gpus=[compute(0), compute(3)]), declared=(0, 1))
    assert verdict.name == "wrong_gpu"
    assert "missing: 1 (NVIDIA H200" in verdict.message
    assert "others: 3 (NVIDIA H200" in verdict.message


@pytest.mark.parametrize("found, name", [(4, "ok"), (1, "wrong_gpu")])
def test_a_server_that_names_no_pci_ids_is_counted(gate, found, name):
    assert gate(log=start_log(gpus=[compute(index, pci=False) for index in range(found)])).name == name


@pytest.mark.parametrize("index, name", [(1, "ok"), (2, "wrong_gpu")])
def test_an_older_server_names_uuids(gate, index, name, fakes):
    line = 'level=INFO msg="inference compute" id=%s library=cuda name="NVIDIA H200"' % fakes.uuid(index)
    assert gate(log=start_log(gpus=[line]), declared=(1,)).name == name


def test_wrong_gpu_by_memory(gate, fakes):
    verdict = gate(
        after=None,
        before=fakes.facts((0, 0, 0, 5 * GIB)),
        declared=(0, 1, 2, 3)[:2],
        log=start_log(gpus=[compute(0), compute(1)]),
    )
    assert verdict.name == "wrong_gpu"
    assert "uses memory on GPUs that are not declared: 3 (NVIDIA H200" in verdict.message


def test_memory_of_the_former_process_is_not_held_against_the_new_one(gate, fakes):
    log = start_log(gpus=[compute(0), compute(1)])
    verdict = gate(before=fakes.facts(SPREAD), after=fakes.facts((5 * GIB, 0, 0, 0)), declared=(0, 1), log=log)
    assert verdict.name == "ok", verdict
    assert [gpu["used_bytes"] for gpu in gate.gate.gpus()] == [5 * GIB, 0]


# --- with a model


def test_model_missing(gate, ollama):
    ollama.answers["/api/generate"] = (404, {"error": "model 'm70b' not found"})
    assert gate(model="m70b").name == "model_missing"


def test_load_failed(gate, ollama):
    words = "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory"
    ollama.answers["/api/generate"] = (500, {"error": words})
    verdict = gate(model="m70b")
    assert verdict.name == "load_failed"
    assert words in verdict.message


def test_load_failed_when_the_connection_breaks(gate, ollama):
    ollama.answers["/api/generate"] = lambda body: None
    assert gate(model="m70b").name == "load_failed"


def test_stalled_when_no_token_comes(gate, ollama, fakes):
    given_up = threading.Event()
    ollama.answers["/api/generate"] = lambda body: given_up.wait(60) and None
    running = fakes.FakeRunning(start_log(), {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port}, timeout=1)
    verdict = gate(model="m70b", running=running)
    given_up.set()
    assert verdict.name == "stalled"
    assert "generated none within 1 s" in verdict.message


@pytest.mark.parametrize("body", [{"done": False}, {"done": True, "eval_count": 0}, {}])
def test_stalled_when_the_answer_is_200_and_nothing_was_generated(gate, ollama, body):
    ollama.answers["/api/generate"] = (200, body)
    assert gate(model="m70b").name == "stalled"


def test_partial_offload(gate, ollama, fakes):
    ollama.loads(43 * GIB, 22 * GIB)
    verdict = gate(model="m70b", after=fakes.facts(SPREAD))
    assert verdict.name == "partial_offload"
    assert "22.0 of its 43.0 GiB" in verdict.message


def test_vram_missing_when_ps_names_a_dead_worker(gate, ollama):
    ollama.loads(43 * GIB)
    verdict = gate(model="m70b")
    assert verdict.name == "vram_missing"
    assert "its worker is dead" in verdict.message


def test_vram_missing_when_another_unit_holds_it(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    assert gate(model="m70b", after=fakes.facts(SPREAD, unit="other.service")).name == "vram_missing"


def test_spread_missing(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    packed = fakes.facts((22 * GIB, 22 * GIB, 0, 0))
    verdict = gate(model="m70b", spread=True, after=packed)
    assert verdict.name == "spread_missing"
    assert "2 (NVIDIA H200" in verdict.message
    assert gate(model="m70b", spread=False, after=packed).name == "ok"


def crowded(fakes):
    """Facts as seen on two H200s: a foreign process held 120 GiB of the second one before the model was loaded."""
    seen = fakes.facts((42 * GIB, 6 * GIB, 0, 0))
    seen["devices"][0]["memory"]["free_bytes"] = 97 * GIB
    seen["devices"][1]["memory"]["free_bytes"] = 13 * GIB
    seen["devices"][1]["processes"].append(
        {"pid": 4711, "name": "python3", "type": "compute", "used_bytes": 120 * GIB, "unit": "train.service"}
    )
    return seen


@pytest.mark.parametrize("changed", [True, False])
def test_uneven_spread_names_who_holds_the_memory(gate, ollama, fakes, changed):
    ollama.loads(43 * GIB)
    log = start_log(gpus=[compute(0), compute(1)])
    verdict = gate(log=log, model="m70b", spread=True, before=crowded(fakes), declared=(0, 1), changed=changed)
    assert (verdict.name, verdict.remedy) == ("uneven_spread", "")
    assert "43008 MiB on GPU 0, 6144 MiB on GPU 1" in verdict.message
    assert "process 4711 python3 of train.service 122880 MiB" in verdict.message
    assert "uneven_spread: warn" in verdict.message
    assert verdict.evidence["gpus"][1]["holders"][0]["pid"] == 4711


def test_uneven_spread_can_be_a_warning(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    warnings, log = [], start_log(gpus=[compute(0), compute(1)])
    options = {"spread": True, "uneven": "warn", "warn": warnings.append}
    assert gate(log=log, model="m70b", before=crowded(fakes), declared=(0, 1), **options).name == "ok"
    assert len(warnings) == 1 and "process 4711 python3 of train.service" in warnings[0]


def test_uneven_is_no_fault_where_no_spread_is_declared(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    log = start_log(gpus=[compute(0), compute(1)])
    assert gate(log=log, model="m70b", before=crowded(fakes), declared=(0, 1)).name == "ok"


# --- what may mend it


def test_of_what_it_keeps_until_it_is_started_anew_a_restart_may_mend_it(gate, ollama, fakes):
    two = start_log(gpus=[compute(0), compute(1)])
    assert gate(log=start_log(gpus=[ON_CPU])).remedy == "restart"
    assert gate(log=two, declared=(0, 2)).remedy == "restart"
    assert gate(log=start_log(gpus=[compute(0, pci=False)])).remedy == "restart"
    assert gate(log=two, declared=(0, 1), after=fakes.facts((0, 0, 0, 5 * GIB))).remedy == "restart"
    ollama.loads(43 * GIB)
    assert gate(model="m70b", spread=True, after=fakes.facts((22 * GIB, 22 * GIB, 0, 0))).remedy == "restart"
    ollama.loads(43 * GIB, 22 * GIB)
    assert gate(model="m70b").remedy == "restart"
    ollama.loads(43 * GIB, 0)
    assert gate(model="m70b").remedy == "restart"


def test_a_dead_worker_is_mended_by_a_token(gate, ollama, fakes):
    """The server notices at the next request, and loads the model anew; see runner-killed in the recorded placements."""
    ollama.loads(43 * GIB)
    verdict = gate(changed=False, model="m70b")
    assert (verdict.name, verdict.remedy) == ("vram_missing", "proof")
    ollama.requests.clear()
    assert gate(changed=True, model="m70b", after=fakes.facts(SPREAD)).name == "ok"
    assert "/api/generate" in [path for path, _body in ollama.requests]


def test_a_dead_worker_is_mended_when_the_log_of_the_start_is_gone(gate, ollama, fakes):
    """A server that runs for weeks is the one whose worker dies; of one that was just started the log is asked for."""
    ollama.loads(43 * GIB)
    running = fakes.FakeRunning(["[GIN] | 200 |"], {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})
    running.started_monotonic -= 3600
    looks = [fakes.facts()]
    assert gate(changed=False, model="m70b", running=running, gather=lambda: looks[-1]).remedy == "proof"
    looks.append(fakes.facts(SPREAD))
    assert gate.gate(running, True).name == "ok"
    running.invocation_id = "another"
    assert gate.gate(running, True).name == "unproven"


def test_of_what_is_declared_wrong_nothing_may_mend_it(gate, ollama):
    ollama.answers["/api/generate"] = (404, {"error": "model 'm70b' not found"})
    assert gate(model="m70b").remedy == ""
    assert gate(log=[]).remedy == ""


# --- nothing changed: reading alone


def test_memory_that_the_server_reports_may_show_late(gate, ollama, fakes):
    """A model that somebody else is just loading is no dead worker."""
    ollama.loads(43 * GIB)
    looks = [fakes.facts(), fakes.facts(SPREAD)]
    assert gate(changed=False, model="m70b", gather=lambda: looks.pop(0)).name == "ok" and not looks


def test_without_a_change_nothing_is_loaded_or_gathered(gate, ollama):
    def gather():
        raise AssertionError("gathered")

    assert gate(changed=False, model="m70b", spread=True, gather=gather).name == "ok"
    assert [path for path, _body in ollama.requests] == ["/api/version", "/api/ps"]


def test_without_a_change_a_loaded_model_is_looked_at(gate, ollama, fakes):
    ollama.loads(43 * GIB)
    assert gate(changed=False, model="m70b", before=fakes.facts(SPREAD), spread=True).name == "ok"
    assert gate(changed=False, model="m70b").name == "vram_missing"


def test_without_a_change_what_others_load_meanwhile_is_waited_for(gate, ollama, fakes):
    """The server names a model from the beginning of its load, and the facts were read before."""
    ollama.loads(43 * GIB)
    looks = [fakes.facts((part * GIB,) * 4) for part in (3, 8)] + [fakes.facts(SPREAD)]
    assert gate(changed=False, model="m70b", spread=True, gather=lambda: looks.pop(0)).name == "ok" and not looks
    ollama.loads(43 * GIB)
    ollama.answers["/api/ps"] = lambda _body: (200, {"models": [named] if len(gone) < 1 else []})
    named, gone = {"name": "m70b", "size": GIB, "size_vram": GIB}, []
    assert gate(changed=False, model="m70b", gather=lambda: gone.append(1) or fakes.facts()).name == "ok", "unloaded"


def test_without_a_change_a_log_that_is_gone_is_no_fault(gate):
    assert gate(changed=False, log=["[GIN] | 200 |"]).name == "ok"
    assert gate(changed=False, log=start_log(gpus=[ON_CPU])).name == "cpu_fallback"
    assert gate(changed=False, log=start_log(gpus=[])).name == "ok"


def test_of_a_long_log_only_the_start_is_read(gate, fakes, ollama):
    running = fakes.FakeRunning([], {"OLLAMA_HOST": "127.0.0.1:%d" % ollama.port})

    def lines():
        yield from start_log(gpus=[ON_CPU])
        yield '[GIN] 2026/11/22 - 08:35:20 | 200 |      65.483µs |       127.0.0.1 | GET      "/api/version"'
        raise AssertionError("read on")

    running.journal_from_start = lines
    assert gate(changed=False, running=running).name == "cpu_fallback"


def test_no_more_of_the_journal_is_read_than_is_taken(monkeypatch, tmp_path):
    """A journalctl that never ends is ended with the last line that was wanted."""
    tool = tmp_path / "journalctl"
    tool.write_text('#!/bin/sh\nwhile :; do echo "$*"; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    lines = System().journal_from_start("abc")
    assert next(lines) == "--quiet --no-pager -o cat _SYSTEMD_INVOCATION_ID=abc"
    lines.close()
