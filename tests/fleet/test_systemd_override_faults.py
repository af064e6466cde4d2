# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd_override that fails on a real host, in every way known: each ends in the former state, and says why.

After every step the host is looked at with tools that are not ours: systemctl, sha256sum, /proc, curl.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import on_host
from web_unit import DROP_INS, OURS, SERVER, UNIT, Unit, same_process

SESAME = "open-sesame-0"
LOCK = "/run/gpufleet/%s.lock" % UNIT
GOOD: Dict[str, Any] = {"environment": {"A": "good"}, "secret_environment": {"S": SESAME}, "timeout": 30}


@pytest.fixture(scope="module")
def unit(lab: Any) -> Any:
    """One unit with a good override for all tests: each has to leave it as it was."""
    unit = Unit(lab, lab.reset("gpu1"))
    result = unit(**GOOD)
    assert not result["failed"], result
    yield unit
    assert not unit(**GOOD)["changed"], "no test may have left anything to do"
    lab.reset("gpu1")


@pytest.fixture
def before(unit: Unit) -> Any:
    """What the unit's files hold; afterwards all must be as now, and the unit must serve with the good values."""
    files, environ = unit.files(), unit.environ()
    yield files
    # a test that fails must not have the next one fail
    unit.sh(
        "systemctl stop fleet-occupant fleet-holder 2>/dev/null; kill -CONT $(pidof systemd-journald);"
        "umount -q /etc/systemd/system /etc; find %s -lname /dev/null -delete; rm -f %s;"
        "systemctl daemon-reload" % ("/etc/systemd/system/" + UNIT, LOCK),
        check=False,
    )
    left = unit.files()
    if left != files:
        unit(**GOOD)
    assert left == files
    unit.serves(18080)
    now = unit.environ()
    assert {name: now[name] for name in ("A", "S", "PORT")} == {name: environ[name] for name in ("A", "S", "PORT")}


def failed(result: Dict[str, Any], verdict: str, *says: str) -> None:
    assert result["failed"] and result["verdict"] == verdict, result
    said = result["msg"] + "\n".join(result.get("evidence", {}).get("journal", []))
    for text in says:
        assert text in said, said
    assert "\n" not in result["msg"], "one line says it"
    assert not result["changed"], result


def test_port_taken(unit: Unit, before: str) -> None:
    unit.sh("systemd-run --unit=fleet-occupant python3 -m http.server --bind 127.0.0.1 18082")
    unit.serves(18082)
    # a busy host needs its time to come to the port
    result = unit(**dict(GOOD, environment={"A": "bad", "PORT": "18082"}, settle=6))
    failed(result, "crash_loop", "exited with status 1", "Address already in use", "The previous state is restored.")
    assert result["rolled_back"] and result["evidence"]["exec_main_status"] == 1


@pytest.mark.parametrize("kind", ["simple", "exec"])
def test_binary_missing(unit: Unit, before: str, kind: str) -> None:
    result = unit(**GOOD, settings={"Service": {"Type": kind, "ExecStart": ["", "/opt/no/such/server"]}})
    failed(result, "crash_loop", "status 203 (cannot be executed)", "No such file or directory", "/opt/no/such/server")


def test_a_process_that_dies_after_a_while(unit: Unit, before: str) -> None:
    command = '/bin/sh -c "echo about to fail with $S; sleep 1; exit 7"'
    result = unit(**GOOD, settle=10, settings={"Service": {"ExecStart": ["", command], "Restart": "no"}})
    failed(result, "failed", "exited with status 7", "about to fail with <secret>", "The previous state is restored.")
    assert SESAME not in json.dumps(result)


def test_last_words_that_journald_reads_too_late(unit: Unit, before: str) -> None:
    """A process that is gone before a busy journald reads its words; journald knows no more than its unit then."""
    journald = "kill -%s $(pidof systemd-journald)"
    command = '/bin/sh -c "%s; echo gone too soon; exit 7"' % (journald % "STOP")
    after = '+/bin/sh -c "%s"' % (journald % "CONT")
    service = {"ExecStart": ["", command], "ExecStopPost": ["", after], "Restart": "no"}
    failed(unit(**GOOD, settle=10, settings={"Service": service}), "failed", "status 7", "gone too soon")


def test_a_start_that_never_ends(unit: Unit, before: str) -> None:
    settings = {"Service": {"Type": "notify", "TimeoutStartSec": 600, "ExecStart": ["", "/bin/sleep 600"]}}
    result = unit(**dict(GOOD, timeout=3), settings=settings)
    failed(result, "timeout", "it did not start within 3 s", "The previous state is restored.")


def test_a_process_that_changes_its_environment(unit: Unit, before: str) -> None:
    settings = {"Service": {"ExecStart": ["", "/usr/bin/env A=other PORT=18080 " + SERVER]}}
    failed(unit(**GOOD, settings=settings), "unproven", "A is 'other', expected 'good'")


def test_a_port_that_is_unset(unit: Unit, before: str) -> None:
    settings = {"Service": {"UnsetEnvironment": "A"}}
    failed(same_process(unit, lambda: unit(**GOOD, settings=settings)), "shadowed", "zz-gpufleet.conf", "removes it")


def test_full_disk(unit: Unit, before: str) -> None:
    unit.sh(
        "mkdir -p /run/copy; cp -a /etc/systemd/system/. /run/copy;"
        "mount -t tmpfs -o size=1M,mode=755 tmpfs /etc/systemd/system;"
        "cp -a /run/copy/. /etc/systemd/system; rm -rf /run/copy;"
        "dd if=/dev/zero of=/etc/systemd/system/fill bs=4k 2>/dev/null; true"
    )
    full = unit.files()
    more = {"environment": {"A": "good", "LONG": "x" * 5000}}
    result = same_process(unit, lambda: unit(**dict(GOOD, **more)))
    assert unit.files() == full
    unit.sh("umount /etc/systemd/system; systemctl daemon-reload")
    failed(result, "not_written", "No space left on device", OURS, "free space", "Nothing was changed")


def test_read_only_etc(unit: Unit, before: str) -> None:
    unit.sh("mount --bind /etc /etc; mount -o remount,ro,bind /etc")
    result = same_process(unit, lambda: unit(**dict(GOOD, environment={"A": "bad"})))
    unit.sh("umount /etc; systemctl daemon-reload")
    failed(result, "not_written", "Read-only file system", "mounted read-only", "Nothing was changed")


REFUSED: Dict[str, Any] = {
    "no such unit": ({"unit": "fleet-none"}, "there is no unit fleet-none.service"),
    "a template": ({"unit": "fleet-web@"}, "is a template"),
    "not a unit name": ({"unit": "../fleet-web"}, "not a unit name"),
    "a boolean": ({"environment": {"A": True}}, "environment: A is true or false"),
    "a bad name": ({"environment": {"A-B": "1"}}, "'A-B'"),
    "a bad value": ({"environment": {"A": "x\x00y"}}, "NUL"),
    "an unknown setting": ({"settings": {"Service": {"LimitNOFLE": 1}}}, "Unknown key"),
    "a wrong value of a setting": ({"settings": {"Service": {"LimitNOFILE": "many"}}}, "Failed to parse"),
    "a wrong section": ({"settings": {"Servce": {"Nice": 1}}}, "Unknown section"),
}


def test_bad_input_is_refused_before_anything_is_touched(unit: Unit, before: str) -> None:
    def all_of_them() -> None:
        for name, (options, says) in REFUSED.items():
            result = unit(**dict(GOOD, **options))
            assert result["failed"] and says in result["msg"] and "nothing was changed" in result["msg"], (name, result)

    same_process(unit, all_of_them)


def test_masked(unit: Unit, before: str) -> None:
    # where a unit lies decides whether it can be masked: /etc wins over /run
    masked = "/etc/systemd/system/" + UNIT
    unit.sh("ln -s /dev/null %s; systemctl daemon-reload" % masked)
    result = unit(**dict(GOOD, environment={"A": "bad"}))
    assert result["failed"] and "fleet-web.service is masked" in result["msg"]
    unit.sh("rm %s; systemctl daemon-reload" % masked)


# --- two at once, and one that is killed


def test_two_runs_at_once(unit: Unit, before: str) -> None:
    results: List[Dict[str, Any]] = []

    def run(value: str) -> None:
        results.append(unit(**dict(GOOD, environment={"A": value})))

    threads = [threading.Thread(target=run, args=(value,)) for value in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result["failed"] for result in results] == [False, False], results
    assert unit.environ()["A"] in ("one", "two") and unit.sh("ls -A " + DROP_INS) == "zz-gpufleet.conf\n"
    unit(**GOOD)


def test_the_holder_of_the_lock_is_named(unit: Unit, before: str) -> None:
    unit.sh("echo 4711 >%s; systemd-run --unit=fleet-holder flock %s sleep 600" % (LOCK, LOCK))
    unit.sh("until ! flock -n %s true; do sleep 0.05; done" % LOCK)
    result = unit(**dict(GOOD, environment={"A": "bad"}, timeout=1))
    assert (
        result["failed"] and "another run, process 4711, is still busy with" in result["msg"] and LOCK in result["msg"]
    )


def test_a_poisoned_log_neither_draws_on_the_terminal_nor_speaks_for_another(lab: Any, unit: Unit, before: str) -> None:
    found = on_host.run(lab, "gpu1", "poisoned_log.py")
    assert found["forged"] == 100, "the stranger was heard by journald"
    own = [
        "all is well failed",
        "one of two",
        "two of two",
        "not \ufffd text",
        "and a line",
        "x" * 150000,
        "last own words",
    ]
    assert found["journal"] == own
    assert [line for line in found["start"] if line in own[3:]] == own[3:] and found["start"][0] == own[0]
    assert not any(char < " " for line in found["journal"] + found["start"] for char in line)
