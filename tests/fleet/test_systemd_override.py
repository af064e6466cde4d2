# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd_override on a real host: what it does, and what it leaves alone.

After every step the host is looked at with tools that are not ours: systemctl, sha256sum, /proc, curl, grep.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import on_host
from web_unit import DROP_INS, OURS, UNIT, Unit, same_process

SESAME = "open-sesame-%d"


@pytest.fixture
def unit(lab: Any, host: str) -> Any:
    unit = Unit(lab, host)
    yield unit
    unit.sh("systemctl stop 'fleet-*'; true")


# --- the way of a change


def test_the_ladder(unit: Unit) -> None:
    declared = {"environment": {"A": 'x "y" % $z \\ é', "PORT": 18081}, "settings": {"Service": {"LimitNOFILE": 4321}}}
    clean = unit.files()
    foretold = same_process(unit, lambda: unit(check=True, **declared))
    assert foretold["changed"] and foretold["restarted"] and unit.files() == clean

    made = unit(**declared)
    assert made["changed"] and made["restarted"] and made["reloaded"] and not made["failed"], made
    assert made["diff"] == foretold["diff"] and 0 < made["downtime_ms"] < 60000
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
    drift = result["drift"]["A"]
    assert drift.pop("file").startswith(OURS) and drift == {"declared": "2", "on_disk": "2", "running": "1"}
    assert unit.environ()["A"] == "2"


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


# --- one that is killed


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


PLANT = """
printf '[Service]\\nEnvironment="HF_TOKEN=planted-one-4711"\\n' > {folder}/override.conf
printf '[Service]\\nEnvironment=HARMLESS=planted-two-4711\\n' > {folder}/private.conf
chmod 600 {folder}/private.conf
mkdir -pm 700 /etc/gpufleet/credentials/{unit}
echo planted-three-4711 > /etc/gpufleet/credentials/{unit}/planted
printf 'MESSAGE=got %s\\nOBJECT_PID=%s\\n' 'planted-two-4711 planted-three-4711 token=planted-four-4711 end' \\
  $(systemctl show -p MainPID --value {unit}) | logger --journald
journalctl --sync
"""


def test_the_doctor_finds_what_is_wrong_and_no_secret_leaves(unit: Unit, tmp_path: Path) -> None:
    """Secrets in a drop-in, a private drop-in, a secret variable, a file of keys and the log."""
    unit(environment={"A": "1"}, secret_environment={"S": "planted-five-4711"})
    unit.sh(PLANT.format(folder=DROP_INS, unit=UNIT))
    try:
        result = unit.lab.module(unit.host, "doctor", {"folder": str(tmp_path)})
    finally:
        unit.sh("rm -r %s /etc/gpufleet/credentials/%s" % (DROP_INS, UNIT))
    assert not result["failed"] and {"not_loaded", "later_drop_in"} & {one["pain"] for one in result["pains"]}, result
    (bundle,) = tmp_path.iterdir()
    assert bundle.stat().st_mode & 0o777 == 0o600
    with tarfile.open(bundle) as archive:
        members = {name.partition("/")[2]: archive.extractfile(name) for name in archive.getnames()}
        text = {name: file.read().decode() for name, file in members.items() if file}
    assert "4711" not in "".join(text.values()) + json.dumps(result)
    assert "got <secret> <secret> token=<secret> end" in text["logs/%s.txt" % UNIT]
    assert "private.conf, which not everybody may read" in text["units/%s.files.txt" % UNIT]
    assert ":18080" in text["listeners.txt"] and "serial number" in text["support.txt"] and text["nvidia-smi.txt"]
