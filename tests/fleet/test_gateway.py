# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role gateway on lab hosts: two gateways in front of two hosts with a real Ollama, over SSH, by site.yml's way."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "lab"), str(TESTS / "lab/ollama")]

import clients  # noqa: E402
import hostsetup  # noqa: E402
from load import Load  # noqa: E402

ALICE, BOB, EVE = "alice-sesame-4711-open", "bob-sesame-4711-open!", "eve-sesame-4711-open!"
GATEWAYS, HOSTS = ("gpu1", "gpu3"), ("gpu2", "gpu3")
PORT = 8443
UP = "curl -s 127.0.0.1:8404/metrics | grep -c '^haproxy_server_status.*UP.* 1$'"
ANSWERS = "until curl -sf 127.0.0.1:%d/health; do sleep 0.5; done" % PORT
CONFIG = "/etc/gpufleet/gateway/haproxy.cfg"
PLAY = [{"hosts": "gateway", "gather_facts": False, "roles": [{"role": "gpufleet.inference.gateway"}]}]
VARIABLES = {
    "gateway_host": "0.0.0.0",
    "gateway_allow_plaintext": True,
    "gateway_connections": 2000,
    "gateway_agent_port": 0,
    "gateway_keys": [{"name": "alice", "key": ALICE, "pools": ["*"]}, {"name": "bob", "key": BOB, "pools": ["m8b"]}],
}


class Gateways:
    """The two gateways, and the play that configures them."""

    def __init__(self, lab: Any, folder: Path) -> None:
        self.lab, self.play = lab, folder / "play.yml"
        self.inventory = folder / "fleet.yml"
        self.play.write_text(yaml.safe_dump(PLAY))
        engines = {"ollama_host": "0.0.0.0", "ollama_models": [{"name": "m8b"}, {"name": "m32b"}]}
        groups = {"gateway": {"hosts": {"gpu1": {"ollama_state": "absent"}, "gpu3": None}}, "ollama": {"vars": engines}}
        self.inventory.write_text(yaml.safe_dump(groups))

    def run(self, *words: str, ok: bool = True, **variables: Any) -> Any:
        """Run the play."""
        given = json.dumps({**VARIABLES, **variables})
        return self.lab.playbook(str(self.play), "-i", str(self.inventory), "-e", given, *words, ok=ok, warnings=not ok)

    def results(self, run: Any) -> List[Dict[str, Any]]:
        return run.of("gateway_service")

    def address(self, gateway: str) -> str:
        return self.lab.sh(gateway, "hostname -I").split()[0]

    def ask(self, gateway: str, path: str, body: Any = None, key: str = ALICE, timeout: float = 30) -> Tuple[int, Any]:
        request = urllib.request.Request(
            "http://%s:%d%s" % (self.address(gateway), PORT, path),
            json.dumps(body).encode() if body is not None else None,
            {"Authorization": "Bearer " + key, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def users(self, again: int = 0) -> clients.Load:
        """Users with PyPI's clients, streaming and plain, half of them at each gateway."""
        urls = ["http://%s:%d" % (self.address(gateway), PORT) for gateway in GATEWAYS]
        return clients.Load(urls, ALICE, ["m8b"], ["m8b"], again)

    def generate(self, gateway: str, model: str = "m8b", key: str = ALICE) -> int:
        body = {"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 2, "num_ctx": 4096}}
        return self.ask(gateway, "/api/generate", body, key)[0]


@pytest.fixture(scope="module")
def gateways(lab: Any, tmp_path_factory: Any) -> Iterator[Gateways]:
    """Ollama on two hosts, set up by hand, and two gateways in front of them."""
    for host in HOSTS:
        lab.reset(host)
        hostsetup.uninstall(host)
        hostsetup.install(host)
        hostsetup.override(host, {"OLLAMA_HOST": "0.0.0.0"})
        hostsetup.add_models(host, "m8b", "m32b")
    lab.reset("gpu1")
    for gateway in GATEWAYS:
        lab.module(gateway, "gateway_service", {"state": "absent"})
        lab.sh(gateway, "apt-get -qq update", timeout=300)
    found = Gateways(lab, tmp_path_factory.mktemp("gateway"))
    yield found
    for gateway in GATEWAYS:
        assert not lab.module(gateway, "gateway_service", {"state": "absent"})["failed"]
        assert lab.sh(gateway, "ls -d /etc/gpufleet /var/lib/gpufleet-gateway 2>/dev/null || :") == ""
        assert lab.sh(gateway, "systemctl list-unit-files --no-legend 'gpufleet*' || :") == ""
    for host in HOSTS:
        hostsetup.uninstall(host)


@pytest.fixture(scope="module")
def running(gateways: Gateways, lab: Any) -> Gateways:
    """The gateways, configured, with all servers up."""
    checked = gateways.run("--check")
    assert all(result["changed"] for result in gateways.results(checked))
    assert "gpufleet" not in lab.sh("gpu1", "systemctl list-unit-files --no-legend 'gpufleet*' || :")
    run = gateways.run()
    assert [result["verdict"] for result in gateways.results(run) if "needs" not in result] == ["ok", "ok"]
    for gateway in GATEWAYS:
        lab.sh(gateway, "until [ $(%s) = 4 ]; do sleep 0.5; done" % UP, timeout=120)
    return gateways


def test_both_gateways_serve_all_models_and_a_second_run_changes_nothing(running: Gateways, lab: Any) -> None:
    for gateway in GATEWAYS:
        status, listed = running.ask(gateway, "/v1/models")
        assert status == 200 and [model["id"] for model in listed["data"]] == ["m32b", "m8b"]
        assert [model["name"] for model in running.ask(gateway, "/api/tags", key=BOB)[1]["models"]] == ["m8b"]
        assert running.generate(gateway) == running.generate(gateway, "m32b") == 200
        assert running.generate(gateway, "m32b", BOB) == 403 and running.generate(gateway, key=EVE) == 401
        assert running.ask(gateway, "/api/pull", {"model": "m8b"})[0] == 404
        chat = {"model": "m8b", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        assert running.ask(gateway, "/v1/chat/completions", chat)[0] == 200
        assert lab.sh(gateway, "systemctl is-active haproxy; systemctl is-enabled haproxy") == "active\nenabled\n"
        said = lab.sh(gateway, "journalctl -u gpufleet-gateway -o cat; grep -r sesame /etc/gpufleet || :")
        assert "alice" in said and "sesame" not in said and "hello" not in said
        assert lab.sh(gateway, "find /etc/gpufleet/gateway -name '*.map' -not -perm 600") == ""
    before = [lab.sh(gateway, "systemctl show -p MainPID,InvocationID gpufleet-gateway") for gateway in GATEWAYS]
    again = running.run()
    assert again.changed == 0
    assert before == [lab.sh(name, "systemctl show -p MainPID,InvocationID gpufleet-gateway") for name in GATEWAYS]


def test_a_key_is_rotated_under_load_without_a_reload(running: Gateways, lab: Any) -> None:
    workers = lab.sh("gpu1", "pgrep -P $(systemctl show -p MainPID --value gpufleet-gateway)")
    new = {"name": "alice", "key": EVE, "pools": ["*"]}
    with Load(lambda number: running.generate(GATEWAYS[number % 2])) as statuses:
        run = running.run(gateway_keys=[*VARIABLES["gateway_keys"], new])
    assert set(statuses) == {200}
    assert all(result["planned"][0] == "apply MapsStep" for result in running.results(run))
    assert running.generate("gpu1", key=EVE) == running.generate("gpu1") == 200
    running.run(gateway_keys=[new])
    assert running.generate("gpu1", key=EVE) == 200 and running.generate("gpu1") == 401
    running.run()
    assert running.generate("gpu1", key=EVE) == 401 and running.generate("gpu1") == 200
    assert lab.sh("gpu1", "pgrep -P $(systemctl show -p MainPID --value gpufleet-gateway)") == workers


def test_a_change_is_reloaded_under_load(running: Gateways, lab: Any) -> None:
    pid = lab.sh("gpu1", "systemctl show -p MainPID gpufleet-gateway")
    with Load(lambda number: running.generate(GATEWAYS[number % 2])) as statuses:
        run = running.run(gateway_queue_timeout=30)
        for _ in range(5):
            lab.sh("gpu1", "systemctl reload gpufleet-gateway")
    assert set(statuses) == {200}
    assert all(result["planned"][-1].startswith("systemctl reload") for result in running.results(run))
    assert lab.sh("gpu1", "systemctl show -p MainPID gpufleet-gateway") == pid
    assert running.run().changed == 2


def test_what_haproxy_refuses_changes_nothing(running: Gateways, lab: Any) -> None:
    before = lab.sh("gpu1", "sha256sum %s; systemctl show -p MainPID gpufleet-gateway" % CONFIG)
    run = running.run("--limit", "gpu1", ok=False, gateway_port=70000)
    (result,) = running.results(run)
    assert result["failed"] and "HAProxy refuses the configuration: [ALERT]" in result["msg"]
    assert "nothing was changed" in result["msg"]
    lab.sh("gpu1", "systemd-run --quiet --unit fleet-holder python3 -m http.server 8555")
    run = running.run("--limit", "gpu1", ok=False, gateway_port=8555)
    (result,) = running.results(run)
    assert result["failed"] and result["rolled_back"], result["msg"]
    lab.sh("gpu1", "systemctl stop fleet-holder")
    assert lab.sh("gpu1", "sha256sum %s; systemctl show -p MainPID gpufleet-gateway" % CONFIG) == before
    assert running.generate("gpu1") == 200 and running.run().changed == 0


def test_a_drain_survives_reload_restart_and_kill(running: Gateways, lab: Any) -> None:
    def states() -> Dict[str, str]:
        (result,) = running.results(running.run("--limit", "gpu1", "--check"))
        return result["evidence"]["servers"]

    def runtime(command: str) -> None:
        lab.sh("gpu1", "python3 -c %s" % json.dumps(TELL % command))

    for model in ("m8b", "m32b"):
        runtime("set server %s/gpu2:ollama:11434 state drain" % model)
    for what in ("reload", "restart", "kill --signal=KILL"):
        lab.sh("gpu1", "systemctl %s gpufleet-gateway; %s" % (what, ANSWERS))
        assert states()["m8b/gpu2:ollama:11434"].startswith("DRAIN"), what
        assert running.generate("gpu1") == 200
    for model in ("m8b", "m32b"):
        runtime("set server %s/gpu2:ollama:11434 state ready" % model)
    lab.sh("gpu1", "systemctl reload gpufleet-gateway; " + ANSWERS)  # which saves it, too


def test_a_host_leaves_all_pools_and_comes_back(running: Gateways, lab: Any) -> None:
    def declare(state: str, check: bool = False) -> List[bool]:
        given = {"host": "gpu2", "state": state, "timeout": 60}
        done = [lab.module(gateway, "gateway_server", given, check=check) for gateway in GATEWAYS]
        assert not any(one["failed"] for one in done), done
        return [one["changed"] for one in done]

    with running.users() as users:
        assert declare("drained", check=True) == declare("drained") == [True, True]
        lab.sh("gpu2", "systemctl restart ollama")
        assert declare("drained") == [False, False]
        hostsetup.wait_for_api("gpu2")
        assert declare("ready") == [True, True]
    assert users.faults == [] and len(users.whole) == 4, users.whole


def test_a_gateway_is_killed_and_its_users_continue_at_the_other(running: Gateways, lab: Any) -> None:
    states = "curl -s 127.0.0.1:8404/metrics | grep '^haproxy_server_status.* 1$'"
    before = lab.sh("gpu1", states)
    with running.users(again=2) as users:
        lab.sh("gpu1", "systemctl kill --signal=KILL gpufleet-gateway; " + ANSWERS)
        assert lab.sh("gpu1", states) == before
    assert users.lost == 0 and users.faults, "else nobody was at the gateway that was killed"


def test_the_roles_change_all_hosts_and_no_request_fails(running: Gateways, lab: Any, tmp_path: Path) -> None:
    play = tmp_path / "change.yml"
    roles = [{"role": "gpufleet.inference." + name} for name in ("gpu_host", "ollama")]
    play.write_text(yaml.safe_dump([{"hosts": "gpu2:gpu3", "serial": 1, "gather_facts": False, "roles": roles}]))
    given = {"ollama_allow_unauthenticated": True, "ollama_visible_devices": None, "ollama_sched_spread": False}
    words = ["-i", str(running.inventory), "-e"]
    joined = {**VARIABLES, **given, "gateway_agent_port": 8405, "ollama_state": "present", "ollama_num_parallel": 2}
    lab.playbook(str(play), *words, json.dumps(joined), warnings=True)
    running.run(gateway_agent_port=8405, ollama_num_parallel=2)
    with Load(lambda number: running.generate(GATEWAYS[number % 2])) as statuses:
        run = lab.playbook(str(play), *words, json.dumps({**joined, "ollama_keep_alive": "9m"}), warnings=True)
    drains = [result["drain"] for result in run.of("ollama_service") if result.get("restarted")]
    assert len(drains) == 2, run.output
    for drain in drains:
        assert len(drain["gateways"]) == 2 and not drain["silent"] and not drain["cut"]
    assert set(statuses) == {200}
    running.run()
    for host in HOSTS:
        assert not lab.module(host, "gateway_agent", {"state": "absent"})["failed"]


TELL = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/gpufleet-gateway/admin.sock'); "
    "s.sendall(b'%s\\n'); print(s.recv(9999))"
)
