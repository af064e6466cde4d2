# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine restores, waits for and cannot see, on units of a real systemd (host/trust.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import on_host
from web_unit import Unit


@pytest.fixture(scope="module")
def found(lab: Any) -> Any:
    host = lab.reset("gpu1")
    out = on_host.run(lab, host, "trust.py", check=False)
    print(out[:500])
    yield json.loads(out.rstrip("\n").rpartition("\n")[2])
    lab.reset(host)


def test_enable_and_disable_are_undone_link_by_link(found: Dict[str, Any]) -> None:
    assert len(found["enabling"]) == 4
    for title, row in found["enabling"].items():
        assert row["after"] == row["before"], (title, row)
        assert row["failed"]["rolled_back"] and "The previous state is restored" in row["failed"]["said"], (title, row)
        assert not row["done"]["said"] and not row["again"], (title, row)
        assert row["is"] == ("enabled" if title.startswith("enable") else "disabled"), (title, row)


def test_a_program_that_writes_its_title_over_its_environment(found: Dict[str, Any]) -> None:
    for delay, row in found["titles"].items():
        first, *others = row["runs"]
        assert first["changed"] and not first["said"], (delay, row)
        for run in others:
            assert not run["changed"] and not run["said"] and not run["drift"], (delay, row)
        assert row["written"] and not row["absent"]["said"], (delay, row)


def test_secrets_of_a_unit_with_backslashes_in_its_name(found: Dict[str, Any]) -> None:
    row = found["names"]
    first, second = row["runs"]
    assert first["changed"] and not first["said"] and row["seen"], row
    assert not second["changed"] and not second["said"] and not row["absent"]["said"], row


def test_a_credential_that_a_killed_run_took_away_halfway(found: Dict[str, Any]) -> None:
    row = found["credential"]
    assert row["failed"]["rolled_back"] and row["active"] == "active" and row["files"] == ["a", "b"], row
    assert row["good"]["changed"] and not row["good"]["said"] and row["kept"] == ["a"], row
    assert not row["absent"]["said"] and "No such file" in row["left"], row


def test_a_restart_that_systemd_is_making_is_waited_for(found: Dict[str, Any]) -> None:
    row = found["restarts"]["the same"]
    assert not row["said"] and not row["changed"] and row["verdict"] == "ok" and row["asked"] == [False], row
    row = found["restarts"]["a change without a restart"]
    assert not row["said"] and row["changed"] and not row["restarted"] and row["asked"] == [False], row
    row = found["restarts"]["a change that fails"]
    assert "The unit runs again" in row["said"] and row["active"] == "active", row


def test_a_crash_loop_is_reported_long_before_the_deadline(found: Dict[str, Any]) -> None:
    for name in ("fleet-loop-0.service", "fleet-loop-1.service"):
        row = found["restarts"][name]
        assert row["verdict"] == "crash_loop" and "last words" in row["said"] and row["seconds"] < 150, row


# --- secrets, watched from outside

WORD = "watched-secret-4711"
PLAY = """\
- hosts: gpu1
  gather_facts: false
  become: true
  tasks:
    - gpufleet.inference.systemd_override: &good
        unit: fleet-web
        secret_environment: {S: '%(word)s'}
        credentials: {c: '%(word)s-c'}
        settle: 1
    - gpufleet.inference.systemd_override: *good
    - gpufleet.inference.systemd_override:
        unit: fleet-web
        secret_environment: {S: '%(word)s-b'}
        credentials: {c: '%(word)s-c'}
        settings: {Service: {ExecStart: ["", "/bin/sh -c 'echo I have $S; exit 3'"]}}
        settle: 1
      ignore_errors: true  # it is to fail: what a failure shows is looked through, too
"""


def test_no_secret_is_seen_while_modules_run(lab: Any, tmp_path: Path) -> None:
    host = lab.reset("gpu1")
    unit = Unit(lab, host)
    (tmp_path / "play.yml").write_text(PLAY % {"word": WORD})
    on_host.put(lab, host, "/run/watch.py", (Path(__file__).parent / "host/watch.py").read_bytes())
    # the word is not in the command line of the watcher's own processes
    command = "exec python3 /run/watch.py %s /run/watch.stop /run/watch.json" % WORD
    on_host.put(lab, host, "/run/watch.sh", command.encode())
    unit.sh("mount --make-rshared /; rm -f /run/watch.stop /run/watch.json")
    unit.sh("systemd-run --quiet --unit=fleet-watch sh /run/watch.sh")
    try:
        run = lab.playbook(str(tmp_path / "play.yml"), "-vvv", warnings=True)
    finally:
        unit.sh("touch /run/watch.stop; while systemctl is-active -q fleet-watch; do sleep 0.05; done")
    found = json.loads(unit.sh("cat /run/watch.json"))
    results = run.of("systemd_override")
    assert [result["changed"] for result in results] == [True, False, False] and results[2]["rolled_back"]
    assert "I have <secret>" in results[2]["msg"], results[2]
    assert found["looks"] > 3 and found["seen"] == [], found
    assert WORD not in run.output and WORD not in json.dumps(run.results)
    # the unit itself said it, on purpose
    journal = unit.sh("journalctl --no-pager --boot -o export | grep -a %s; true" % WORD)
    assert all(line.startswith("MESSAGE=I have ") for line in journal.splitlines()), journal
    unit(state="absent")
    assert not unit.sh("grep -rl %s /etc; true" % WORD)
    lab.reset(host)
