#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients notice while a fleet behind two gateways is changed: a table of whole answers and faults.

    .venv/bin/python benchmarks/gateway_proof.py [--keep]      three minutes on two free cores; --keep leaves the lab up

Four lab hosts serve with a real Ollama (its worker is a stand-in with a token every 50 ms), two of them with a real
llama-server as well; two more are gateways with TLS. site.yml configures all of it. Sixteen users with the clients
of PyPI, `openai` and `ollama`, streaming and plain, ask both gateways without a pause.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab/ollama"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab/llama_server"))
os.environ["GPUFLEET_LAB"] = os.environ.get("GPUFLEET_LAB", "proof")

import clients
import faults
import program
from hostsetup import add_models, install, sh

ROOT = Path(__file__).resolve().parents[1]

LAB = [sys.executable, str(ROOT / "tests/lab/lab.py")]
BIN = Path(sys.executable).parent
ENGINES, LLAMA, GATEWAYS = ("gpu1", "gpu2", "gpu3", "gpu4"), ("gpu3", "gpu4"), ("gpu5", "gpu6")
DRAINED = "gpu2"
KEY, PORT, CERTIFICATE = "proof-sesame-4711-open", 8443, "/etc/ssl/private/gateway.pem"
UP = "curl -s 127.0.0.1:8404/metrics | grep -c '^haproxy_server_status.*state=\"UP\".* 1$'"
STATES = "curl -s 127.0.0.1:8404/metrics | grep '^haproxy_server_status.* 1$' | sort"
ANSWERS = "until curl -skf https://127.0.0.1:%d/health >/dev/null; do sleep 0.1; done" % PORT
SERVERS = len(ENGINES) + len(LLAMA)


class Fleet:
    """The lab, its inventory, and who asks it."""

    def __init__(self, folder: Path) -> None:
        run([*LAB, "down"])  # whatever an earlier run has left
        run([*LAB, "up", "--hosts", str(len(ENGINES) + len(GATEWAYS))])
        lab = yaml.safe_load(Path(run([*LAB, "inventory"]).strip()).read_text())
        hosts = lab["ollama"]["hosts"]
        self.address = {name: host["ansible_host"] for name, host in hosts.items()}
        self.ca = str(folder / "certificate.pem")
        self.inventory = folder / "fleet.yml"
        groups = {"ollama": ENGINES, "llama_server": LLAMA, "gateway": GATEWAYS}
        declared: dict[str, Any] = {"all": {"hosts": hosts, "vars": {**lab["all"]["vars"], **self.variables()}}}
        declared.update((group, {"hosts": dict.fromkeys(names)}) for group, names in groups.items())
        self.inventory.write_text(yaml.safe_dump(declared))

    def variables(self) -> dict[str, Any]:
        clients_of_engines = [self.address[gateway] for gateway in GATEWAYS]
        chat = {"name": "chat", "model": program.MODELS + "/tiny.gguf", "alias": "chat", "visible_devices": [1]}
        return {
            "ollama_host": "{{ ansible_host }}",
            "ollama_clients": clients_of_engines,
            "ollama_models": [{"name": "tiny"}],
            "ollama_num_parallel": 8,
            "ollama_visible_devices": [0],
            "ollama_sched_spread": False,
            "llama_server_host": "{{ ansible_host }}",
            "llama_server_clients": clients_of_engines,
            "llama_server_instances": [chat],
            "llama_server_parallel": 8,
            "llama_server_ctx_size": 4096,
            "gateway_host": "0.0.0.0",
            "gateway_connections": 2000,
            "gateway_tls_certificate": CERTIFICATE,
            "gateway_keys": [{"name": "proof", "key": KEY, "pools": ["*"]}],
        }

    def prepare(self) -> None:
        """What a person has on the hosts before site.yml runs: programs, models, a certificate."""
        for host in ENGINES:
            install(host)
            add_models(host, "tiny")
            faults.worker(host, "slow-token:0.05")
        for host in LLAMA:
            program.install(host)
            program.add_model(host)
        names = ",".join("IP:" + self.address[gateway] for gateway in GATEWAYS)
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway", "-days", "2"]
        run([*make, "-addext", "subjectAltName=" + names, "-keyout", self.ca + ".key", "-out", self.ca])
        both = Path(self.ca).read_text() + Path(self.ca + ".key").read_text()
        for gateway in GATEWAYS:
            sh(gateway, "apt-get -qq update; umask 077; mkdir -p /etc/ssl/private; cat >%s" % CERTIFICATE, both)

    def site(self, *words: str, **variables: Any) -> str:
        playbook = [str(BIN / "ansible-playbook"), "-i", str(self.inventory), str(ROOT / "site.yml")]
        return run([*playbook, "-e", json.dumps(variables), *words])

    def declare(self, state: str) -> None:
        """The state of a host at both gateways."""
        words = ["-m", "gpufleet.inference.gateway_server", "-a", json.dumps({"host": DRAINED, "state": state})]
        run([str(BIN / "ansible"), "-i", str(self.inventory), "gateway", *words, "--become"])

    def settled(self) -> None:
        """All servers are up at both gateways."""
        for gateway in GATEWAYS:
            sh(gateway, "until [ $(%s) = %d ]; do sleep 0.2; done" % (UP, SERVERS))

    def load(self, again: int = 0) -> clients.Load:
        urls = ["https://%s:%d" % (self.address[gateway], PORT) for gateway in GATEWAYS]
        return clients.Load(urls, KEY, ["tiny"], ["tiny", "chat"], again, ca=self.ca, users=16, tokens=20)


def run(command: list[str]) -> str:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit("%s failed:\n%s%s" % (" ".join(command), done.stdout[-4000:], done.stderr[-2000:]))
    return done.stdout


@contextlib.contextmanager
def seen(fleet: Fleet, what: str, again: int = 0) -> Iterator[None]:
    """A row of the table: what users saw during the block."""
    with fleet.load(again) as load:
        yield
    row = [what, sum(load.whole.values()), len(load.of("refused")), len(load.of("cut")), load.lost]
    print("| %s |" % " | ".join(map(str, row)), flush=True)
    for fault in sorted(set(load.faults))[:3]:
        print("    " + fault, file=sys.stderr)


def proof(fleet: Fleet) -> None:
    print("| while users ask | whole answers | refused | cut | lost |\n| --- | --- | --- | --- | --- |", flush=True)
    fleet.settled()
    with seen(fleet, "one host: both engines drained, changed, verified, back"):
        fleet.site("--limit", "gpu3", ollama_keep_alive="11m", llama_server_ctx_size=8192)
    fleet.settled()
    with seen(fleet, "the same without a drain"):
        undrained = {"ollama_drain_timeout": 0, "llama_server_drain_timeout": 0}
        fleet.site("--limit", "gpu3", ollama_keep_alive="12m", llama_server_ctx_size=6144, **undrained)
    fleet.settled()
    with seen(fleet, "all hosts changed, one after the other"):
        fleet.site(ollama_keep_alive="13m")
    fleet.settled()
    with seen(fleet, "both gateways reloaded 20 times"):
        for _ in range(20):
            for gateway in GATEWAYS:
                sh(gateway, "systemctl reload gpufleet-gateway; " + ANSWERS)
    fleet.settled()
    fleet.declare("drained")
    before = states(fleet)
    with seen(fleet, "a gateway killed (-9); users try again at the other one", again=2):
        sh(GATEWAYS[0], "systemctl kill --signal=KILL gpufleet-gateway; " + ANSWERS)
        assert states(fleet) == before, "the servers have other states than before"
    fleet.declare("ready")


def states(fleet: Fleet) -> list[str]:
    return [sh(gateway, STATES) for gateway in GATEWAYS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder:
        try:
            fleet = Fleet(Path(folder))
            fleet.prepare()
            fleet.site()
            proof(fleet)
        finally:
            if not keep:
                run([*LAB, "down"])


if __name__ == "__main__":
    main()
