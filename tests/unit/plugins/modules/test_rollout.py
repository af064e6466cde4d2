# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook rollout over the local connection, with a pretended service on each host: plans, failures, kills.

ROLLOUT_KILLS=all kills a run of six hosts at every point where it writes to the disk or changes a host, instead of at three.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
import yaml
from pretended_fleet import FIXTURES, POOLS, ROOT, Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def most_at_once(log: List[str], pool: str, pools: Dict[str, List[str]] = POOLS) -> int:
    """The most hosts of a pool that were being changed at once; one that was killed there is begun again."""
    open_, most = set(), 0
    for host, word in map(str.split, log):
        if pool in pools[host]:
            open_ = open_ | {host} if word == "begins" else open_ - {host}
            most = max(most, len(open_))
    return most


def test_a_plan_a_rollout_and_nothing_left_to_do(fleet: Fleet) -> None:
    planned = fleet.run("--check")
    assert "4 hosts to change, 0 hosts as declared" in planned and "1. canary h1" in planned
    assert "h2  restart, about 10.0 s without it (default)" in planned
    assert not fleet.state.exists() and fleet.log() == []
    done = fleet.run()
    assert "rollout complete: 4 changed, 0 as declared" in done
    assert [event["event"] for event in fleet.events()][-3:] == ["done", "released", "end"]
    assert most_at_once(fleet.log(), "chat") == most_at_once(fleet.log(), "embed") == 1
    assert fleet.log()[:2] == ["h1 begins", "h1 ends"] and len(fleet.log()) == 8
    receipt = fleet.receipt()
    assert receipt["hosts"]["h2"]["services"][0]["measured"] == 0.12
    assert receipt["pools"]["chat"] == {"hosts": 3, "minimum": 2, "least_ready": 2}
    again = fleet.run()
    assert "0 hosts to change, 4 hosts as declared" in again and "rollout complete: 4 as declared" in again
    later = fleet.run("--check", want="newer")
    assert "h2  restart, about 0.1 s without it (last restart here)" in later


def test_a_broken_canary_leaves_the_others_untouched(fleet: Fleet) -> None:
    fleet.fault("h1", "breaks")
    output = fleet.run(rc=2, rollout_max_failures=3)
    said = "rollout failed: 3 not touched, 1 failed, 0 as declared; the canary h1 failed: crash_loop: h1 ends"
    assert said in output
    assert fleet.statuses() == {"h1": "failed", "h2": "waiting", "h3": "waiting", "h4": "waiting"}
    canary = fleet.receipt()["hosts"]["h1"]
    assert canary["rolled_back"] and canary["services"][0]["measured"] == 0.09 and fleet.log() == ["h1 begins"]
    fleet.heal()
    assert "rollout complete: 4 changed" in fleet.run()


@pytest.mark.parametrize("mode", ["breaks", "unfit"])
def test_what_a_secret_task_says_stays_secret(fleet: Fleet, mode: str) -> None:
    fleet.fault("h1", mode)
    output = fleet.run(rc=2, secret=True)
    assert "a task failed whose result is secret" in " ".join(output.split())
    own = [line for line in output.splitlines() if not line.startswith("[ERROR]: Task failed: ")]  # Ansible's
    kept = [path.read_text() for path in fleet.state.glob("*")]
    assert not any(word in text for word in ("crash_loop", "fell off") for text in [*own, *kept])


def test_failures_up_to_the_budget_do_not_stop_the_run(fleet: Fleet) -> None:
    fleet.fault("h2", "breaks")
    fleet.run(rc=2, rollout_max_failures=1)
    assert fleet.statuses() == {"h1": "done", "h2": "failed", "h3": "done", "h4": "done"}
    fleet.run(rc=2, want="newer", rollout_canary=[])
    assert fleet.statuses() == {"h1": "done", "h2": "failed", "h3": "waiting", "h4": "done"}
    assert fleet.receipt()["reason"] == "1 failed (h2), and rollout_max_failures allows 0"


def test_a_host_that_falls_silent_is_lost(fleet: Fleet) -> None:
    fleet.fault("h3", "falls silent")
    output = fleet.run(rc=2)
    assert fleet.statuses()["h3"] == "lost" and "changed, and still not as declared: service: " in output
    output = fleet.run(rc=2)
    assert "nothing was changed: not all hosts can be: h3: service: " in " ".join(output.split())


@pytest.mark.parametrize(
    ("fault", "variables", "words", "said"),
    [
        ("unfit", {}, [], "not all hosts can be: h4: GPU 0 fell off the bus"),
        ("gone", {}, [], "no route to h4"),
        (
            "",
            {"rollout_min_ready": {"embed": 3}},
            [],
            "pool embed has 3 hosts, of which 3 must serve at any moment: h2, h3, h4",
        ),
        (
            "",
            {"rollout_min_ready": "most"},
            [],
            "rollout_min_ready: 'most' is neither a number nor a share such as 75%",
        ),
        ("", {"rollout_canary": "h9"}, [], "rollout_canary: h9 is not a host of this run"),
        ("", {"rollout_min_redy": 1}, [], "rollout_min_redy: no such variable; there are rollout_min_ready, "),
        ("", {"rollout_do": "stop"}, [], "rollout_do: no such variable"),
        ("", {"rollout_width": 0}, [], "rollout_width: 0 is 0, and must be at least 1"),
        ("", {"rollout_soak": "a while"}, [], "rollout_soak: expected seconds, got a while"),
        ("", {"rollout_room_wait": -1}, [], "rollout_room_wait: expected seconds, got -1"),
        ("", {}, ["--skip-tags", "x"], "--skip-tags would leave out steps of the rollout"),
    ],
)
def test_what_cannot_succeed_touches_nothing(fleet: Fleet, fault: str, variables: Any, words: Any, said: str) -> None:
    if fault:
        fleet.fault("h4", fault)
    output = fleet.run(*words, rc=None, **variables)
    printed = " ".join(output.split()).replace("''", "'")  # YAML doubles quotes in a quoted line
    assert said in printed, output
    assert "PLAY RECAP" in output or "skip-tags" in said
    assert fleet.log() == [] and not (fleet.state / "journal.jsonl").exists()


def test_a_running_rollout_is_watched_paused_stopped_and_resumed(fleet: Fleet) -> None:
    fleet.fault("h1", "holds")
    running = fleet.start()
    fleet.wait("h1 begins")
    told = fleet.run(playbook="rollout_control")
    assert "running (process %d)" % running.pid in told and "1 in hand" in told
    refused = fleet.run(rc=None)
    assert "another rollout of this inventory is running (process %d)" % running.pid in " ".join(refused.split())
    fleet.run(playbook="rollout_control", rollout_do="stop")
    fleet.heal()
    output = running.communicate(timeout=120)[0]
    assert running.returncode == 2 and "stopped by request" in output and "rollout stopped: " in output
    assert fleet.statuses() == {"h1": "done", "h2": "waiting", "h3": "waiting", "h4": "waiting"}
    assert "no rollout of this inventory is running" in fleet.run(playbook="rollout_control", rc=2, rollout_do="pause")
    (fleet.state / "pause").touch()
    resumed = fleet.start()
    line = ""
    while "paused by request" not in line:
        line = resumed.stdout.readline()  # type: ignore[union-attr]
        assert line, "it ended without a pause"
    assert fleet.log().count("h4 begins") == 0
    fleet.run(playbook="rollout_control", rollout_do="resume")
    output = resumed.communicate(timeout=120)[0]
    assert resumed.returncode == 0 and "rollout complete: 4 changed" in " ".join(output.split()), output
    assert sorted(fleet.log()) == sorted("h%d %s" % (n, word) for n in range(1, 5) for word in ("begins", "ends"))


def test_an_inventory_cannot_choose_the_state_folder(fleet: Fleet) -> None:
    inventory = yaml.safe_load(fleet.inventory.read_text())
    inventory["ollama"]["vars"]["rollout_state"] = str(fleet.state)
    fleet.inventory.write_text(yaml.safe_dump(inventory))
    output = fleet.run("--check", rc=2, rollout_state=None)
    assert "rollout_state: give it with -e, because the plays cannot read it" in " ".join(output.split())


def test_the_canary_may_be_named_left_out_or_unchanged_already(fleet: Fleet) -> None:
    planned = fleet.run("--check", "--forks", "2", rollout_canary="h3", rollout_width=3, rollout_min_ready=0)
    assert "1. canary h3" in planned and "no more than 2 hosts at a time, as Ansible has 2 forks (--forks)" in planned
    planned = fleet.run("--check", rollout_canary="h3,h2")
    assert "1. canary h2\n" in planned and "2. canary h3\n" in planned
    assert "canary h" not in fleet.run("--check", rollout_canary="")
    fleet.run("--limit", "h3")
    assert "1. canary h1" in fleet.run("--check", rollout_canary="h3"), "h3 would show nothing"


def test_a_stopped_rollout_is_resumed_for_some_of_its_hosts(fleet: Fleet) -> None:
    fleet.fault("h1", "holds")
    running = fleet.start()
    fleet.wait("h1 begins")
    fleet.run("--check", playbook="rollout_control", rollout_do="stop")
    assert not (fleet.state / "stop").exists(), "check mode requests nothing"
    fleet.run("--limit", "h2", playbook="rollout_control", rollout_do="stop")
    fleet.heal()
    assert "stopped by request" in running.communicate(timeout=120)[0]
    assert "rollout complete: 4 changed" in fleet.run("--limit", "h2,h3,h4")


@pytest.mark.parametrize("changed", [False, True])
def test_a_canary_is_also_watched_in_a_resumed_run(fleet: Fleet, changed: bool) -> None:
    fleet.run()
    journal = fleet.state / "journal.jsonl"
    begin, plan, admitted = journal.read_text().splitlines(keepends=True)[:3]
    assert json.loads(admitted)["hosts"] == ["h1"]
    journal.write_text(begin + plan + admitted)
    for path in fleet.world.glob("h?"):
        if path.name != "h1" or not changed:
            path.unlink()
    output = fleet.run().split("TASK [Watch the canary for a while]")
    assert len(output) == 2 and "ok: [h1" in output[1].split("TASK")[0], "and no other host is"
    assert fleet.statuses() == dict.fromkeys(POOLS, "done")


def killed(fleet: Fleet) -> str:
    """As if a run had been killed once h1 had changed, with all hosts reserved; by whom."""
    fleet.run()
    assert fleet.reservations() == {}
    journal = fleet.state / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:3], next(line for line in lines if json.loads(line)["event"] == "done")]))
    for path in fleet.world.glob("h[234]"):
        path.unlink()
    holder = str(json.loads(lines[0])["holder"])
    fleet.reserve(*POOLS, holder=holder)
    return holder


def test_what_a_killed_run_has_reserved_is_released_if_its_change_is_taken_back(fleet: Fleet) -> None:
    killed(fleet)
    assert "rollout complete: 1 changed, 3 as declared" in fleet.run(want="old")
    assert fleet.reservations() == {}


def test_hosts_that_a_resumed_run_leaves_out_are_released_by_the_next_one(fleet: Fleet) -> None:
    holder = killed(fleet)
    inventory = yaml.safe_load(fleet.inventory.read_text())
    fleet.run("--limit", "h1,h2")
    assert fleet.reservations() == {"h3": holder, "h4": holder}
    (fleet.world / "h3").write_text("new\n")
    del inventory["ollama"]["hosts"]["h4"]
    fleet.inventory.write_text(yaml.safe_dump(inventory))
    output = fleet.run()
    assert "0 hosts to change" in output and "Could not match supplied host pattern" not in output
    assert fleet.reservations() == {"h4": holder}, "nothing is known of it any more"


NO_ROOT = "sudo: a password is required"
SAID = {NO_ROOT: NO_ROOT, "gone": "(Task failed: )?no route to the host"}  # the version of Ansible decides


@pytest.mark.parametrize("why", SAID)
def test_a_host_that_cannot_be_released_is_named_and_released_by_the_next_run(fleet: Fleet, why: str) -> None:
    (fleet.world / "h2.released").write_text(why)
    output = " ".join(fleet.run().split())
    assert re.search(
        "h2 could not be released, so other controllers' rollouts may not change it: %s" % SAID[why], output
    )
    assert "rollout complete: 4 changed" in output and list(fleet.reservations()) == ["h2"]
    (fleet.world / "h2.released").unlink()
    assert "WARNING" not in fleet.run() and fleet.reservations() == {}


def test_a_refused_run_releases_only_what_it_has_reserved_itself(fleet: Fleet) -> None:
    holder = killed(fleet)
    for host in POOLS:
        (fleet.world / (host + ".reservation") / "rollout.json").unlink()
    fleet.reserve("h2", holder=holder)
    fleet.reserve("h3")
    output = fleet.run(rc=2)
    printed = " ".join(output.split())
    assert (
        "this run has changed nothing: h3: rollout r9 of ada@ctl2 has reserved this host since 2026-11-30." in printed
    )
    assert "add -e rollout_take_over=true" in printed and len(fleet.log()) == 8
    assert fleet.reservations() == {"h2": holder, "h3": "theirs"}, "h2 may be in the middle of a change"
    checks = output.split("TASK [Check that all hosts are reserved]")[1].split("TASK")[0]
    assert checks.count("ok: ") == 1, "one host looks at all others"
    assert "rollout complete: 4 changed" in fleet.run(rollout_take_over=True) and fleet.reservations() == {}


@pytest.mark.parametrize("why", SAID)
def test_a_host_that_cannot_be_reserved_is_nobody_elses(fleet: Fleet, why: str) -> None:
    (fleet.world / "h3.reserved").write_text(why)
    output = " ".join(fleet.run(rc=2).split())
    assert re.search("this run has changed nothing: h3 cannot be reserved: %s" % SAID[why], output)
    assert "rollout_take_over" not in output and fleet.reservations() == {} and fleet.log() == []


def test_tasks_of_a_person_need_no_root(fleet: Fleet) -> None:
    fleet.reserve("h2")
    assert "rollout complete: 4 changed" in fleet.run(rollout_apply=str(FIXTURES / "apply.yml"))
    assert fleet.reservations() == {"h2": "theirs"}


def test_the_plan_names_a_gateway_that_does_not_answer(fleet: Fleet) -> None:
    inventory = yaml.safe_load(fleet.inventory.read_text())
    gateway = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "gateway_status_port": 1}
    inventory["gateway"] = {"hosts": {"h4": gateway}}
    fleet.inventory.write_text(yaml.safe_dump(inventory))
    assert "h4 does not answer: it will not be asked who serves" in fleet.run("--check")


class Gateway(http.server.BaseHTTPRequestHandler):
    """Figures of a gateway. Half of the requests to h1 fail; each look comes 60 requests later."""

    looks = 0
    down = ""

    def do_GET(self) -> None:
        type(self).looks += 1
        lines = ["haproxy_process_start_time_seconds 1", "haproxy_process_uptime_seconds 100"]
        lines += ['haproxy_backend_http_requests_total{proxy="chat"} 300']
        lines += ['haproxy_backend_total_time_average_seconds{proxy="chat"} 2.0']
        for host in POOLS:
            row = '{proxy="chat",server="%s:ollama:1"' % host
            lines += ["haproxy_server_sessions_total%s} %d" % (row, 60 * self.looks)]
            lines += ['haproxy_server_status%s,state="%s"} 1' % (row, "DOWN" if host == self.down else "UP")]
            failed = 30 * self.looks * (host == "h1")
            lines += ['haproxy_server_http_responses_total%s,code="5xx"} %d' % (row, failed)]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("\n".join(lines).encode() + b"\n")

    def log_message(self, *_words: Any) -> None:
        pass


@contextlib.contextmanager
def gateways(fleet: Fleet, **kinds: Any) -> Iterator[None]:
    """Gateways of the fleet, by their names."""
    inventory = yaml.safe_load(fleet.inventory.read_text())
    own = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory["gateway"] = {"hosts": {}, "vars": own}
    with contextlib.ExitStack() as stack:
        for name, kind in kinds.items():
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind))
            threading.Thread(target=server.serve_forever).start()
            stack.callback(server.shutdown)
            inventory["gateway"]["hosts"][name] = {"gateway_status_port": server.server_address[1]}
        fleet.inventory.write_text(yaml.safe_dump(inventory))
        yield


@pytest.fixture
def gateway(fleet: Fleet) -> Iterator[None]:
    with gateways(fleet, gw=Gateway):
        yield


def test_all_gateways_are_waited_for_at_once(fleet: Fleet) -> None:
    first, second = (type("Without", (Gateway,), {"down": "h2", "looks": 0}) for _number in range(2))
    with gateways(fleet, g1=first, g2=second):
        output = fleet.run("--limit", "ollama", rc=2, rollout_room_wait=10, rollout_canary="")
    assert "rollout incomplete: " in output
    waits = output.count("TASK [Wait until the gateways have room for this batch]")
    assert waits and first.looks > second.looks == 1 + waits


WORSE = "it does worse than the hosts that are as before: 50 % of its requests for chat failed; at the others, 0 %"


@pytest.mark.parametrize(
    ("more", "back", "said"),
    [
        ({"recorded": "2026-11-30T08:00:00Z"}, True, WORSE),
        (
            {},
            False,
            WORSE + ". It is not taken back, as nothing was recorded there before: declare the previous values",
        ),
        (
            {"recorded": "2026-11-30T08:00:00Z", "gpufleet_generation": "7"},
            False,
            WORSE + ". It is not taken back (nothing changed there): run ansible-playbook gpufleet.inference.rollback "
            "-e gpufleet_generation=2026-11-30T08:00:00Z --limit h1",
        ),
    ],
)
def test_a_canary_that_does_worse_is_taken_back(fleet: Fleet, gateway: None, more: Any, back: bool, said: str) -> None:
    output = fleet.run("--limit", "ollama", rc=2, rollout_soak=1, **more)
    assert "pool chat: requests: about 2 are waited for, 10 go to the other hosts (gateways' mean rate)" in output
    canary = fleet.receipt()["hosts"]["h1"]
    assert (canary["status"], canary["rolled_back"], canary["why"]) == ("failed", back, said)
    assert ("the canary h1 failed: %s" % said) in " ".join(output.split())
    assert fleet.log() == ["h1 begins", "h1 ends"] * (1 + back)
    assert fleet.receipt()["canary"]["h1"] == [WORSE.partition(": ")[2]]


def test_a_canary_that_did_worse_before_a_kill_is_taken_back_after_it(fleet: Fleet) -> None:
    fleet.run()
    journal = fleet.state / "journal.jsonl"
    begin, plan, admitted = journal.read_text().splitlines(keepends=True)[:3]
    back = dict(json.loads(admitted), generations={"h1": "2026-11-30T08:00:00Z"})
    watched = {"t": 1, "event": "watched", "host": "h1", "worse": ["too slow"], "unknown": []}
    journal.write_text("".join([begin, plan, *(json.dumps(event) + "\n" for event in (back, watched))]))
    for path in fleet.world.glob("h[234]"):
        path.unlink()
    fleet.run(rc=2, recorded="2026-11-30T08:00:00Z")
    canary = fleet.receipt()["hosts"]["h1"]
    assert (canary["status"], canary["rolled_back"]) == ("failed", True) and canary["why"].endswith(": too slow")
    assert fleet.changes()["h1"][-1] == "old" and fleet.statuses()["h2"] == "waiting"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "maintain_name is not set, maintain_tasks is not set; expected a name such as driver-580"),
        ({"maintain_tasks": "tasks.yml"}, "maintain_tasks is tasks.yml; expected a name such as driver-580"),
        ({"maintain_drivr": "580"}, "there is no variable maintain_drivr"),
        ({"maintain_name": "x", "maintain_tasks": __file__, "rollout_apply": __file__}, "rollout_apply has no meaning"),
    ],
)
def test_a_maintenance_that_is_not_wholly_described_is_refused(fleet: Fleet, variables: Any, said: str) -> None:
    output = fleet.run(playbook="maintain", rc=2, **{"rollout_apply": None, **variables})
    assert said in " ".join(output.split()) and not fleet.state.exists()


def test_the_plan_of_a_maintenance(fleet: Fleet) -> None:
    """It reaches the tasks of a maintenance, which in check mode only read."""
    given = {"maintain_name": "driver-580", "maintain_tasks": __file__, "rollout_apply": None}
    local = {"ansible_become": False, "ansible_python_interpreter": sys.executable}
    output = fleet.run("--check", playbook="maintain", **given, **local)
    assert "h1 maintenance: driver-580" in output and "4 hosts to change" in output
    assert "h2  restart, about 600.0 s without it (default)" in output and fleet.log() == []


def test_no_part_is_named_as_a_playbook() -> None:
    """Ansible would find the playbook first where a part includes another part."""
    parts = {path.name for path in (ROOT / "playbooks/rollout_parts").iterdir()}
    assert parts and not parts & {path.name for path in (ROOT / "playbooks").glob("*.yml")}


def test_gateways_change_one_after_the_other(fleet: Fleet) -> None:
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "gateway_status_port": 1}
    gateways = {"hosts": {"g1": None, "g2": None}, "vars": local}
    fleet.inventory.write_text(yaml.safe_dump({"gateway": gateways}))
    assert "rollout complete: 2 changed" in fleet.run(rollout_canary="")
    assert fleet.reservations() == {}
    assert fleet.log() == ["g1 begins", "g1 ends", "g2 begins", "g2 ends"]
    assert fleet.receipt()["pools"] == {"the gateways": {"hosts": 2, "minimum": 1, "least_ready": 1}}


def test_a_host_that_ansible_drops_counts_as_lost(fleet: Fleet) -> None:
    fleet.fault("h4", "falls silent")
    apply = str(FIXTURES / "apply_or_drop.yml")
    output = fleet.run(rc=None, rollout_canary="", rollout_apply=apply)  # 2 or 4, by the version of Ansible
    assert fleet.statuses() == {"h1": "done", "h2": "waiting", "h3": "waiting", "h4": "lost"}
    assert "1 failed (h4), and rollout_max_failures allows 0" in " ".join(output.split())
    fleet.heal()
    assert "rollout complete: 3 changed" in fleet.run(rollout_canary="", rollout_apply=apply)


def test_hosts_that_share_a_model_change_together(fleet: Fleet) -> None:
    inventory = yaml.safe_load(fleet.inventory.read_text())
    shared = {"vllm_instances": [{"name": "big", "model": "big", "hosts": ["h3", "h4"]}], "ansible_connection": "local"}
    inventory["vllm"] = {"hosts": {"h3": None, "h4": None}, "vars": shared}
    fleet.inventory.write_text(yaml.safe_dump(inventory))
    output = fleet.run("--limit", "h3", rc=2)
    assert "h4 shares a model with a host of this run: include it" in " ".join(output.split())
    output = fleet.run(rc=2)
    assert "pool embed has 3 hosts, of which 2 must serve at any moment: h3, h4 can never be restarted" in " ".join(
        output.split()
    )
    fleet.run(rollout_min_ready={"embed": 1}, rollout_canary=[])
    assert [event["hosts"] for event in fleet.events() if event["event"] == "admitted"][-1] == ["h3", "h4"]


SIX = {**POOLS, "h5": ["chat"], "h6": ["embed"]}
# before the plan is on the disk, while hosts are reserved, and once one has changed
POINTS = range(1, 105) if os.environ.get("ROLLOUT_KILLS") else (7, 20, 36)


@pytest.mark.parametrize(("at", "workers"), [(at, "no" if at % 2 else "yes") for at in POINTS])
def test_a_killed_rollout_is_resumed(tmp_path: Path, at: int, workers: str) -> None:
    fleet = Fleet(tmp_path, SIX if len(POINTS) > 3 else POOLS)
    environ = {
        "PYTHONPATH": str(FIXTURES / "kill"),
        "KILL_AT": str(at),
        "KILL_COUNT": str(fleet.folder / "count"),
        "KILL_WORKERS": workers,
    }
    process = fleet.start(environ=environ)
    first = process.communicate(timeout=120)[0]
    assert process.returncode == -9, first
    second = fleet.run()
    assert fleet.changes() == {host: ["new"] for host in fleet.hosts}, "no host is left out, and none is changed twice"
    assert most_at_once(fleet.log(), "chat", SIX) == most_at_once(fleet.log(), "embed", SIX) == 1
    assert "rollout complete" in second
    finished = [event["event"] for event in fleet.events()]
    assert finished[-1] == "end" and finished.count("end") == 1
    assert fleet.run("--check").count("0 hosts to change") == 1
    assert fleet.reservations() == {}
