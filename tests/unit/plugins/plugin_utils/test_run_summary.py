# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is printed of a run: from the results of its tasks to the block."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils import run_summary
from ansible_collections.gpufleet.inference.plugins.plugin_utils.run_summary import HostRun, Results

SERVICE, MODEL = "gpufleet.inference.ollama_service", "gpufleet.inference.ollama_model"
OK, CHANGED = {"ok": 3}, {"ok": 3, "changed": 1}
FAILED = {"ok": 3, "failures": 1}


def text(hosts: Sequence[HostRun], seconds: float = 1.6) -> List[str]:
    return [line for _state, line in run_summary.block(hosts, seconds)]


def fleet(state: str, line: str, *numbers: int, **more: Any) -> List[HostRun]:
    return [HostRun("gpu%02d" % number, state, line, **more) for number in numbers]


def test_one_host() -> None:
    assert text([HostRun("gpu1", "as before", "4× H200 · Ollama 0.32.15")]) == [
        "gpufleet: 1 host in 1.6 s · 1 ok (1 as before)",
        "  as before    gpu1  4× H200 · Ollama 0.32.15",
    ]


def test_no_host() -> None:
    assert text([]) == ["gpufleet: 0 hosts in 1.6 s"]


def test_fifty_hosts_fit_a_screen() -> None:
    failed = "ollama.service: load_failed: m70b: out of memory. The unit runs again; it was not serving for %.1f s."
    hosts = [
        *(one for number in (31, 7, 19) for one in fleet("put back", failed % (number / 10.0), number)),
        *fleet("unreachable", "No route to host", 44),
        *fleet("changed", "4× H200 · changed OLLAMA_KEEP_ALIVE · restart 0.6 s", *range(1, 7)),
        *fleet("changed", "4× H200 · changed OLLAMA_KEEP_ALIVE · restart 1.1 s", *range(8, 14)),
        *fleet("as before", "4× H200 · not proven (nothing changed)", *range(20, 31), *range(32, 44), unproven=True),
        *fleet("not touched", "the run stopped before its turn", *range(45, 51), 14, 15, 16, 17, 18),
    ]
    assert len(hosts) == 50
    assert text(hosts, 192.4) == [
        "gpufleet: 50 hosts in 3 min 12 s · 35 ok (12 changed, 23 as before) · 3 put back · 1 unreachable"
        " · 11 not touched",
        "  put back     gpu[07,19,31]     %s"
        % "ollama.service: load_failed: m70b: out of memory. The unit runs again; it was not serving for 0.7–3.1 s.",
        "  unreachable  gpu44             No route to host",
        "  not touched  gpu[14-18,45-50]  the run stopped before its turn",
        "  changed      gpu[01-06,08-13]  4× H200 · changed OLLAMA_KEEP_ALIVE · restart 0.6–1.1 s",
        "  as before    gpu[20-30,32-43]  4× H200 · not proven (nothing changed)",
        "  Again for those that failed: --limit gpu07,gpu19,gpu31,gpu44",
        "  Not proven: on 23 hosts no model had to answer, as nothing changed; -e gpufleet_prove=now has them answer",
    ]


def test_lines_that_name_their_host_are_alike() -> None:
    hosts = [HostRun(name, "failed", "%s does not match the inventory" % name) for name in ("a1", "a2", "a1-b")]
    assert text(hosts)[1:3] == [
        "  failed       a[1-2],a1-b  HOST does not match the inventory",
        "  Again for those that failed: --limit a1,a1-b,a2",
    ]


def test_every_failure_is_printed_and_the_rest_is_cut() -> None:
    failed = [HostRun("f%d" % number, "failed", "cause %d." % number) for number in range(30)]
    changed = [HostRun("c%d" % number, "changed", "model %d." % number) for number in range(30)]
    lines = text(failed + changed)
    assert sum("failed  " in line for line in lines) == 30
    assert sum(line.startswith("  changed") for line in lines) == run_summary.MOST
    assert "21 hosts" in lines[1 + 30 + 9] and lines[1 + 30 + 9].endswith("with 21 other lines")


@pytest.mark.parametrize(
    "names, folded",
    [
        (["gpu2", "gpu10", "gpu1", "gpu3"], "gpu[1-3,10]"),
        (["gpu08", "gpu09", "gpu10"], "gpu[08-10]"),
        (["gpu1.a.example", "gpu2.a.example", "gpu2.b.example"], "gpu[1-2].a.example,gpu2.b.example"),
        (["login", "gpu9", "gpu10"], "gpu[9-10],login"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1,10.0.0.2"),
        (["gpu1a", "gpu2a"], "gpu[1-2]a"),
        (["gpu1", "gpu01"], "gpu[01,1]"),
        (["gpu²", "gpu1"], "gpu1,gpu²"),
        ([], ""),
    ],
)
def test_ranges(names: Sequence[str], folded: str) -> None:
    assert run_summary.ranges(names) == folded


@pytest.mark.parametrize(
    "seconds, words",
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.6, "13 s"), (59.7, "1 min 0 s"), (192, "3 min 12 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert run_summary.duration(seconds) == words


# --- from results to hosts


def run(results: Results, counts: Dict[str, int], check: bool = False, missed: Sequence[str] = ()) -> HostRun:
    return results.run("gpu1", counts, check, missed)


def serves(msg: str, changed: bool = False, **more: Any) -> Results:
    results = Results()
    results.ok("Serve", SERVICE, "Configure Ollama", {"msg": msg, "changed": changed, **more})
    return results


def test_a_service_as_before_and_changed() -> None:
    results = serves("ok · 4× H200 · not proven (nothing changed)", unproven="nothing changed")
    assert run(results, OK) == HostRun("gpu1", "as before", "4× H200 · not proven (nothing changed)", True)
    assert run(serves("ok · restart 1 s", True), CHANGED) == HostRun("gpu1", "changed", "restart 1 s")
    would = serves("would remove A · 4× H200", True)
    assert run(would, CHANGED, check=True) == HostRun("gpu1", "would change", "remove A · 4× H200")


def test_a_host_of_which_all_was_asked_at_once() -> None:
    said = {"msg": "ok · 4× H200 · not proven (nothing changed)", "changed": False, "unproven": "nothing changed"}
    models = {"changed": False, "results": [{"changed": False, "msg": "there"}]}
    registered = {"ollama_result": said, "models_result": models, "later_result": {"changed": False, "skipped": True}}
    modules = {"ollama_result": SERVICE, "models_result": "gpufleet.inference.model_source"}
    asked = {"changed": False, "as_declared": True, "registered": registered, "modules": modules}
    results = Results()
    results.ok("Check", "gpufleet.inference.host_check", "Ask", {"as_declared": False, "msg": "the roles are run"})
    assert run(results, OK, missed=["Serve"]).state == "not touched"
    results.ok("Check", "gpufleet.inference.host_check", "Ask", asked)
    assert run(results, OK) == HostRun("gpu1", "as before", "4× H200 · not proven (nothing changed)", True)


def test_only_a_proof_that_a_switch_would_make_is_offered() -> None:
    assert not run(serves("ok", unproven="prove_model is not set"), OK).unproven
    instances = {"a": {"unproven": ""}, "b": {"unproven": "nothing changed"}}
    assert run(serves("ok", instances=instances), OK).unproven


def test_a_bare_host_in_one_run() -> None:
    results = Results()
    results.ok("Serve", "ansible.builtin.command", "Switch on persistence mode", {"changed": True})
    first = "ok · 4× H200 · not proven (house is not in the store yet) · installed Ollama 0.32.15"
    results.ok("Serve", SERVICE, "Configure Ollama", {"msg": first, "changed": True})
    results.ok("Serve", MODEL, "Converge the models", {"msg": "house created", "changed": True})
    proven = {"msg": "ok · 4× H200 · house on 4 GPUs", "changed": False, "unproven": ""}
    results.ok("Serve", SERVICE, "Verify Ollama", proven)
    line = "Switch on persistence mode | installed Ollama 0.32.15 | models: house created | 4× H200 · house on 4 GPUs"
    assert run(results, CHANGED) == HostRun("gpu1", "changed", line)


def test_models_and_loops_are_named_where_they_change() -> None:
    results = serves("ok · 4× H200")
    results.ok("Serve", MODEL, "Converge the models", {"msg": "1 unchanged", "changed": False})
    items = [{"msg": "a downloaded", "changed": True}, {"msg": "b is there", "changed": False}]
    results.ok("Serve", "gpufleet.inference.model_source", "Models", {"results": items, "changed": True})
    assert run(results, CHANGED).line == "4× H200 | a downloaded"


@pytest.mark.parametrize(
    "failure, state, line",
    [
        ({"msg": "gpu_lost: GPU 1.\nWhat to do: x"}, "failed", "gpu_lost: GPU 1. What to do: x"),
        ({"msg": "load_failed", "rolled_back": True}, "put back", "load_failed"),
        ({"msg": "One or more items failed", "results": [{}, {"failed": True, "msg": "no"}]}, "failed", "no"),
        ({}, "failed", "no reason given"),
    ],
)
def test_a_failure(failure: Dict[str, Any], state: str, line: str) -> None:
    results = serves("ok")
    results.failure = failure
    assert run(results, FAILED)[:3] == ("gpu1", state, line)
    assert run(results, OK).state == "as before", "it was rescued"


ODD = "ok\n  failed  gpu9  load_failed\x1b[2J\r\x9b1A" + 2000 * "x"
CLEAN = "ok failed gpu9 load_failed "


def test_a_host_neither_draws_on_the_terminal_nor_speaks_for_another() -> None:
    failed, changed = Results(failure={"msg": ODD}), serves(ODD, True)
    for host in (
        run(failed, FAILED),
        run(changed, CHANGED),
        run(Results(unreachable={"msg": ODD}), {"unreachable": 1}),
    ):
        assert host.line.startswith(CLEAN) and len(host.line) == run_summary.LONGEST


@pytest.mark.parametrize(
    "said, line",
    [
        (
            "Failed to connect to the host via ssh: ssh: connect to host a1 port 22: No route to host",
            "No route to host",
        ),
        (
            'sent to "a1". Make sure this host can be reached over ssh: kex_exchange: reset\nby peer',
            "kex_exchange: reset by peer",
        ),
        ("no python", "no python"),
    ],
)
def test_an_unreachable_host(said: str, line: str) -> None:
    assert run(Results(unreachable={"msg": said}), {"unreachable": 1}) == HostRun("gpu1", "unreachable", line)


def test_a_host_that_the_run_did_not_get_to() -> None:
    untouched = HostRun("gpu1", "not touched", "the run stopped before its turn")
    assert run(Results(), {}, missed=["Serve"]) == untouched
    stopped = Results(failure={"msg": "gpu9 failed in an earlier batch"}, stopped=True)
    assert run(stopped, {"failures": 1}, missed=["Serve"]) == untouched
    facts = Results()
    facts.ok("Serve", "gpufleet.inference.gpu_facts", "Gather the GPU facts", {"changed": False})
    assert run(facts, OK, missed=["Serve"]) == untouched, "it was only looked at"
    assert run(serves("ok · 4× H200"), OK, missed=["Serve with vLLM"]).line == "4× H200 | not reached: Serve with vLLM"
