#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients notice of a rollout, and of what goes wrong in its middle: a table with a row for each case.

    .venv/bin/python benchmarks/rollout_proof.py [--keep] [CASE …]

The fleet of gateway_proof.py: four lab hosts with a real Ollama, two of them with a real llama-server as well, behind
two gateways with TLS. Eight users with the clients of PyPI, `openai` and `ollama`, streaming and plain, ask without a
pause.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GPUFLEET_LAB"] = os.environ.get("GPUFLEET_LAB", "rollout")

import gateway_proof as base
from gateway_proof import BIN, ENGINES, GATEWAYS, KEY, LAB, PORT, ROOT, clients, sh

# grep ends with 1 where it counts 0
READY = "curl -s 127.0.0.1:8404/metrics | grep -c '^haproxy_server_status.*ollama.*state=\"UP\".* 1$' || true"
MARKS = "ls /run/gpufleet-agent"
NO_SSH = ["iptables", "-I", "INPUT", "-p", "tcp", "--dport", "22", "-j", "REJECT", "--reject-with", "tcp-reset"]


class Fleet(base.Fleet):
    """The fleet, its rollouts, and what was seen of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.state, self.number, self.least = folder / "state", 10, 0

    def change(self) -> dict[str, Any]:
        """A value of a setting of each engine that no host has yet."""
        self.number += 1
        return {"ollama_keep_alive": "%dm" % self.number, "llama_server_ctx_size": 4096 + 256 * self.number}

    def start(self, *words: str, **variables: Any) -> subprocess.Popen[str]:
        given = json.dumps({"rollout_state": str(self.state), "rollout_soak": 2, **variables})
        playbook = [str(BIN / "ansible-playbook"), "-i", str(self.inventory), str(ROOT / "playbooks/rollout.yml")]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([*playbook, "-e", given, *words], cwd=ROOT, env=environment, **pipe)  # type: ignore

    def end(self, process: subprocess.Popen[str], verdict: str = "complete") -> None:
        output = process.communicate()[0]
        if "rollout %s:" % verdict not in output:
            raise SystemExit("expected: rollout %s\n%s" % (verdict, output[-6000:]))

    def rollout(self, *words: str, **variables: Any) -> None:
        self.end(self.start(*words, **variables))

    def events(self) -> list[dict[str, Any]]:
        """Those of the last run."""
        try:
            lines = (self.state / "journal.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def until(self, process: subprocess.Popen[str], event: str, host: str, since: int) -> None:
        """Wait until the journal has an event of a host."""
        while process.poll() is None:
            if any(
                one["event"] == event and host in (one.get("host"), *one.get("hosts", ()))
                for one in self.events()
                if one["t"] >= since
            ):
                return
            # the journal is a file, and the standard library cannot wait for a change of one
            time.sleep(0.02)
        raise SystemExit("%s was never %s:\n%s" % (host, event, process.communicate()[0][-6000:]))

    def receipt(self) -> dict[str, Any]:
        path = max(self.state.glob("receipt-*.json"), key=lambda path: path.stat().st_mtime_ns)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def check(self) -> None:
        """Nothing is left drained, and no host was changed twice in the last run."""
        self.settled()
        marks = [sh(host, MARKS).strip() for host in ENGINES]
        applied = [one["host"] for one in self.events() if one["event"] == "applied" and one["measured"]]
        assert not any(marks) and len(set(applied)) == len(applied), (marks, applied)

    @contextlib.contextmanager
    def without_ssh(self, host: str) -> Iterator[None]:
        """A host that refuses SSH and cuts its connections."""
        base.run([*LAB, "net", host, "--", *NO_SSH])
        try:
            yield
        finally:
            base.run([*LAB, "net", host, "--", *(word.replace("-I", "-D") for word in NO_SSH)])

    def load(self, again: int = 0) -> clients.Load:
        urls = ["https://%s:%d" % (self.address[gateway], PORT) for gateway in GATEWAYS]
        return clients.Load(urls, KEY, ["tiny"], ["tiny", "chat"], again, ca=self.ca, users=8, tokens=10)


class Ready:
    """The fewest hosts whose Ollama a gateway has up while a block runs."""

    def __init__(self) -> None:
        self.least, self.ended = len(ENGINES), threading.Event()
        self.thread = threading.Thread(target=self.count)

    def count(self) -> None:
        while not self.ended.wait(0.2):
            with contextlib.suppress(SystemExit, ValueError, AssertionError, subprocess.SubprocessError):
                self.least = min(self.least, int(sh(GATEWAYS[1], READY) or 0))

    def __enter__(self) -> Ready:
        self.thread.start()
        return self

    def __exit__(self, *_error: Any) -> None:
        self.ended.set()
        self.thread.join()


# --- cases; what a function says of itself is its row


def nothing(fleet: Fleet) -> None:
    """nothing is changed for three minutes"""
    # the time itself is the case: what a loaded machine does without a change
    time.sleep(180)


def whole(fleet: Fleet) -> None:
    """rollout: a setting of both engines on all hosts"""
    fleet.rollout(**fleet.change())
    found = fleet.receipt()
    print(json.dumps({"prediction_error": found["prediction_error"], "pools": found["pools"]}), file=sys.stderr)
    for host, own in found["hosts"].items():
        for row in own["services"]:
            seconds = (host, row["service"], row["predicted"], row["basis"], row["measured"])
            print("%s %s: %s s predicted (%s), %s s measured" % seconds, file=sys.stderr)


def again(fleet: Fleet) -> None:
    """the same once more, predicted from the first one"""
    whole(fleet)


def at_once(fleet: Fleet) -> None:
    """site: the same on all hosts at once"""
    fleet.site(gpufleet_batch="100%", **fleet.change())


def gateway(fleet: Fleet) -> None:
    """rollout: a gateway is restarted meanwhile; users try again at the other one"""
    since, process = int(time.time()), fleet.start(**fleet.change())
    fleet.until(process, "admitted", "gpu2", since)
    sh(GATEWAYS[0], "systemctl restart gpufleet-gateway")
    fleet.end(process)


def lost_at(fleet: Fleet, event: str, host: str, **more: Any) -> None:
    """SSH to a host is lost after an event; the same command resumes the run."""
    wanted = dict(fleet.change(), **more)
    since, process = int(time.time()), fleet.start("--limit", "gpu1,gpu2", **wanted)
    fleet.until(process, event, host, since)
    with fleet.without_ssh(host):
        fleet.end(process, "failed")
    assert fleet.receipt()["hosts"][host]["status"] == "lost", fleet.receipt()
    fleet.rollout("--limit", "gpu1,gpu2", **wanted)


def lost_check(fleet: Fleet) -> None:
    """rollout: SSH to a host is lost before the check; nothing is changed; resumed"""
    wanted = fleet.change()
    before = fleet.events()
    with fleet.without_ssh("gpu2"):
        output = fleet.start("--limit", "gpu1,gpu2", **wanted).communicate()[0]
    assert "nothing was changed" in output and fleet.events() == before, output[-4000:]
    fleet.rollout("--limit", "gpu1,gpu2", **wanted)


def lost_change(fleet: Fleet) -> None:
    """rollout: SSH to a host is lost while it is changed; resumed"""
    lost_at(fleet, "admitted", "gpu2")


def lost_soak(fleet: Fleet) -> None:
    """rollout: SSH to the canary is lost while it is watched; resumed"""
    lost_at(fleet, "applied", "gpu1", rollout_soak=15)


def lost_again(fleet: Fleet) -> None:
    """rollout: SSH to a host is lost before it is checked again; resumed"""
    lost_at(fleet, "applied", "gpu2")


def changed_by_hand(fleet: Fleet) -> None:
    """rollout: killed; the changed canary is changed by hand meanwhile; started again"""
    wanted = fleet.change()
    since, process = int(time.time()), fleet.start("--limit", "gpu1,gpu2", **wanted)
    fleet.until(process, "done", "gpu1", since)
    process.kill()
    process.communicate()
    drop_in = "/etc/systemd/system/ollama.service.d/zz-gpufleet.conf"
    sh("gpu1", "sed -i /KEEP_ALIVE/d %s; systemctl daemon-reload" % drop_in)
    fleet.rollout("--limit", "gpu1,gpu2", **wanted)


def off(fleet: Fleet) -> None:
    """rollout: a host is powered off while it is changed; the next run leaves those alone that its pools need"""
    wanted = fleet.change()
    since, process = int(time.time()), fleet.start(**wanted)
    fleet.until(process, "admitted", "gpu3", since)
    subprocess.run(["podman", "kill", "%s-gpu3" % os.environ["GPUFLEET_LAB"]], check=True, capture_output=True)
    fleet.end(process, "failed")
    fleet.end(fleet.start("--limit", "!gpu3", rollout_room_wait=20, **wanted), "incomplete")


CASES: tuple[tuple[Callable[[Fleet], None], int], ...] = (
    (nothing, 0),
    (whole, 0),
    (again, 0),
    (at_once, 0),
    (gateway, 2),
    (lost_check, 0),
    (lost_change, 0),
    (lost_soak, 0),
    (lost_again, 0),
    (changed_by_hand, 0),
    (off, 2),
)
"""The case, and how often a user asks again after a fault."""


def seen(fleet: Fleet, case: Callable[[Fleet], None], tries: int) -> None:
    fleet.settled()
    began = time.monotonic()
    with fleet.load(tries) as load, Ready() as ready:
        case(fleet)
    seconds = "%.0f" % (time.monotonic() - began)
    if case is not off:
        fleet.check()
    least = "%d of %d" % (ready.least, len(ENGINES))
    counts = [sum(load.whole.values()), len(load.of("refused")), len(load.of("cut")), load.lost]
    print("| %s |" % " | ".join(map(str, [case.__doc__, *counts, least, seconds])), flush=True)
    for fault in sorted(set(load.faults))[:5]:
        print("    %d times %s" % (load.faults.count(fault), fault), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case.__name__ for case, _again in CASES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            fleet = Fleet(Path(folder))
            fleet.prepare()
            fleet.site(gpufleet_batch="100%")
            print("| while users ask | whole answers | refused | cut | lost | fewest hosts ready | seconds |")
            print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
            for case, tries in CASES:
                if case.__name__ in (given.cases or [case.__name__]):
                    seen(fleet, case, tries)
        finally:
            if not given.keep:
                base.run([*LAB, "down"])


if __name__ == "__main__":
    main()
