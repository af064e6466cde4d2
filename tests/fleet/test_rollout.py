# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout under load: three hosts with a real Ollama, a gateway in front of them, clients that stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))

import faults  # noqa: E402
import hostsetup  # noqa: E402
from gpulab import podman  # noqa: E402
from load import fault_of_stream  # noqa: E402

HOSTS = ("gpu1", "gpu2", "gpu3")
GATEWAY, PORT, KEY = "gpu3", 8443, "rollout-sesame-4711-open"
ASK = json.dumps({"model": "tiny", "prompt": "hello", "options": {"num_predict": 10}})
MARK = "/run/counting"
RESERVED = "/var/lib/gpufleet/rollout.json"
UP = "curl -s 127.0.0.1:8404/metrics | grep -c '^haproxy_server_status.*\"UP\".* 1$'"
VARIABLES = {
    "ollama_host": "0.0.0.0",
    "ollama_allow_unauthenticated": True,
    "ollama_models": ["tiny"],
    "ollama_num_parallel": 4,
    "ollama_keep_alive": "10m",
    "gateway_host": "0.0.0.0",
    "gateway_allow_plaintext": True,
    "gateway_connections": 2000,
    "gateway_keys": [{"name": "alice", "key": KEY, "pools": ["*"]}],
    "rollout_soak": 1,
}


class Fleet:
    """The hosts, and the playbooks that configure them."""

    def __init__(self, lab: Any, folder: Path) -> None:
        self.lab, self.folder, self.inventory = lab, folder, folder / "fleet.yml"
        groups = {"ollama": {"hosts": dict.fromkeys(HOSTS)}, "gateway": {"hosts": {GATEWAY: None}}}
        self.inventory.write_text(yaml.safe_dump(groups))
        self.address = lab.sh(GATEWAY, "hostname -I").split()[0]

    def run(self, playbook: str, *words: str, ok: bool = True, **variables: Any) -> Any:
        given = json.dumps({**VARIABLES, "rollout_state": str(self.folder / "state"), **variables})
        words = ("-i", str(self.inventory), "-e", given, *words)
        return self.lab.playbook("playbooks/%s.yml" % playbook, *words, ok=ok, warnings=True)

    def receipt(self) -> Any:
        paths = sorted((self.folder / "state").glob("receipt-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return json.loads(paths[-1].read_text())

    def processes(self) -> List[str]:
        return [self.lab.sh(host, "systemctl show -p MainPID --value ollama") for host in HOSTS]

    def reserved(self) -> List[str]:
        return [host for host in HOSTS if self.lab.sh(host, "ls %s 2>/dev/null || :" % RESERVED)]

    def once(self) -> str:
        """What went wrong with one streamed request, if anything did."""
        return fault_of_stream(self.address, PORT, ASK, Authorization="Bearer " + KEY)


class Load:
    """Clients that stream one answer after the other, and a count of the servers that the gateway has up."""

    def __init__(self, fleet: Fleet, clients: int = 6) -> None:
        self.fleet, self.whole, self.ending = fleet, 0, False
        self.faults: List[str] = []
        self.ready: List[int] = []
        self.threads = [threading.Thread(target=self.client) for _number in range(clients)]
        words = podman.inside("%s-%s" % (os.environ["GPUFLEET_LAB"], GATEWAY))
        self.counting = [*words, "sh", "-c", "touch %s; while [ -e %s ]; do %s; sleep 0.2; done" % (MARK, MARK, UP)]

    def client(self) -> None:
        while not self.ending:
            fault = self.fleet.once()
            if fault:
                self.faults.append(fault)
                time.sleep(0.1)  # as a person would, not a loop
            else:
                self.whole += 1

    def __enter__(self) -> "Load":
        self.counter = subprocess.Popen(self.counting, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for thread in self.threads:
            thread.start()
        until = time.monotonic() + 60
        while self.whole < 12:
            assert time.monotonic() < until, self.faults[:3]
            time.sleep(0.05)
        return self

    def __exit__(self, *_words: Any) -> None:
        self.ending = True
        for thread in self.threads:
            thread.join()
        self.fleet.lab.sh(GATEWAY, "rm %s" % MARK)
        self.ready = [int(line) for line in self.counter.communicate()[0].split()]


@pytest.fixture(scope="module")
def fleet(lab: Any, tmp_path_factory: Any) -> Iterator[Fleet]:
    """The hosts, set up by site.yml, with all servers up at the gateway."""

    def set_up(host: str) -> None:
        lab.reset(host)
        hostsetup.uninstall(host)
        hostsetup.install(host)
        hostsetup.add_models(host, "tiny")
        faults.worker(host, "slow-token:0.1")

    def take_down(host: str) -> None:
        faults.clear(host)
        hostsetup.uninstall(host)

    with ThreadPoolExecutor() as pool:
        index = pool.submit(lab.sh, GATEWAY, "apt-get -qq update", timeout=300)
        list(pool.map(set_up, HOSTS))
        index.result()
    made = Fleet(lab, tmp_path_factory.mktemp("rollout"))
    made.run("site", gpufleet_batch="100%")
    lab.sh(GATEWAY, "until [ $(%s) = 3 ]; do sleep 0.5; done" % UP, timeout=120)
    yield made
    assert not lab.module(GATEWAY, "gateway_service", {"state": "absent"})["failed"]
    for host in HOSTS:
        assert not lab.module(host, "gateway_agent", {"state": "absent"})["failed"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(take_down, HOSTS))


def test_the_plan_of_a_changed_setting(fleet: Fleet) -> None:
    """fleet_plan: the price, the claims and the file that wins, and nothing is touched."""
    before, written = fleet.processes(), fleet.folder / "plan.json"
    fleet.lab.state("gpu2", "h200x4", "ecc-uncorrectable:1")
    done = fleet.run("plan", ollama_keep_alive="11m", plan_output=str(written), plan_exit_status=True, ok=False)
    fleet.lab.state("gpu2")
    print(done.output[done.output.index("  plan: changes") :])
    assert done.rc == 2 and fleet.processes() == before
    found = json.loads(written.read_text())
    row = found["hosts"]["gpu1"]["services"][0]
    assert row["restart"] and row["ports"] == [11434] and row["drift"]["OLLAMA_KEEP_ALIVE"]["running"] == "10m"
    assert row["drift"]["OLLAMA_KEEP_ALIVE"]["file"].startswith(
        "/etc/systemd/system/ollama.service.d/zz-gpufleet.conf:"
    )
    assert {risk["host"] for risk in found["risks"]} == {"gpu2"} and "memory errors" in found["risks"][0]["text"]
    assert found["hosts"]["gpu2"]["services"][0]["gpus"] == [0, 2, 3]
    pool = found["steps"][0]["pools"]["tiny"]
    assert (pool["ready"], pool["hosts"], pool["minimum"]) == (2, 3, 2)


def test_a_changed_setting_fails_no_request(fleet: Fleet) -> None:
    """A second controller is refused before, and takes the host over once a person says so."""
    before = fleet.processes()
    theirs = {"holder": "theirs", "run": "r9", "by": "ada@ctl2"}
    assert fleet.lab.module("gpu2", "host_reservation", {"state": "reserved", **theirs})["reserved"]
    refused = fleet.run("rollout", ok=False, ollama_keep_alive="11m")
    assert "rollout r9 of ada@ctl2 has reserved this host since 20" in " ".join(refused.output.split())
    assert fleet.processes() == before and fleet.reserved() == ["gpu2"]
    with Load(fleet) as load:
        done = fleet.run("rollout", ollama_keep_alive="11m", rollout_take_over=True)
    print(done.output[done.output.index("  rollout complete") :])
    print("%d whole answers, faults: %s, fewest ready: %d" % (load.whole, load.faults, min(load.ready)))
    assert load.faults == [] and min(load.ready) >= 2
    assert all(old != new for old, new in zip(before, fleet.processes())) and fleet.reserved() == []
    receipt = fleet.receipt()
    assert receipt["verdict"] == "complete" and receipt["pools"]["tiny"]["least_ready"] == 2
    assert all(row["measured"] > 0 for own in receipt["hosts"].values() for row in own["services"])
    again = fleet.run("rollout", ollama_keep_alive="11m")
    assert "0 hosts to change, 3 hosts as declared" in again.output and again.changed == 0


def test_a_change_that_breaks_the_canary_stays_there(fleet: Fleet) -> None:
    faults.server("gpu1", "crash-loop:0.1", "OLLAMA_KEEP_ALIVE=13m")
    before = fleet.processes()
    with Load(fleet) as load:
        done = fleet.run("rollout", ok=False, ollama_keep_alive="13m")
    print(done.output[done.output.index("  rollout failed") :])
    print("%d whole answers, faults: %s, fewest ready: %d" % (load.whole, load.faults, min(load.ready)))
    assert done.rc == 2 and load.faults == [] and min(load.ready) >= 2
    receipt = fleet.receipt()
    statuses = [own["status"] for own in receipt["hosts"].values()]
    assert list(receipt["hosts"]) == list(HOSTS) and statuses == ["failed", "waiting", "waiting"]
    assert receipt["hosts"]["gpu1"]["rolled_back"] and "the canary gpu1 failed" in receipt["reason"]
    assert fleet.processes()[1:] == before[1:]


@pytest.mark.skipif("ROLLOUT_SLOW" not in os.environ, reason="it watches a canary for two minutes")
def test_a_change_that_makes_the_canary_slow_is_taken_back(fleet: Fleet) -> None:
    before = fleet.processes()

    def slow_down() -> None:
        while fleet.lab.sh(HOSTS[0], "systemctl show -p MainPID --value ollama") in ("0", before[0]):
            time.sleep(0.5)  # a unit announces its new process to nobody outside its host
        faults.worker(HOSTS[0], "slow-token:0.4")

    with Load(fleet) as load:
        while load.whole < 300:  # so that the gateway knows how long a request has taken on each host
            assert load.faults == []
            time.sleep(1)
        slowing = threading.Thread(target=slow_down)
        slowing.start()
        done = fleet.run("rollout", ok=False, ollama_keep_alive="17m", rollout_soak=120)
        slowing.join()
    faults.worker(HOSTS[0], "slow-token:0.1")
    print(done.output[done.output.index("  rollout failed") :])
    print("%d whole answers, faults: %s, fewest ready: %d" % (load.whole, load.faults, min(load.ready)))
    assert done.rc == 2 and load.faults == [] and min(load.ready) >= 2
    canary = fleet.receipt()["hosts"]["gpu1"]
    assert canary["rolled_back"] and "it does worse than the hosts that are as before" in canary["why"]
    assert "OLLAMA_KEEP_ALIVE=17m" not in fleet.lab.sh("gpu1", "systemctl show -p Environment ollama")
    assert fleet.processes()[1:] == before[1:]


def test_a_maintained_host_stays_out_until_its_work_is_done(fleet: Fleet) -> None:
    """The work fails first, once its service is stopped; the same command goes on there, and does it again."""
    tasks, work = fleet.folder / "work.yml", "systemctl is-active ollama; echo ran >>/root/work; test -e /root/ready"
    tasks.write_text(yaml.safe_dump([{"name": "Work", "ansible.builtin.shell": work, "become": True}]))
    given = {"maintain_name": "driver-575", "maintain_tasks": str(tasks), "maintain_driver": "575"}
    before = fleet.processes()
    fleet.lab.sh("gpu1", "rm -f /root/work /root/ready /var/lib/gpufleet/maintenance.json")
    failed = fleet.run("maintain", "--limit", "gpu1", ok=False, **given)
    assert "1 lost, 0 as declared" in failed.output and "gpu1 stays out of service: Work: non-zero" in failed.output
    left = "systemctl is-active ollama; systemctl is-enabled ollama; ls /run/gpufleet-agent"
    assert fleet.lab.sh("gpu1", left, check=False).split() == ["inactive", "disabled", "ollama.service"]
    fleet.lab.sh("gpu1", "touch /root/ready; rm /run/gpufleet-agent/ollama.service")  # as a boot would
    done = fleet.run("maintain", "--limit", "gpu1", **given)
    print(done.output[done.output.index("  rollout complete") :])
    assert fleet.lab.sh("gpu1", "systemctl is-active ollama; ls /run/gpufleet-agent").split() == ["active"]
    assert fleet.lab.sh("gpu1", "cat /root/work; systemctl is-enabled ollama").split() == ["ran", "ran", "enabled"]
    assert fleet.processes()[1:] == before[1:]
    ended = fleet.lab.module("gpu1", "host_maintenance", {"name": "driver-575", "state": "begun"})
    assert ended["ended"] and not ended["changed"]
