# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model on two hosts, by the role and the double of vLLM: all change together, or none does; they live together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/vllm"))

import vllmdouble
from vllmdouble import sh

HOSTS = ("gpu2", "gpu3")
UNIT = "vllm@big"
SERVES = "http://127.0.0.1:8000/v1"
INSTANCE = {
    "name": "big",
    "model": "/srv/models/m70b",
    "hosts": list(HOSTS),
    "visible_devices": [0, 1],
    "timeout": 180,
    "stall_timeout": 60,
    "token_timeout": 60,
    "drain_timeout": 2,
    "release_timeout": 10,
}
FIRST = {"max_num_seqs": 9}


@pytest.fixture(scope="module")
def site(lab, tmp_path_factory):
    """`site(**options)` runs the role on both hosts with such an instance."""
    play = tmp_path_factory.mktemp("nodes") / "play.yml"
    play.write_text(
        json.dumps([{"hosts": ",".join(HOSTS), "gather_facts": False, "roles": ["gpufleet.inference.vllm"]}])
    )
    for host in HOSTS:
        lab.reset(host)
        vllmdouble.uninstall(host)
        vllmdouble.install(host)
        vllmdouble.add_model(host, "m70b", gib=130)

    def run(**options):
        variables = {"vllm_venv": vllmdouble.VENV, "vllm_instances": [{**INSTANCE, **options}]}
        return lab.playbook(str(play), "-e", json.dumps(variables), ok=False)

    first = run(**FIRST)
    assert first.rc == 0, first.output
    yield run
    for host in HOSTS:
        vllmdouble.uninstall(host)
        lab.reset(host)


def invocations():
    return [sh(host, "systemctl show -p InvocationID --value %s" % UNIT).strip() for host in HOSTS]


def held(host):
    """GPUs of which the unit's workers hold memory, as nvidia-smi tells."""
    return int(sh(host, "nvidia-smi --query-compute-apps=pid --format=csv,noheader | wc -l"))


def wait(host, command):
    sh(host, "timeout 60 sh -c 'until %s; do sleep 0.2; done'" % command, timeout=90)


def token():
    body = json.dumps({"model": "/srv/models/m70b", "prompt": "hello", "max_tokens": 1})
    return sh(
        HOSTS[0],
        "curl -sS -w ' %%{http_code}' -H 'Content-Type: application/json' -d '%s' %s/completions" % (body, SERVES),
    )


def state():
    """What a change that is taken back must leave as it was, on both hosts."""
    return [
        sh(
            host,
            "systemctl show %s -p ActiveState,SubState,UnitFileState,NeedDaemonReload,Environment;"
            "cat /etc/gpufleet/vllm/big.yaml /etc/systemd/system/vllm@big.service.d/*; ls -A /etc/gpufleet/*" % UNIT,
        )
        for host in HOSTS
    ]


def test_it_serves_and_the_second_run_changes_nothing(site):
    assert [held(host) for host in HOSTS] == [2, 2]
    assert token().endswith(" 200")
    assert sh(HOSTS[1], "ss -Hltn 'sport = :8000'") == "", "the other host serves no API"
    config = sh(HOSTS[1], "cat /etc/gpufleet/vllm/big.yaml")
    assert "headless: true" in config and "pipeline-parallel-size: 2" in config and "tensor-parallel-size: 2" in config
    assert "all proven" in sh(HOSTS[1], "systemctl show -p StatusText %s" % UNIT)
    before = invocations()
    again = site(**FIRST)
    assert again.rc == 0 and again.changed == 0, again.output
    assert invocations() == before


def of_instance(done):
    """The last result of the instance on each host; that of a failure is the module's own."""
    found = {}
    for line in done.results:
        result = line["result"]
        of_unit = (result.get("instances") or {}).get(UNIT + ".service", result)
        if "verdict" in of_unit:
            found[line["host"]] = {**of_unit, "msg": result["msg"]}
    return [found[host] for host in HOSTS]


def test_a_change_comes_to_all_hosts(site):
    before = invocations()
    done = site()
    assert done.rc == 0, done.output
    told = [result["msg"] for result in of_instance(done)]
    assert "node 0 of 2 hosts" in told[0] and "node 1 of 2 hosts" in told[1], told
    assert "a token in" in told[0] and "a token in" not in told[1], told
    assert not set(before) & set(invocations())
    assert token().endswith(" 200")


@pytest.mark.parametrize(("host", "fault", "verdict"), [(0, "liar", "no_progress"), (1, "cpu", "cpu_fallback")])
def test_what_fails_on_one_host_is_taken_back_on_all(site, host, fault, verdict):
    before = state()
    vllmdouble.fault(HOSTS[host], fault + " max-num-seqs=7")
    done = site(max_num_seqs=7)
    vllmdouble.clear(HOSTS[host])
    assert done.rc != 0
    results = of_instance(done)
    print("%s: %.1f s: %s" % (fault, done.seconds, [result["msg"] for result in results]))
    assert [results[host]["verdict"], results[1 - host]["verdict"]] == [verdict, "peer_lost"], done.output
    assert all(result["rolled_back"] for result in results)
    assert state() == before
    wait(HOSTS[0], "curl -fsS -o /dev/null %s/models" % SERVES)
    assert token().endswith(" 200")
    assert [held(host) for host in HOSTS] == [2, 2]


@pytest.mark.parametrize("host", [0, 1])
def test_a_process_that_dies_ends_all_and_they_start_together(site, host):
    before = invocations()
    sh(HOSTS[host], "pkill -KILL -o VLLM::Worker")
    for one, former in zip(HOSTS, before):
        wait(one, "! systemctl show -p InvocationID --value %s | grep -qx %s" % (UNIT, former))
    wait(HOSTS[0], "curl -fsS -o /dev/null %s/models" % SERVES)
    assert token().endswith(" 200")


def test_hosts_with_different_numbers_of_gpus_are_refused_before_any_is_touched(site):
    before = invocations()
    done = site(visible_devices="all")
    assert "vLLM needs as many GPUs on each host, but chosen are gpu2: 4, gpu3: 2" in done.output, done.output
    assert done.rc and invocations() == before
