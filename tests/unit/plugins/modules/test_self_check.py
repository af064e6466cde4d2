# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The self check on a host: left, found, replaced, removed; systemd is a stand-in."""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.self_check import run, unit
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused


class Systemd:
    """Runs the check at once: it leaves a verdict."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.wrong = ""
        self.said: List[str] = []

    def reload(self) -> None:
        self.said.append("reload")

    def enable(self, name: str) -> str:
        link = Path(self.root + unit.ENABLED)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to("../" + name)
        return ""

    def disable(self, name: str) -> str:
        os.unlink(self.root + unit.ENABLED)
        return ""

    def restart(self, name: str, *limits: float) -> str:
        self.said.append("restart " + name)
        return ""

    def start(self, name: str, limit: float) -> str:
        if not self.wrong:
            verdict = Path(self.root + unit.VERDICT)
            verdict.parent.mkdir(parents=True, exist_ok=True)
            verdict.write_text("{}")
            folder = unit.question(self.root)["textfile_folder"]
            Path("%s%s/%s" % (self.root, folder, unit.METRICS)).write_text("x 1\n")
        return self.wrong

    def stop(self, name: str, limit: float) -> str:
        self.said.append("stop " + name)
        return ""


@pytest.fixture
def systemd(tmp_path: Path) -> Systemd:
    root = os.path.realpath(tmp_path)
    os.makedirs(root + unit.UNITS)
    return Systemd(root)


def leave(systemd: Systemd, check_mode: bool = False, **more: Any) -> Dict[str, Any]:
    params = {"interval": "5min", "textfile_folder": "/var/lib/metrics", "id": "1", **more}
    question = {"id": params["id"], "textfile_folder": params["textfile_folder"]}
    files = {"question.json": json.dumps(question), "self_check.py": "", "code.json": "[]"}
    params["question"] = base64.b64encode(zlib.compress(json.dumps(files).encode())).decode()
    return run.converge(params, check_mode, print, systemd)


def everything(root: str) -> Dict[str, Any]:
    """Path, mode and content of all that is there."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.is_file() and path.read_bytes())
        for path in sorted(Path(root).rglob("*"))
    }


def test_left_once(systemd: Systemd) -> None:
    before = everything(systemd.root)
    assert leave(systemd, check_mode=True)["changed"]
    assert everything(systemd.root) == before
    assert leave(systemd)["changed"]
    assert os.stat(systemd.root + unit.FOLDER).st_mode & 0o777 == 0o700
    assert os.stat(systemd.root + unit.FOLDER + "/question.json").st_mode & 0o777 == 0o600
    after = everything(systemd.root)
    assert leave(systemd) == {
        "changed": False,
        "msg": "self check: every 5min, metrics in /var/lib/metrics",
        "reason": "",
    }
    assert everything(systemd.root) == after


def test_what_makes_it_differ(systemd: Systemd) -> None:
    leave(systemd)
    assert leave(systemd, id="2")["reason"] == "its desired state is not that of the inventory"
    assert leave(systemd, id="2", interval="1h")["reason"].endswith(".timer differs")
    assert leave(systemd, id="2", interval="1h")["reason"] == ""
    os.unlink(systemd.root + unit.ENABLED)
    assert leave(systemd, id="2", interval="1h")["reason"].endswith(".timer is not enabled")
    long_ago = time.time() - 3 * 3600
    os.utime(systemd.root + unit.VERDICT, (long_ago, long_ago))
    assert leave(systemd, id="2", interval="1h")["reason"].startswith("it has not run for 10")
    Path(systemd.root + unit.FOLDER + "/.question.json.previous").write_text("{}")
    assert leave(systemd, id="2", interval="1h")["reason"] == "an earlier run was interrupted"
    assert leave(systemd, id="2", interval="1h")["reason"] == ""


def test_a_check_that_does_not_run_is_put_back(systemd: Systemd) -> None:
    before = set(everything(systemd.root))
    systemd.wrong = "exit 1"
    with pytest.raises(Failed, match="does not run: gpufleet-self-check.service: exit 1"):
        leave(systemd)
    left = set(everything(systemd.root)) - before
    assert not [path for path in left if "self-check" in path], left
    systemd.wrong = ""
    leave(systemd)
    after = everything(systemd.root)
    systemd.wrong, systemd.said = "exit 1", []
    with pytest.raises(Failed, match="previous state is restored"):
        leave(systemd, id="2")
    assert everything(systemd.root) == after
    assert systemd.said[-2:] == ["reload", "restart gpufleet-self-check.timer"]


def test_another_folder_for_the_metrics(systemd: Systemd) -> None:
    leave(systemd)
    leave(systemd, textfile_folder="/srv/metrics", id="2")
    assert not os.path.exists(systemd.root + "/var/lib/metrics/gpufleet.prom")
    assert os.path.exists(systemd.root + "/srv/metrics/gpufleet.prom")


def test_removed(systemd: Systemd) -> None:
    assert not leave(systemd, interval="")["changed"], "a host that never had one"
    leave(systemd)
    before = everything(systemd.root)
    assert leave(systemd, check_mode=True, interval="")["changed"]
    assert everything(systemd.root) == before
    assert leave(systemd, interval="") == {"changed": True, "msg": "self check: none", "reason": "it is there"}
    assert not [path for path in everything(systemd.root) if "self-check" in path or path.endswith(".prom")]
    assert "stop gpufleet-self-check.timer" in systemd.said
    assert not leave(systemd, interval="")["changed"]


@pytest.mark.parametrize("interval", ["5", "1s", "5 minutes", "-5min", "5min30s", "infinity"])
def test_intervals_that_are_refused(systemd: Systemd, interval: str) -> None:
    with pytest.raises(Refused, match="expected a time such as 5min or 1h, of at least 10 s"):
        leave(systemd, interval=interval)


@pytest.mark.parametrize("interval, seconds", [("5min", 300), ("90s", 90), ("300", 300), ("1h", 3600), ("1 d", 86400)])
def test_intervals(interval: str, seconds: int) -> None:
    assert unit.seconds(interval) == seconds


def test_the_look_never_differs(systemd: Systemd) -> None:
    """It is asked together with other checks, of which the first that differs would be the last."""
    params = {"interval": "5min", "textfile_folder": "/var/lib/metrics", "id": "1"}
    assert run.look(params, True, print)["changed"] is False
    assert run.look(params, True, print)["reason"]
