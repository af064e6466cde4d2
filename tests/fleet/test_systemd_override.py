# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd_override on a real host: what it does, how it fails, and that each time the former state is back.

After every step the host is looked at with tools that are not ours: systemctl, sha256sum, /proc, curl, grep.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import on_host

UNIT = "fleet-web.service"
PLACE = "/run/systemd/system/" + UNIT
DROP_INS = "/etc/systemd/system/%s.d" % UNIT
OURS = DROP_INS + "/zz-gpufleet.conf"
SERVER = "/usr/bin/python3 -u -m http.server --bind 127.0.0.1 $PORT"
# Restart= as upstream's ollama.service has it: systemd never gives up
FRAGMENT = """\
[Unit]
Description=Test
[Service]
Type=%s
ExecStart=%s
Restart=always
RestartSec=3
TimeoutStopSec=20
Environment=PORT=18080 PYTHONUNBUFFERED=1
[Install]
WantedBy=multi-user.target
"""
SESAME = "open-sesame-%d"


class Unit:
    """fleet-web.service on one host: a server on the port that its environment names."""

    def __init__(self, lab: Any, host: str) -> None:
        self.lab, self.host = lab, host
        self.fragment("simple", SERVER)

    def fragment(self, kind: str, command: str) -> None:
        on_host.put(self.lab, self.host, PLACE, (FRAGMENT % (kind, command)).encode())
        self.sh("systemctl daemon-reload; systemctl restart " + UNIT)
        self.serves(18080)

    def sh(self, command: str, **more: Any) -> str:
        return self.lab.sh(self.host, command, **more)

    def __call__(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        options = dict({"unit": UNIT}, **options)
        # with less verbosity Ansible prints the difference, but leaves it out of the result
        return self.lab.module(self.host, "systemd_override", options, check=check, env={"ANSIBLE_VERBOSITY": "3"})

    def serves(self, port: int) -> None:
        self.sh("curl -fsS --retry 40 --retry-delay 0 --retry-all-errors -o /dev/null http://127.0.0.1:%d/" % port)

    def show(self, name: str) -> str:
        return self.sh("systemctl show %s -p %s --value" % (UNIT, name)).strip()

    def environ(self) -> Dict[str, str]:
        out = self.sh("tr '\\0' '\\n' </proc/$(systemctl show %s -p MainPID --value)/environ" % UNIT)
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def files(self) -> str:
        """Every file that the module could touch: name, mode, owner, time, sum; and what systemd makes of the unit."""
        return self.sh(
            "find /etc/systemd/system /etc/gpufleet /run/lock -printf '%%p %%M %%u %%l\\n' 2>/dev/null | sort;"
            "find %s /etc/gpufleet -type f -exec sha256sum {} + 2>/dev/null | sort;"
            "systemctl cat %s; systemctl show %s -p Environment,EnvironmentFiles,LoadCredential,LimitNOFILE,"
            "UnitFileState,DropInPaths,NeedDaemonReload,ActiveState,SubState,Result" % (DROP_INS, UNIT, UNIT)
        )


@pytest.fixture
def unit(lab: Any, host: str) -> Any:
    unit = Unit(lab, host)
    yield unit
    unit.sh("umount -q /etc/systemd/system /etc 2>/dev/null; systemctl stop 'fleet-*'; true")
    lab.reset(host)


def same_process(unit: Unit, act: Callable[[], Any]) -> Any:
    """The result of `act`, after which the same invocation must still run."""
    before = unit.show("InvocationID")
    result = act()
    assert unit.show("InvocationID") == before
    return result


# --- the way of a change


def test_the_ladder(unit: Unit) -> None:
    declared = {"environment": {"A": 'x "y" % $z \\ é', "PORT": 18081}, "settings": {"Service": {"LimitNOFILE": 4321}}}
    clean = unit.files()
    foretold = same_process(unit, lambda: unit(check=True, **declared))
    assert foretold["changed"] and foretold["restarted"] and unit.files() == clean

    made = unit(**declared)
    assert made["changed"] and made["restarted"] and made["reloaded"] and not made["failed"], made
    assert made["diff"] == foretold["diff"] and 0 < made["unavailable_ms"] < 60000
    assert made["environment"] == {"A": 'x "y" % $z \\ é', "PORT": "18081"}
    unit.serves(18081)
    environ = unit.environ()
    assert environ["A"] == 'x "y" % $z \\ é' and environ["PORT"] == "18081"
    assert "Max open files            4321" in unit.sh("cat /proc/%s/limits" % unit.show("MainPID"))
    assert unit.show("NeedDaemonReload") == "no" and unit.show("DropInPaths") == OURS
    assert "# %s\n# Written by" % OURS in unit.sh("systemctl cat " + UNIT)
    assert unit.sh("stat -c '%%a %%U %%G' %s" % OURS).strip() == "644 root root"

    after = unit.files()
    for check in (True, False):
        repeated = same_process(unit, lambda check=check: unit(check=check, **declared))
        assert not repeated["changed"] and not repeated["drift"] and unit.files() == after

    removed = unit(state="absent")
    assert removed["changed"] and removed["restarted"] and unit.files() == clean
    unit.serves(18080)
    assert not same_process(unit, lambda: unit(state="absent"))["changed"]


def test_nothing_is_restarted_that_need_not_be(unit: Unit) -> None:
    unit(environment={"A": "1"})
    unit.sh("sed -i 's/^# Declare/# declare/; s/\"A=1\"/A=1/' %s" % OURS)
    result = same_process(unit, lambda: unit(environment={"A": "1"}))
    assert result["changed"] and result["reloaded"] and not result["restarted"]
    result = same_process(unit, lambda: unit(environment={"A": "1"}, settings={"Service": {"RestartSec": 9}}))
    assert result["changed"] and not result["restarted"] and unit.show("RestartUSec") == "9s"


def test_a_process_that_is_older_than_its_unit_is_restarted(unit: Unit) -> None:
    unit(environment={"A": "1"})
    unit.sh("sed -i 's/A=1/A=2/' %s; systemctl daemon-reload" % OURS)
    result = unit(environment={"A": "2"})
    assert result["restarted"] and result["reasons"] == ["the running process has other values: A"]
    assert result["drift"] == {"A": {"declared": "2", "on_disk": "2", "running": "1"}} and unit.environ()["A"] == "2"


def test_enabled_and_started(unit: Unit) -> None:
    unit.sh("systemctl stop " + UNIT)
    assert unit(environment={"A": "1"})["changed"] and unit.show("ActiveState") == "inactive"
    assert unit(environment={"A": "1"}, started=True, enabled=True)["changed"]
    assert unit.sh("systemctl is-active %s; systemctl is-enabled %s" % (UNIT, UNIT)) == "active\nenabled\n"
    assert not unit(environment={"A": "1"}, started=True, enabled=True)["changed"]
    unit(environment={"A": "1"}, started=False, enabled=False)
    assert unit.sh("systemctl is-active %s; systemctl is-enabled %s; true" % (UNIT, UNIT)) == "inactive\ndisabled\n"


def test_a_converged_call_starts_one_process(unit: Unit, lab: Any) -> None:
    declared = {"environment": {"A": "1"}, "secret_environment": {"B": "22222"}, "started": True}
    unit(**declared)
    cost = on_host.run(lab, unit.host, "cost.py", dict(declared, unit=UNIT, runs=5))
    assert cost["processes"] == 1 and not cost["changed"], cost


# --- others' files


def test_override_conf_is_respected_and_never_written(unit: Unit) -> None:
    override = DROP_INS + "/override.conf"
    unit.sh("mkdir -p %s; printf '[Service]\\nEnvironment=A=hand B=hand\\n' >%s" % (DROP_INS, override))
    unit.sh("systemctl daemon-reload; systemctl restart " + UNIT)
    look = "stat -c '%%i %%Y %%Z' %s; sha256sum %s" % (override, override)
    before = unit.sh(look)
    unit(environment={"A": "ours"})
    environ = unit.environ()
    assert environ["A"] == "ours" and environ["B"] == "hand" and unit.sh(look) == before
    unit(state="absent")
    assert unit.environ()["A"] == "hand" and unit.sh("ls " + DROP_INS) == "override.conf\n" and unit.sh(look) == before


def test_a_later_file_that_shadows_is_named_and_nothing_is_touched(unit: Unit) -> None:
    unit.sh("mkdir -p %s; printf '[Service]\\nEnvironment=A=theirs\\n' >%s/zzz.conf" % (DROP_INS, DROP_INS))
    before = unit.files()
    result = same_process(unit, lambda: unit(environment={"A": "ours"}))
    assert result["failed"] and result["verdict"] == "shadowed" and unit.files() == before
    assert "A is declared 'ours', but %s/zzz.conf:2 sets 'theirs'" % DROP_INS in result["msg"]
    unit.sh("rm %s/zzz.conf" % DROP_INS)


# --- failures: each ends in the former state


@pytest.fixture
def before(unit: Unit) -> Any:
    """The unit with a good override; afterwards all must be as now, and serve."""
    unit(environment={"A": "good"}, secret_environment={"S": SESAME % 0})
    files, environ = unit.files(), unit.environ()
    yield files
    assert unit.files() == files
    unit.serves(18080)
    now = unit.environ()
    assert {name: now[name] for name in ("A", "S", "PORT")} == {name: environ[name] for name in ("A", "S", "PORT")}
    assert not unit(environment={"A": "good"}, secret_environment={"S": SESAME % 0})["changed"]


def failed(result: Dict[str, Any], verdict: str, *says: str) -> None:
    assert result["failed"] and result["verdict"] == verdict, result
    for text in says:
        assert text in result["msg"], result["msg"]
    assert not result["changed"], result


GOOD: Dict[str, Any] = {"environment": {"A": "good"}, "secret_environment": {"S": SESAME % 0}, "timeout": 30}


def test_port_taken(unit: Unit, before: str) -> None:
    unit.sh("systemd-run --unit=fleet-occupant python3 -m http.server --bind 127.0.0.1 18082")
    unit.serves(18082)
    result = unit(**dict(GOOD, environment={"A": "bad", "PORT": "18082"}))
    failed(result, "crash_loop", "exited with status 1", "Address already in use", "The former state is back.")
    assert result["rolled_back"] and result["evidence"]["exec_main_status"] == 1
    unit.sh("systemctl stop fleet-occupant")


@pytest.mark.parametrize("kind", ["simple", "exec"])
def test_binary_missing(unit: Unit, before: str, kind: str) -> None:
    result = unit(**GOOD, settings={"Service": {"Type": kind, "ExecStart": ["", "/opt/no/such/server"]}})
    failed(result, "crash_loop", "status 203 (cannot be executed)", "No such file or directory", "/opt/no/such/server")


def test_a_process_that_dies_after_a_while(unit: Unit, before: str) -> None:
    command = '/bin/sh -c "echo about to fail with $S; sleep 1; exit 7"'
    result = unit(**GOOD, settle=10, settings={"Service": {"ExecStart": ["", command], "Restart": "no"}})
    failed(result, "failed", "exited with status 7", "about to fail with <secret>", "The former state is back.")
    assert SESAME % 0 not in json.dumps(result)


def test_a_start_that_never_ends(unit: Unit, before: str) -> None:
    settings = {"Service": {"Type": "notify", "TimeoutStartSec": 600, "ExecStart": ["", "/bin/sleep 600"]}}
    result = unit(**dict(GOOD, timeout=3), settings=settings)
    failed(result, "timeout", "it did not start within 3 s", "The former state is back.")


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
    "no unit name": ({"unit": "../fleet-web"}, "no unit name"),
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
    lock = "/run/lock/gpufleet-%s.lock" % UNIT
    unit.sh("echo 4711 >%s; systemd-run --unit=fleet-holder flock %s sleep 600" % (lock, lock))
    unit.sh("until ! flock -n %s true; do sleep 0.05; done" % lock)
    result = unit(**dict(GOOD, environment={"A": "bad"}, timeout=1))
    assert result["failed"] and "being changed by another run, process 4711" in result["msg"] and lock in result["msg"]
    unit.sh("systemctl stop fleet-holder; rm -f " + lock)


def test_runs_that_are_killed_at_any_point_are_made_good_by_the_next(lab: Any, host: str) -> None:
    found = on_host.run(lab, host, "killed.py")
    assert found["left"] == [] and len(found["rows"]) == 12
    for row in found["rows"]:
        assert row["killed"] and row["changed"] is (row["at"] != "after finish") and not row["again"], row
        assert row["seen"] and row["files"] == ["zz-gpufleet.conf", "fleet-killed.service.env"], row
        assert row["lock"] == [], row


# --- secrets


def test_secrets_are_nowhere_but_where_they_belong(unit: Unit, lab: Any) -> None:
    first, second, third = (SESAME % number for number in (1, 2, 3))
    declared = {"secret_environment": {"S": first}, "credentials": {"key": second}, "environment": {"A": "1"}}
    watch = "while sleep 0.02; do cat /proc/[0-9]*/cmdline; done >/run/fleet-cmdlines 2>/dev/null"
    # systemd itself makes / shared, but not in a container, and hands credentials over by a mount
    unit.sh("mount --make-rshared /; systemd-run --unit=fleet-watch sh -c '%s'" % watch)
    results = [
        unit(check=True, **declared),
        unit(**declared),
        unit(**dict(declared, secret_environment={"S": third})),
        unit(**dict(declared, settings={"Service": {"ExecStart": ["", '/bin/sh -c "env; exit 1"']}})),
    ]
    unit.sh("systemctl stop fleet-watch")
    assert [result["changed"] for result in results] == [True, True, True, False]
    assert results[3]["failed"] and results[3]["rolled_back"]
    assert unit.environ()["S"] == third
    assert unit.sh("cat /run/credentials/%s/key" % UNIT) == second
    assert unit.sh("find /etc/gpufleet -type f -printf '%p %m %u\n' | sort").split("\n")[:2] == [
        "/etc/gpufleet/credentials/%s/key 600 root" % UNIT,
        "/etc/gpufleet/%s.env 600 root" % UNIT,
    ]
    said = json.dumps(results) + unit.sh("systemctl show %s; systemctl cat %s; cat /run/fleet-cmdlines" % (UNIT, UNIT))
    for secret in (first, second, third):
        assert secret not in said
    # what the unit itself writes into its journal is its own affair: here it did, on purpose, and only it
    words = "-e %s -e %s -e %s" % (first, second, third)
    journal = unit.sh("journalctl -o export --no-pager --boot | grep -a %s; true" % words)
    assert all(line.startswith("MESSAGE=S=") for line in journal.splitlines()), journal
    places = unit.sh("grep -rlsa %s /etc /var/log /run /tmp /root /home; true" % words)
    own = ("/etc/gpufleet/", "/run/credentials/", "/run/log/journal/", "/var/log/journal/")
    assert all(place.startswith(own) for place in places.splitlines()), places
    assert unit(state="absent")["changed"]
    assert unit.sh("ls -d /etc/gpufleet %s; true" % DROP_INS, check=False).count("No such file") == 2
