# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml and verify.yml on real hosts: the how-to's own example before and after, and what a second run costs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "lab/ollama"), str(TESTS / "fleet")]

# they are found by the line above
import archive  # noqa: E402
import drift  # noqa: E402
import faults  # noqa: E402
import hostsetup  # noqa: E402

# this one as well
import one_name  # noqa: E402

ENVIRONMENT = "CUDA_VISIBLE_DEVICES=0,1,2,3 OLLAMA_KEEP_ALIVE=-1 OLLAMA_NO_CLOUD=1 OLLAMA_SCHED_SPREAD=1"


@pytest.fixture(scope="module")
def by_hand(lab):
    """Hosts where a person has installed Ollama as upstream's install.sh does, with three models in the store."""
    archive.path()
    hosts = [lab.reset(name) for name in ("gpu1", "gpu2")]
    for host in hosts:
        hostsetup.uninstall(host)
        hostsetup.install(host)
        hostsetup.add_models(host, "m70b", "m32b", "m8b")
    yield hosts
    for host in hosts:
        hostsetup.uninstall(host)
        lab.reset(host)


@pytest.fixture(scope="module")
def managed(by_hand, lab):
    """The same hosts after site.yml."""
    lab.playbook("site.yml", "--limit", "gpu1,gpu2")
    return by_hand


def on_gpus(host):
    """MiB that Ollama's workers hold, per GPU."""
    return [sum(gpu.values()) for gpu in hostsetup.held(host)]


def ask(host, model):
    answer = hostsetup.api(
        host,
        "/api/generate",
        {"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 1, "num_ctx": 4096}},
    )
    assert answer["done"], answer


def everything(sh, host):
    """All that a run of site.yml could change on a host."""
    return sh(
        host,
        "find /etc/systemd /usr/local /opt -xdev -type f -newer /proc/1 -printf '%p %m %T@\\n' | sort;"
        "ls /etc/gpufleet 2>&1;"
        "systemctl show ollama -p Environment,InvocationID,UnitFileState,NeedDaemonReload; getent passwd | sort",
    )


def test_before_and_after(by_hand, lab, sh):
    for host in by_hand:
        hostsetup.wait_for_api(host)
        ask(host, "m8b")
        assert sum(held > 0 for held in on_gpus(host)) == 1, "a model that fits one card sits on one"

    run = lab.playbook("site.yml", "-e", "ollama_prove_model=m70b", "--limit", "gpu1,gpu2")
    print(run.output)
    said = " ".join(run.output.split())
    for host in by_hand:
        gpus = "4× [^·]* · CUDA_VISIBLE_DEVICES=0,1,2,3 spread"
        assert re.search(r"%s: ok · %s · m70b on 4 GPUs · Ollama 0[^']* · restart" % (host, gpus), said)
        environment = sh(host, "systemctl show ollama -p Environment --value")
        assert set(ENVIRONMENT.split()) <= set(environment.split())
        ask(host, "m70b")
        ask(host, "m32b")
        loaded = hostsetup.api(host, "/api/ps")["models"]
        assert sorted(entry["name"] for entry in loaded) == ["m32b:latest", "m70b:latest"]
        assert all(entry["size_vram"] == entry["size"] for entry in loaded)
        assert all(entry["expires_at"] > "2100" for entry in loaded), "loaded for ever"
        held = on_gpus(host)
        assert min(held) > 10_000, held
        assert max(held) < 1.3 * min(held), held


def test_second_run_changes_nothing_and_costs_one_call(managed, lab, sh):
    before = [everything(sh, host) for host in managed]
    lab.playbook("site.yml", "--limit", "gpu1,gpu2")  # the hosts keep the compiled code of the question
    run = lab.playbook("site.yml", "--limit", "gpu1,gpu2", "-vvv", warnings=True)
    assert run.changed == 0
    assert [everything(sh, host) for host in managed] == before
    for name in ("gpu1", "gpu2"):
        done = [line for line in run.results if line["host"] == name and line["status"] != "skipped"]
        modules = [line["action"] for line in done if "gpufleet" in line["action"]]
        assert modules == ["gpufleet.inference.host_check"]
        assert re.search(r"%s: ok · 4× \S.* · CUDA_VISIBLE_DEVICES=0,1,2,3 spread" % name, run.output)
    assert len(re.findall(r"^<[0-9.]+> SSH: EXEC", run.output, re.MULTILINE)) == 2, "one call a host, nothing beside"


def test_a_host_that_drifts_within_a_run_is_repaired_by_it(managed, lab, sh, tmp_path):
    """What an earlier check of the same run found does not count."""
    playbook = tmp_path / "twice.yml"
    drift = {"hosts": "gpu1", "become": True, "tasks": [{"ansible.builtin.command": "systemctl disable ollama"}]}
    site = {"ansible.builtin.import_playbook": "gpufleet.inference.site"}
    playbook.write_text(json.dumps([site, drift, site]))
    run = lab.playbook(str(playbook), "--limit", "gpu1,gpu2")
    assert [result["as_declared"] for result in run.of("host_check", "gpu1")] == [True, False]
    assert [result["as_declared"] for result in run.of("host_check", "gpu2")] == [True, True]
    assert sh("gpu1", "systemctl is-enabled ollama").strip() == "enabled"


def test_check_and_diff_show_exactly_the_change(managed, lab, sh):
    before = [everything(sh, host) for host in managed]
    run = lab.playbook("site.yml", "--check", "-e", "ollama_keep_alive=24h", "--limit", "gpu1,gpu2")
    assert {name: host["changed"] for name, host in run.stats.items()} == {"gpu1": 1, "gpu2": 1}
    changed_lines = [line for line in run.output.splitlines() if re.match(r"[-+](?![-+])", line)]
    assert changed_lines == 2 * [
        '-Environment="OLLAMA_KEEP_ALIVE=-1"',
        '+Environment="OLLAMA_KEEP_ALIVE=24h"',
        "-active: active",
        "+active: active, restarted",
    ]
    assert "gpu1: would change OLLAMA_KEEP_ALIVE" in run.output
    done = [
        line["action"].rpartition(".")[2] for line in run.results if line["host"] == "gpu1" and line["status"] == "ok"
    ]
    asked = [name for name in done if "gpu" in name or "check" in name]
    assert asked == ["host_check", "gpu_facts"], (
        "then the roles, but no self check: none is declared, and none is there"
    )
    assert [everything(sh, host) for host in managed] == before


def test_a_variable_nearly_right_is_warned_of_once(managed, lab):
    words = ["--limit", "gpu1,gpu2", "-e", "ollama_visible_device=0"]
    run = lab.playbook("playbooks/verify.yml", *words, warnings=True)
    warned = "no variable ollama_visible_device, so its value has no effect; did you mean ollama_visible_devices?"
    assert " ".join(run.output.split()).count(warned) == 1


def test_verify_tells_by_its_exit_status(managed, lab, sh):
    before = [everything(sh, host) for host in managed]
    run = lab.playbook("playbooks/verify.yml", "--limit", "gpu1,gpu2")
    assert "ok · 4× H200" in run.output
    run = lab.playbook("playbooks/verify.yml", "--limit", "gpu1,gpu2", "-e", "ollama_keep_alive=24h", ok=False)
    assert run.rc == 2
    assert "gpu2 does not match the inventory: would change OLLAMA_KEEP_ALIVE" in " ".join(run.output.split())
    sh("gpu2", "nvidia-smi --persistence-mode=0")
    run = lab.playbook("playbooks/verify.yml", "--limit", "gpu2", ok=False)
    assert "gpu2 does not match the inventory: persistence mode is off" in " ".join(run.output.split())
    assert "Disabled" in sh("gpu2", "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader")
    sh("gpu2", "nvidia-smi --persistence-mode=1")
    assert [everything(sh, host) for host in managed] == before


def test_the_report_shows_drift_and_a_host_that_does_not_answer(managed, lab, sh, tmp_path):
    before = [everything(sh, host) for host in managed]
    gone = tmp_path / "gone.yml"
    gone.write_text(json.dumps({"ollama": {"hosts": {"gone": {"ansible_host": "127.0.0.1", "ansible_port": 1}}}}))
    variables = json.dumps({"ollama_keep_alive": "24h", "report_file": str(tmp_path / "page.html")})
    words = ["-i", str(gone), "--limit", "gpu1,gpu2,gone", "-e", variables]
    run = lab.playbook("playbooks/report.yml", *words, warnings=True)
    (result,) = run.of("fleet_report")
    assert result["msg"].endswith("page.html: 3 hosts, 3 with a problem")
    assert {host: [one["kind"] for one in found] for host, found in result["problems"].items()} == {
        **dict.fromkeys(("gpu1", "gpu2"), ["drift"]),
        "gone": ["unreachable"],
    }
    assert '"name":"gpu2"' in (tmp_path / "page.html").read_text()
    assert [everything(sh, host) for host in managed] == before


def test_the_way_back_to_a_generation(managed, lab, sh):
    """Twice another value, then back: first to what cannot be verified any more, then to what can."""

    def environ():
        return sh("gpu1", "tr '\\0' '\\n' </proc/$(systemctl show ollama -p MainPID --value)/environ").split("\n")

    def back(**more):
        return lab.playbook("playbooks/rollback.yml", *words, "-e", "gpufleet_generation=%d" % first, **more)

    words = ["--limit", "gpu1"]
    lab.playbook("site.yml", *words, "-e", "ollama_keep_alive=1h ollama_num_parallel=2")
    run = lab.playbook("site.yml", *words, "-e", "ollama_keep_alive=2h")
    first = run.of("ollama_service")[-1]["generation"] - 1
    history = lab.playbook("playbooks/history.yml", *words)
    assert re.search(r"ollama.service +%d .* ok .*keep_alive 1h → 2h" % (first + 1), " ".join(history.output.split()))
    kept = history.of("generations_info")[0]["generations"]["ollama.service"]
    assert [one["options"]["keep_alive"] for one in kept[-2:]] == ["1h", "2h"]
    look = "stat -c '%U %a' /var/lib/gpufleet /var/lib/gpufleet/generations /var/lib/gpufleet/generations/*"
    assert sh("gpu1", look).splitlines()[:3] == ["root 755", "root 755", "root 600"]

    faults.server("gpu1", "crash-loop:0.1", "OLLAMA_KEEP_ALIVE=1h")
    run = back(ok=False)
    faults.clear("gpu1")
    assert run.rc == 2 and "The previous state is restored" in " ".join(run.output.split()), run.output
    assert "OLLAMA_KEEP_ALIVE=2h" in environ()

    run = back()
    assert {"OLLAMA_KEEP_ALIVE=1h", "OLLAMA_NUM_PARALLEL=2"} <= set(environ())
    assert "generation %d, not as declared: ollama_keep_alive, " % first in " ".join(run.output.split())
    assert back().changed == 0


def test_question_roles_and_self_check_agree_on_drift(managed, lab, tmp_path):
    lab.playbook("site.yml", "--limit", "gpu1,gpu2", *drift.SELF_CHECK)
    drift.assert_agreement(lab, managed, "ollama", drift.sample(len(drift.DRIFT)), hostsetup.wait_for_api, True)
    one_name.assert_one_name(lab, tmp_path / "page.html", hostsetup.wait_for_api)
    said = lab.sh("gpu1", "journalctl -q --no-pager -o cat -u gpufleet-self-check.service")
    assert len(said.splitlines()) < 2 * len(drift.DRIFT), "not one line for each check"
    repaired = lab.playbook("site.yml", "--limit", "gpu1,gpu2")
    for host in managed:
        assert repaired.stats[host]["changed"]
        assert "self-check" not in lab.sh(host, "ls /etc/systemd/system /etc/gpufleet /run /var/lib/prometheus/*")


def test_upstreams_installer_over_ours_and_back(managed, lab, sh):
    """install.sh rewrites unit and files and leaves our drop-in; the next run takes the release over again."""
    host = managed[0]
    assert sh(host, "readlink -f /usr/local/bin/ollama").startswith("/usr/local/lib/gpufleet/ollama-")
    hostsetup.install(host)
    assert sh(host, "test -L /usr/local/bin/ollama || echo file").strip() == "file"
    hostsetup.wait_for_api(host)
    assert "OLLAMA_SCHED_SPREAD=1" in sh(host, "systemctl show ollama -p Environment --value")
    run = lab.playbook("site.yml", "--limit", host)
    (result,) = run.of("ollama_service")
    assert result["changed"]
    assert result["reasons"] == ["ReleaseStep"]
    assert sh(host, "readlink -f /usr/local/lib/ollama").startswith("/usr/local/lib/gpufleet/ollama-")
    assert lab.playbook("site.yml", "--limit", host).changed == 0


def test_a_failed_host_stops_the_run_before_the_next_batch(managed, lab):
    lab.state("gpu1", None, "driver-mismatch")
    try:
        run = lab.playbook(
            "site.yml", "-e", json.dumps({"gpufleet_batch": 2, "ollama_keep_alive": "2h"}), ok=False, warnings=True
        )
        flat = " ".join(run.output.split())
        assert run.rc == 2
        assert "gpu1: driver_mismatch: the loaded kernel module is version" in flat
        assert "What to do: reboot" in flat
        assert "gpu2: ok ·" in flat, "the rest of the same batch goes on"
        assert "gpu1 failed in an earlier batch; gpu3 and the hosts after it are not touched" in flat
        assert [line["changed"] for line in run.of("ollama_service")] == [True]
    finally:
        lab.state("gpu1")


@pytest.mark.parametrize(
    "fault, verdict",
    [("driver-not-loaded", "driver_not_loaded"), ("gpu-lost:1", "gpu_lost"), ("ecc-uncorrectable:2", "gpu_unhealthy")],
)
def test_preflight_names_what_is_wrong(managed, lab, sh, fault, verdict):
    before = everything(sh, "gpu1")
    lab.state("gpu1", None, fault)
    try:
        run = lab.playbook("site.yml", "--limit", "gpu1", "-e", "gpu_host_on_unhealthy=fail", ok=False, warnings=True)
        assert run.rc == 2
        assert "gpu1: %s: " % verdict in " ".join(run.output.split())
        assert run.of("ollama_service") == []
    finally:
        lab.state("gpu1")
    assert everything(sh, "gpu1") == before


def test_a_host_with_a_sick_gpu_serves_on_the_others(managed, lab):
    def said():
        return lab.playbook(*words).of("ollama_service")[-1]["msg"]

    words = ["site.yml", "--limit", "gpu1", "-e", "ollama_prove_model=m8b"]

    lab.state("gpu1", None, "ecc-uncorrectable:2")
    try:
        sick = said()
        assert sick.startswith("ok · 3× RTX 4090 · GPU 2 left out: 3 uncorrectable memory errors"), sick
        assert "CUDA_VISIBLE_DEVICES=0,1,3 spread · m8b on 3 GPUs" in sick
        assert lab.playbook(*words).changed == 0
    finally:
        lab.state("gpu1")
    assert said().startswith("ok · 4× RTX 4090 · CUDA_VISIBLE_DEVICES=0,1,2,3 spread · m8b on 4 GPUs")


def test_a_proof_on_request_loads_the_model_and_restarts_nothing(managed, lab, sh):
    """In site.yml, and in verify.yml, which otherwise only reads."""
    words = ["--limit", "gpu1", "-e", "ollama_prove_model=m8b"]
    lab.playbook("site.yml", *words)
    hostsetup.wait_for_api("gpu1")
    before = everything(sh, "gpu1")
    hostsetup.api("gpu1", "/api/generate", {"model": "m8b", "keep_alive": 0})
    run = lab.playbook("playbooks/verify.yml", *words)
    assert "not proven (nothing changed)" in run.of("ollama_service")[-1]["msg"]
    for playbook in ("playbooks/verify.yml", "site.yml"):
        hostsetup.api("gpu1", "/api/generate", {"model": "m8b", "keep_alive": 0})
        run = lab.playbook(playbook, *words, "-e", "gpufleet_prove=now")
        assert run.changed == 0
        assert "m8b on 4 GPUs · Ollama" in run.of("ollama_service")[-1]["msg"]
    assert everything(sh, "gpu1") == before


def test_an_unreachable_host_is_named(lab, tmp_path):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"ollama": {"hosts": {"gone": {"ansible_host": "127.0.0.1", "ansible_port": 1}}}}))
    run = lab.ansible("ansible-playbook", "-i", str(inventory), "site.yml", "--limit", "gone")
    assert run.rc == 4
    assert "Connection refused" in run.output
