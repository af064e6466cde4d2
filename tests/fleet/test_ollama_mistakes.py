# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The how-to's own mistakes, and a person's, on a real server: each stopped before the change, or put back.

Left alone, a real Ollama takes every one of these values: it misreads it, serves on the CPU, or dies for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"visible_devices": "all", "sched_spread": True, "keep_alive": "-1", "no_cloud": True}


@pytest.fixture(scope="module")
def archive():
    """Path of the lab's Ollama release."""
    command = [sys.executable, str(ROOT / "tests/lab/ollama/archive.py"), "path"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@pytest.fixture
def service(lab, host, module, archive):
    """`service(**options)` runs ollama_service on a host where Ollama serves as the how-to wants it."""
    done = module(host, "ollama_service", dict(GOOD, archive=archive))
    assert not done["failed"], done["msg"]

    def run(**options):
        return module(host, "ollama_service", {**GOOD, **options})

    run.host = host
    return run


@pytest.fixture
def state(sh):
    """`state(host)` is all of a host that a failed change must leave as it was."""

    def look(host):
        return sh(
            host,
            "timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1:11434/api/version; do sleep 0.1; done';"
            "systemctl show ollama -p Environment,ActiveState,SubState,NRestarts,UnitFileState,NeedDaemonReload;"
            "find /etc/systemd/system/ollama.service* /usr/local/bin /usr/local/lib -maxdepth 2"
            "   -printf '%p %m %u %l\\n' | sort;"
            "cat /etc/systemd/system/ollama.service /etc/systemd/system/ollama.service.d/*;"
            "tr '\\0' '\\n' </proc/$(systemctl show ollama -p MainPID --value)/environ"
            "   | grep -E '^(OLLAMA|CUDA)_' | sort; id ollama;"
            "curl -fsS --max-time 5 http://127.0.0.1:11434/api/version",
        )

    return look


def invocation(sh, host):
    return sh(host, "systemctl show ollama -p InvocationID --value").strip()


BEFORE_ANYTHING = [
    ({"sched_spread": None, "environment": {"OLLAMA_SCHED_SPREAD": "off"}}, "Ollama reads 'off' as true"),
    ({"keep_alive": "1d"}, "'1d' is not a duration that Ollama reads (it would use its default of 5m silently)"),
    ({"visible_devices": None, "environment": {"CUDA_VISIBLE_DEVICES": "0,9"}}, "There is no GPU 9 on this host"),
    ({"visible_devices": [0, 9]}, "There is no GPU 9 on this host"),
    ({"visible_devices": None, "environment": {"CUDA_VISIBLE_DEVICES": ""}}, "set but empty, which hides every GPU"),
    ({"visible_devices": None, "environment": {"CUDA_VISIBLE_DEVICES": "0,0"}}, "names a GPU twice"),
    ({"visible_devices": {"min_memory_gib": 100}}, "0 of 4 GPUs fit it"),
    ({"visible_devices": ["GPU-ffffffff-0000-4000-8000-000000000001"]}, "There is no GPU GPU-ffffffff"),
    ({"environment": {"OLLAMA_NUM_PARALLEL": "-3"}}, "not a whole number"),
    ({"host": "127.0.0.1:99999"}, "Ollama would use 11434"),
    ({"llm_library": "cuda_v99"}, "there is no folder cuda_v99"),
    ({"prove_model": "nosuch:7b"}, "has no model nosuch:7b"),
    ({"environment": {"1BAD": "x"}}, "1BAD"),
]


def test_stopped_before_anything_is_touched(service, state, sh, run_playbook, tmp_path):
    """All on one server: it must run through them all, with the process it had."""
    before, running = state(service.host), invocation(sh, service.host)
    tasks = [
        {
            "name": words,
            "gpufleet.inference.ollama_service": {
                key: value for key, value in {**GOOD, **options}.items() if value is not None
            },
            "ignore_errors": True,
        }
        for options, words in BEFORE_ANYTHING
    ]
    play = tmp_path / "mistakes.yml"
    play.write_text(json.dumps([{"hosts": service.host, "gather_facts": False, "become": True, "tasks": tasks}]))
    results = run_playbook(str(play)).of("ollama_service")
    assert len(results) == len(BEFORE_ANYTHING)
    for result, (options, words) in zip(results, BEFORE_ANYTHING, strict=True):
        assert result["failed"], options
        assert words in result["msg"], (options, result["msg"])
        assert "nothing was changed" in result["msg"]
        assert not result.get("changed")
    assert invocation(sh, service.host) == running
    assert state(service.host) == before


def test_the_store_is_owned_by_root(service, state, sh):
    sh(service.host, "rm -rf /srv/models && install -d -o root -g root -m 0755 /srv/models")
    before, running = state(service.host), invocation(sh, service.host)
    result = service(models_dir="/srv/models")
    assert result["failed"]
    assert "ollama cannot write into /srv/models (owner root, mode 0755); chown -R ollama: /srv/models" in result["msg"]
    sh(service.host, "chown ollama: /srv/models; chmod 0700 /srv; chown root: /srv")
    result = service(models_dir="/srv/models")
    assert result["failed"]
    assert "ollama cannot enter /srv (owner root, mode 0700), a parent of /srv/models" in result["msg"]
    assert invocation(sh, service.host) == running
    assert state(service.host) == before
    sh(service.host, "chmod 0755 /srv; rm -rf /srv/models")
    result = service(models_dir="/srv/models", models_dir_change="leave")  # of models that another test has left
    assert not result["failed"], result["msg"]
    assert sh(service.host, "stat -c '%U %a' /srv/models").split() == ["ollama", "755"]
    assert "blobs" in sh(service.host, "ls /srv/models").split()


def test_the_port_is_in_use(service, state, sh):
    sh(
        service.host,
        "systemctl reset-failed squatter 2>/dev/null; systemd-run --quiet --unit=squatter "
        "python3 -m http.server --bind 127.0.0.1 18080; "
        "until curl -s http://127.0.0.1:18080/ >/dev/null; do sleep 0.05; done",
    )
    try:
        before = state(service.host)
        former = invocation(sh, service.host)
        result = service(host="127.0.0.1:18080")
        assert result["failed"]
        assert "port 18080, on which ollama.service is to listen, is taken by process" in result["msg"]
        assert "(python3)" in result["msg"]
        assert "nothing was changed" in result["msg"]
        assert not result["changed"]
        assert state(service.host) == before
        assert invocation(sh, service.host) == former
    finally:
        sh(service.host, "systemctl stop squatter")


def test_a_hand_made_override_puts_it_on_the_cpu(service, state, sh):
    """What this collection did not declare: found by what the server says of itself, with and without a change."""
    sh(
        service.host,
        "printf '[Service]\\nEnvironment=OLLAMA_LLM_LIBRARY=cuda_v99\\n' "
        ">/etc/systemd/system/ollama.service.d/override.conf; systemctl daemon-reload; systemctl restart ollama; "
        "until curl -fs http://127.0.0.1:11434/api/version; do sleep 0.1; done",
    )
    result = service()
    assert result["failed"]
    assert result["verdict"] == "cpu_fallback"
    assert "this host has 4; declared: 0 (NVIDIA" in result["msg"]
    assert "It was restarted, which did not fix it, and keeps running" in result["msg"]
    before = state(service.host)
    result = service(keep_alive="1h")
    assert result["failed"]
    assert result["verdict"] == "cpu_fallback"
    assert result["rolled_back"]
    assert state(service.host) == before
    assert "override.conf" not in sh(
        service.host, "cat /etc/systemd/system/ollama.service.d/zz-gpufleet.conf | tail -n +4"
    )


def test_a_server_that_found_no_gpu_at_its_start_is_started_anew(lab, service, state, sh):
    """As after a boot at which the driver was not ready yet: all is as declared, and it serves on the CPU."""
    before, running = state(service.host), invocation(sh, service.host)
    sh(
        service.host,
        "hide=/run/systemd/system/ollama.service.d/hide.conf; mkdir -p ${hide%/*};"
        "printf '[Service]\\nEnvironment=OLLAMA_LLM_LIBRARY=cuda_v99\\n' >$hide; systemctl daemon-reload;"
        "systemctl restart ollama; until curl -fs http://127.0.0.1:11434/api/version; do sleep 0.1; done;"
        "rm -r ${hide%/*}; systemctl daemon-reload",
    )
    on_cpu = invocation(sh, service.host)
    assert on_cpu != running
    foretold = lab.module(service.host, "ollama_service", GOOD, check=True)
    assert foretold["changed"] and foretold["msg"].startswith("would restart it: cpu_fallback: ")
    assert foretold["restarted"] and foretold["reasons"][0].startswith("cpu_fallback: ")
    assert invocation(sh, service.host) == on_cpu
    result = service()
    assert not result["failed"] and result["changed"] and result["restarted"], result["msg"]
    assert result["msg"].endswith("· was cpu_fallback")
    assert state(service.host) == before and invocation(sh, service.host) != on_cpu
    assert not service()["changed"]


def test_a_name_nearly_right_is_warned_of(lab, service):
    arguments = json.dumps({**GOOD, "environment": {"OLLAMA_SCHED_SPRED": "1"}})
    run = lab.ansible(
        "ansible", service.host, "--become", "--check", "-m", "gpufleet.inference.ollama_service", "-a", arguments
    )
    assert run.rc == 0, run.output
    assert "did you mean OLLAMA_SCHED_SPREAD?" in run.output
