# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the module's parameters to what the engine is asked for, and what is refused before it is asked."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import nullcontext

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome, ServiceError, StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import (
    checks,
    install,
    moving,
    service,
    storage,
    uninstall,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import store as stores
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import archives, model, vacate
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import run as serving_run
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import uninstall as neutral
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import Gate
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Needed, Refused
from ansible_collections.gpufleet.inference.plugins.modules import ollama_service

UNIT_FILE = ("/etc/systemd/system/ollama.service", b"[Service]\nExecStart=/usr/local/bin/ollama serve\nUser=%s\n")


class FakeSystem:
    """As much of systemd as is read before the engine takes over."""

    def __init__(self, *files):
        self.files = list(files)
        self.states = {}
        self.programs = {}

    def load(self, names):
        return self.files

    def names(self, directory):
        return [path.split("/")[4] for path, _content in self.files if path.count("/") > 4]

    def read(self, path):
        return dict(self.files).get(path)

    def listener(self, port):
        return None

    def show(self, unit):
        return dict(self.states.get(unit, {"LoadState": "loaded", "ActiveState": "active"}))

    def program(self, pid):
        return self.programs.get(pid)

    def specifiers(self, unit):
        return {}

    def environment_files(self, pattern):
        return []


@pytest.fixture
def bring(monkeypatch, fakes, tmp_path, no_children):
    """`bring(**parameters)` runs service.converge; `.asked` is what the engine got, `.warnings` what was warned of."""
    user = "nobody"
    bring_files = [(UNIT_FILE[0], UNIT_FILE[1] % user.encode())]

    def converge(change, **more):
        run.asked = dict(more, change=change)
        outcome = run.outcome or Outcome()
        if more.get("gate") and not more["check_mode"]:
            more["gate"].proof.figures["version"] = "0.32.15"
        return outcome

    def recorded(effective, **options):
        run.checks = dict(options, effective=effective)
        return one(effective, **options)

    def run(check_mode=False, **given):
        parameters = {name: option.get("default") for name, option in ollama_service.argument_spec().items()}
        parameters.update(no_cloud=False)
        parameters.update(given)
        run.asked, run.warnings = None, []
        return service.converge(parameters, check_mode, run.warnings.append, system=run.system)

    one = checks.checks
    monkeypatch.setattr(checks, "checks", recorded)
    run.outcome = None
    run.facts = fakes.facts()
    run.system = FakeSystem(*bring_files)
    run.store = tmp_path / "store"
    monkeypatch.setattr(serving_run.convergence, "converge", converge)
    monkeypatch.setattr(model.gpu_facts, "gather", lambda timeout, python_paths: run.facts)
    monkeypatch.setattr(stores, "default_store", lambda user: str(run.store))
    monkeypatch.setattr(stores, "refused", lambda path, user, **_more: None)
    return run


def test_the_how_to(bring):
    result = bring(visible_devices="all", sched_spread=True, keep_alive="-1")
    change = bring.asked["change"]
    assert change.unit == "ollama.service"
    assert change.environment == {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "OLLAMA_SCHED_SPREAD": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
    }
    assert (change.enabled, change.started, change.timeout) == (True, True, 180)
    assert bring.asked["steps"] == []
    gate = bring.asked["gate"]
    assert len(gate.proof.devices) == 4
    assert bring.checks["effective"]["OLLAMA_SCHED_SPREAD"] == "true"
    assert bring.checks["effective"]["OLLAMA_KEEP_ALIVE"] == "2562047h47m16.854775807s"
    assert result["msg"] == (
        "ok · 4× H200 · CUDA_VISIBLE_DEVICES=0,1,2,3 spread · not proven (prove_model is not set) · Ollama 0.32.15"
    )
    assert result["visible_devices"] == "0,1,2,3"
    assert result["version"] == "0.32.15"
    assert [gpu["index"] for gpu in result["gpus"]] == [0, 1, 2, 3]
    assert result["changed"] is False


def test_nothing_declared(bring):
    result = bring()
    assert bring.asked["change"].environment == {}
    assert bring.asked["gate"].proof.devices == []
    assert result["visible_devices"] is None
    assert result["msg"] == "ok · 4× H200 · not proven (prove_model is not set) · Ollama 0.32.15"


@pytest.mark.parametrize(
    "wanted, value",
    [
        ([2, 0], "2,0"),
        (["GPU-00000001-0000-4000-8000-000000000001"], "GPU-00000001-0000-4000-8000-000000000001"),
        ({"count": 2}, "0,1"),
    ],
)
def test_a_choice_of_gpus(bring, wanted, value):
    assert bring(visible_devices=wanted)["visible_devices"] == value
    assert bring.checks["effective"]["CUDA_VISIBLE_DEVICES"] == value


def test_a_hand_written_choice_goes_on_as_it_is(bring):
    bring(environment={"CUDA_VISIBLE_DEVICES": "3, 1"})
    assert bring.asked["change"].environment == {"CUDA_VISIBLE_DEVICES": "3, 1"}
    assert [device["index"] for device in bring.asked["gate"].proof.devices] == [3, 1]


REFUSED = [
    ({"visible_devices": [0, 9]}, "visible_devices: There is no GPU 9 on this host"),
    ({"visible_devices": {"model": "A100"}}, "visible_devices: The GPU policy wants"),
    ({"environment": {"CUDA_VISIBLE_DEVICES": "0,9"}}, "CUDA_VISIBLE_DEVICES: There is no GPU 9"),
    ({"environment": {"CUDA_VISIBLE_DEVICES": ""}}, "set but empty"),
    ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}, "visible_devices": "all"}, "already given by visible_devices"),
    ({"keep_alive": "1d"}, "write 24h"),
    ({"prove_model": "m70b"}, "has no model m70b"),
    ({"prove_model": "../x"}, "is not a model name"),
    ({"archive": "/a.tgz", "remote_src": False}, "needs archive_checksum"),
    ({"archive": "https://a.example/a.tgz", "remote_src": True}, "needs archive_checksum"),
    ({"version": "0.32.15"}, "needs archive_checksum"),
    ({"version": "latest"}, "expected one such as 0.32.15"),
]


@pytest.mark.parametrize("given, words", REFUSED)
def test_refused_before_the_engine_is_asked(bring, given, words):
    with pytest.raises(Refused, match=words.replace("(", r"\(")):
        bring(**given)
    assert bring.asked is None


@pytest.mark.parametrize("wanted, goes_on", [(None, False), ("all", True), ([0, 1], True), ({"healthy": True}, True)])
def test_with_a_lost_gpu_the_others_are_chosen(bring, wanted, goes_on):
    lost = bring.facts["devices"][2]
    lost["health"] = {"ok": False, "fit": False, "lost": True, "reasons": ["GPU is lost"]}
    bring.facts["fault"] = {"code": "gpu_lost", "text": "GPU 2 does not answer", "remedy": "power-cycle the host"}
    if goes_on:
        assert lost["uuid"] not in bring(visible_devices=wanted)["visible_devices"]
    else:
        with pytest.raises(Refused, match="lost.*set visible_devices: all to serve on the others"):
            bring(visible_devices=wanted)
        assert bring.asked is None


def test_a_fault_of_the_host_comes_with_its_remedy(bring):
    bring.facts = {
        "source": "procfs",
        "count": 0,
        "devices": [],
        "fault": {"code": "driver_hang", "text": "the driver did not answer within 10 s", "remedy": "reboot"},
    }
    with pytest.raises(Refused, match="driver_hang: the driver did not answer within 10 s; reboot"):
        bring(visible_devices="all")


def test_near_misses_are_warned_of(bring):
    bring.outcome = Outcome(warnings=["from the engine"])
    bring(environment={"OLLAMA_SCHED_SPRED": "1"})
    assert "did you mean OLLAMA_SCHED_SPREAD" in bring.warnings[0]
    assert bring.warnings[1] == "from the engine"


def test_absent_reads_no_gpu(bring):
    bring.facts = None
    bring.outcome = Outcome(changed=True)
    assert bring(state="absent")["msg"] == "ollama.service: override removed"
    assert bring.asked["change"].state == "absent"
    bring.outcome = None
    assert bring(state="absent", name="ollama@second.service")["msg"] == "ollama@second.service: no override"


def test_memory_is_awaited_between_stop_and_start_where_gpus_are_declared(bring):
    bring()
    assert not bring.asked["hooks"].gpus
    bring(visible_devices=[0])
    hooks = bring.asked["hooks"]
    assert (hooks.gpus, hooks.release) == (True, 60)
    assert hooks.gather() is bring.facts


# --- the archive


@pytest.fixture
def release(tmp_path):
    path = tmp_path / "ollama.tgz"
    path.write_bytes(b"release")
    return str(path), hashlib.sha256(b"release").hexdigest()


def test_an_archive_on_the_controller_is_asked_for(bring, release, tmp_path):
    given = {"archive": "/controller/ollama.tgz", "archive_checksum": "sha256:" + release[1], "prefix": str(tmp_path)}
    with pytest.raises(Needed) as needed:
        bring(**given)
    assert needed.value.files == ["/controller/ollama.tgz"]
    assert bring.asked is None
    bring(check_mode=True, **given)
    assert [type(step).__name__ for step in bring.asked["steps"]] == ["ReleaseStep", "UnitStep"]


def test_a_wrong_setting_is_told_before_the_archive_is_asked_for(bring, release):
    with pytest.raises(Refused):
        bring(archive="/controller/ollama.tgz", archive_checksum=release[1], keep_alive="1d")


def test_an_archive_on_the_host(bring, release, tmp_path):
    bring(archive=release[0], remote_src=True, prefix=str(tmp_path))
    first = bring.asked["steps"][0]
    assert (first.release.sources, first.switch.prefix) == (((release[0], release[1]),), str(tmp_path))


def test_the_user_is_made_only_where_upstreams_unit_runs(bring, release):
    bring.system.files = []
    bring(archive=release[0], remote_src=True, models_dir="/srv/models")
    assert [type(step).__name__ for step in bring.asked["steps"]] == [
        "UserStep",
        "ReleaseStep",
        "UnitStep",
        "DirectoryStep",
    ]
    assert bring.asked["steps"][-1].user == "ollama"


def test_a_release_of_a_mirror_on_the_controller(bring, tmp_path):
    sums = {"ollama-linux-amd64.tar.zst": "ab" * 32, "ollama-linux-amd64-rocm.tar.zst": "cd" * 32}
    with pytest.raises(Needed) as needed:
        bring(version="0.32.15", mirror="/mirror", addons=["rocm"], archive_checksum=sums, prefix=str(tmp_path))
    assert needed.value.files == ["/mirror/v0.32.15/" + name for name in sums]


def test_the_declared_version_is_proven(bring, tmp_path):
    bring(version="0.32.15", archive_checksum="unverified", prefix=str(tmp_path))
    assert bring.checks["version"] == "0.32.15"
    (source,) = bring.asked["steps"][0].release.sources
    assert source.place.startswith("https://github.com/ollama/ollama/releases/download/v0.32.15/ollama-linux-")


def test_a_release_over_plain_http_that_nobody_verifies_is_warned_of(bring, tmp_path):
    url = "http://bob:secret@mirror.example/ollama.tgz?sig=1"
    bring(archive=url, archive_checksum="unverified", prefix=str(tmp_path))
    (warning,) = bring.warnings
    assert "http://mirror.example/ollama.tgz comes over plain http, unverified" in warning
    for harmless in ({"archive": url.replace("http:", "https:")}, {"archive_checksum": "ab" * 32}):
        bring(**{"archive": url, "archive_checksum": "unverified", "prefix": str(tmp_path), **harmless})
        assert bring.warnings == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given", [{"archive": "https://a.example/a.tgz", "archive_checksum": "ab" * 32}, {}], ids=str)
def test_a_prefix_of_another_user_is_refused_before_anything_is_touched(bring, tmp_path, given):
    (tmp_path / "lib/gpufleet").mkdir(parents=True)
    if not given:
        (tmp_path / "lib/gpufleet/.ollama-switch").touch()
    os.chown(tmp_path, 1234, 1234)
    with pytest.raises(Refused, match="belongs to user 1234, and root would trust"):
        bring(prefix=str(tmp_path), **given)
    assert not bring.asked


def test_a_killed_switch_is_taken_back_where_no_release_is_declared(bring, tmp_path):
    bring(prefix=str(tmp_path))
    assert bring.asked["steps"] == []
    (tmp_path / "lib/gpufleet").mkdir(parents=True)
    (tmp_path / "lib/gpufleet/.ollama-switch").touch()
    bring(prefix=str(tmp_path))
    assert [type(step).__name__ for step in bring.asked["steps"]] == ["BackStep"]


def test_a_host_without_zstd_is_told_before_anything_is_fetched(bring, monkeypatch, tmp_path):
    monkeypatch.setattr(archives.shutil, "which", {"dnf": "/usr/bin/dnf"}.get)
    with pytest.raises(Refused, match="amd64.tar.zst is packed .* no program zstd: dnf install zstd; .* repack"):
        bring(version="0.32.15", archive_checksum="unverified", prefix=str(tmp_path), check_mode=True)


def test_what_others_use_is_refused_before_the_first_instance_is_removed(bring, monkeypatch):
    def check(units, layout):
        raise Refused("%s used by ollama@third.service" % units)

    monkeypatch.setattr(neutral, "check", check)
    none = dict.fromkeys(ollama_service.argument_spec()["instances"]["options"])
    with pytest.raises(Refused, match="'ollama@chat.service', 'ollama@code.service'. used by"):
        bring(state="uninstalled", instances=[dict(none, name="chat"), dict(none, name="code")])
    assert bring.asked is None


def test_an_unreadable_archive_on_the_host(bring):
    with pytest.raises(Refused, match="cannot be read"):
        bring(archive="/nowhere.tgz", remote_src=True)


# --- the store


def put_model(store, name="m70b"):
    manifest = store / "manifests/registry.ollama.ai/library" / name / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")


def test_the_model_to_prove_with_must_be_in_the_store(bring):
    put_model(bring.store)
    bring(prove_model="m70b")
    assert bring.checks["model"] == "m70b"


def test_the_estimate_is_of_the_service_as_it_will_be(bring, monkeypatch):
    put_model(bring.store)
    override = b"[Service]\nEnvironment=OLLAMA_KV_CACHE_TYPE=q8_0\n"
    bring.system.files.append(("/etc/systemd/system/ollama.service.d/override.conf", override))
    bring(prove_model="m70b", context_length=8192, num_parallel=2, visible_devices=[1], prove_fit="warn")
    asked = bring.asked["change"].pre_change_check
    assert (asked.server.context, asked.server.serving) == (8192, (2, False, "q8_0", True))
    assert [device["index"] for device in asked.server.devices(bring.facts)] == [1]
    assert asked.policy == "warn"
    bring()
    assert bring.asked["change"].pre_change_check is None


def test_the_estimate_stands_beside_what_came_of_it(bring, monkeypatch):
    put_model(bring.store)
    monkeypatch.setattr(service.Fit, "estimate", {"held_bytes": 1000}, raising=False)
    monkeypatch.setattr(service.Fit, "__init__", lambda self, *words: None)
    monkeypatch.setattr(Gate, "gpus", lambda self: [{"index": 0, "name": "H200", "used_bytes": 490}] * 2)
    result = bring(prove_model="m70b")
    assert (result["estimate"], result["estimate_ratio"]) == ({"held_bytes": 1000}, 0.98)
    assert "estimate_ratio" not in bring()


def test_the_store_is_the_one_in_force(bring, tmp_path):
    put_model(tmp_path / "other")
    override = b"[Service]\nEnvironment=OLLAMA_MODELS=%s\n" % str(tmp_path / "other").encode()
    bring.system.files.append(("/etc/systemd/system/ollama.service.d/override.conf", override))
    bring(prove_model="m70b")
    # what our own drop-in says does not count: it is what is about to be replaced
    ours = ("/etc/systemd/system/ollama.service.d/zz-gpufleet.conf", b"[Service]\nEnvironment=OLLAMA_MODELS=/gone\n")
    bring.system.files.append(ours)
    bring(prove_model="m70b")
    bring(prove_model="m70b", models_dir=str(tmp_path / "other"))


def test_a_store_that_refuses_the_user(bring, monkeypatch):
    bring.store.mkdir()
    monkeypatch.setattr(stores, "refused", lambda path, user, **_more: "%s cannot write into %s" % (user, path))
    with pytest.raises(Refused, match="models_dir: nobody cannot write into %s" % bring.store):
        bring()


def test_a_store_that_refuses_the_user_who_is_to_be_made(bring, monkeypatch, release, tmp_path):
    """What helps must be possible while there is no such user."""
    asked = []
    monkeypatch.setattr(stores, "refused", lambda path, user, **more: asked.append(more) or "%s cannot" % user)
    monkeypatch.setattr(storage.account, "exists", lambda user: False)
    bring.system.files.clear()
    with pytest.raises(Refused) as refused:
        bring(archive=release[0], remote_src=True, prefix=str(tmp_path), models_dir="/srv/models")
    assert str(refused.value) == (
        "models_dir: ollama cannot, after useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama, as"
        " there is no such user yet"
    )
    assert asked == [{"to_be_made": True}, {"to_be_made": True, "parents_only": True}]


def test_a_store_that_refuses_the_user_is_told_before_the_models_are(bring, monkeypatch, tmp_path):
    put_model(bring.store)
    monkeypatch.setattr(stores, "refused", lambda path, user, **_more: "%s cannot write into %s" % (user, path))
    with pytest.raises(Refused, match="nobody cannot write into %s" % (tmp_path / "other")):
        bring(models_dir=str(tmp_path / "other"))


def test_a_store_with_models_is_not_left_without_a_word(bring, tmp_path):
    put_model(bring.store)
    with pytest.raises(Refused, match="set models_dir_change to move"):
        bring(models_dir=str(tmp_path / "other"))
    bring(models_dir=str(tmp_path / "other"), models_dir_change="leave")
    bring(models_dir=str(tmp_path / "other"), models_dir_change="move")
    assert [type(step).__name__ for step in bring.asked["steps"]] == ["DirectoryStep", "MoveStep"]


def test_what_cannot_be_brought_after_the_proof_is_a_warning(bring, monkeypatch, tmp_path):
    def full(step):
        raise StepError("no space")

    put_model(bring.store)
    monkeypatch.setattr(moving.MoveStep, "finish", full)
    bring(models_dir=str(tmp_path / "other"), models_dir_change="move")
    assert bring.warnings == ["what was there before is not all removed: no space; the next run resumes"]


def killed_while_moving(bring, tmp_path):
    put_model(bring.store)
    (step,) = moving.plan(str(bring.store), str(tmp_path / "other"), "move", "nobody", "ollama.service")
    step.apply()
    assert (tmp_path / "other/manifests").exists()


def test_a_move_that_was_killed_is_cleaned_up_by_the_former_inventory(bring, tmp_path):
    killed_while_moving(bring, tmp_path)
    bring()
    (step,) = bring.asked["steps"]
    assert step.needed() and "of an unfinished move from %s" % bring.store in step.diff()["before"]
    step.apply()
    step.finish()
    assert not (tmp_path / "other").exists() and (bring.store / "manifests").exists()
    bring()
    assert bring.asked["steps"] == []


@pytest.mark.parametrize("state", ["absent", "uninstalled"])
def test_a_move_that_was_killed_and_the_service_goes(bring, tmp_path, monkeypatch, state):
    killed_while_moving(bring, tmp_path)
    found = []

    def uninstalled(unit, prefix, remove_models, user, places, check_mode, system):
        found.extend(places)
        return {"changed": True}

    def converge(change, steps=(), **more):
        for step in steps if not more["check_mode"] else ():
            assert step.needed()
            step.apply()
        return Outcome(changed=True)

    monkeypatch.setattr(neutral, "check", lambda units, layout: None)
    monkeypatch.setattr(uninstall, "uninstall", uninstalled)
    monkeypatch.setattr(serving_run.convergence, "converge", converge)
    bring(check_mode=True, state=state)
    assert stores.move_unfinished("ollama.service")
    bring(state=state)
    assert not stores.move_unfinished("ollama.service")
    if state == "absent":
        assert not (tmp_path / "other").exists()
    else:
        assert {str(bring.store), str(tmp_path / "other")} <= set(found), "uninstalling knows of both stores"


def test_a_folder_that_root_has_prepared_for_a_user_who_is_to_be_made(bring, monkeypatch, release, tmp_path):
    """One that holds nothing of anybody else's needs no command by hand."""
    blocked = {"store": "cannot write", "parents": None}
    monkeypatch.setattr(
        stores, "refused", lambda *_words, parents_only=False, **_more: blocked["parents" if parents_only else "store"]
    )
    given = []
    monkeypatch.setattr(service.DirectoryStep, "give", lambda step, names: given.append(names) or blocked.get("give"))
    monkeypatch.setattr(storage.account, "exists", lambda user: False)
    declared = {"archive": release[0], "remote_src": True, "prefix": str(tmp_path), "models_dir": "/srv/models"}
    bring.system.files.clear()
    bring(**declared)
    assert given == [("blobs", "manifests")]
    for name, why in (("give", "a link is in it"), ("parents", "cannot enter /srv")):
        with pytest.raises(Refused, match="cannot write, after useradd"):
            blocked[name] = why
            bring(**declared)
    del blocked["give"], blocked["parents"]
    blocked["parents"] = None
    monkeypatch.setattr(storage.account, "exists", lambda user: True)
    with pytest.raises(Refused, match="cannot write$"):
        bring(**declared)
    storage.account.install_record.add("users", "ollama")
    bring(**declared)


def test_back_to_the_default_store_is_a_change_too(bring, tmp_path):
    put_model(tmp_path / "ours")
    override = b"[Service]\nEnvironment=OLLAMA_MODELS=%s\n" % str(tmp_path / "ours").encode()
    bring.system.files.append(("/etc/systemd/system/ollama.service.d/zz-gpufleet.conf", override))
    with pytest.raises(Refused, match="changes from %s to %s" % (tmp_path / "ours", bring.store)):
        bring()
    bring(models_dir=str(tmp_path / "ours"))
    assert [type(step).__name__ for step in bring.asked["steps"]] == ["DirectoryStep"]


def test_a_unit_without_a_user_runs_as_root(bring):
    bring.system.files = [("/lib/systemd/system/ollama.service", b"[Service]\nExecStart=/bin/true\n")]
    bring(models_dir="/srv/models")
    assert bring.asked["steps"][0].user == "root"


def test_a_library_that_is_not_there(bring, release, tmp_path):
    os.makedirs(tmp_path / "lib/ollama/cuda_v13")
    with pytest.raises(Refused, match="there is no folder cuda_v99 under .*/lib/ollama.*there are: cuda_v13"):
        bring(llm_library="cuda_v99", prefix=str(tmp_path))
    bring(llm_library="cuda_v13", prefix=str(tmp_path))
    # the release that is about to be installed may have it
    bring(llm_library="cuda_v99", prefix=str(tmp_path), archive=release[0], remote_src=True)


def test_a_model_that_comes_later(bring):
    result = bring(prove_model="m70b", prove="later")
    assert result["proof_due"] and result["unproven"] == "m70b is not in the store yet"
    assert bring.checks["model"] is None and not bring.asked["change"].prove
    put_model(bring.store)
    assert not bring(prove_model="m70b", prove="later")["proof_due"]
    assert bring.checks["model"] == "m70b"
    bring(prove_model="m70b", prove="now")
    assert bring.asked["change"].prove


def test_what_the_replaced_service_holds_counts_as_free(host, monkeypatch):
    put_model(host.bring.store)
    monkeypatch.setattr(vacate.Vacated, "stop", lambda self, unit, *more: True)
    for given, unit in (({"main": "disabled"}, "ollama.service"), ({}, "")):
        host({"name": "chat", "prove_model": "m70b"}, **given)
        assert host.changes[0].pre_change_check.replaces == unit


def test_one_of_several_models_is_due(host):
    chat, code = (
        {"name": "chat"},
        {"name": "code", "host": "127.0.0.1:11440", "share_gpus": True, "prove_model": "m70b"},
    )
    chat["share_gpus"] = True
    assert host(chat, code, prove="later")["proof_due"]
    assert not host(chat, prove="later")["proof_due"]


# --- the line for a person


@pytest.fixture
def line(bring, monkeypatch):
    """`line(used, changed, **outcome)` is the line for two GPUs that declare m70b and use so much memory."""
    put_model(bring.store)

    def run(used=(5, 5), changed=True, check_mode=False, **outcome):
        gpus = [{"index": index, "name": "NVIDIA H200", "used_bytes": size} for index, size in enumerate(used)]

        def proven(gate):
            gate.proof.changed = changed
            gate.proof.figures.update(
                {"loaded": "m70b"} if any(used) else {}, **({"answer": "a token"} if changed else {})
            )
            return gpus

        monkeypatch.setattr(Gate, "gpus", proven)
        bring.outcome = Outcome(**outcome)
        return bring(check_mode, prove_model="m70b", visible_devices=[0, 1], sched_spread=True)["msg"]

    return run


def test_the_line_names_the_gpus_and_the_model(line):
    assert line(restarted=True, downtime_ms=1896) == (
        "ok · 2× H200 · CUDA_VISIBLE_DEVICES=0,1 spread · m70b on 2 GPUs · Ollama 0.32.15 · restart 1.9 s"
    )
    gpus, unchanged = "ok · 2× H200 · CUDA_VISIBLE_DEVICES=0,1 spread", "not proven (nothing changed) · Ollama 0.32.15"
    assert line((5, 0), changed=False) == "%s · m70b on 1 GPU · %s" % (gpus, unchanged)
    assert line((0, 0), changed=False) == "%s · %s" % (gpus, unchanged)


def test_what_is_wrong_is_not_reported_as_if_it_were_right(line):
    remedied = {"remedied": "vram_missing", "reasons": ["vram_missing: its worker is dead"]}
    assert line((5, 0), changed=False, check_mode=True, **remedied) == (
        "would load it again: vram_missing: its worker is dead · 2× H200 · CUDA_VISIBLE_DEVICES=0,1 spread"
    )
    assert line(**remedied).endswith(" · m70b on 2 GPUs · Ollama 0.32.15 · was vram_missing")


# --- claims, instances, isolation


A_OWN = b"[X-Gpufleet]\nExclusive=yes\nGPU=GPU-00000001-0000-4000-8000-000000000001\nPort=11434\n"


@pytest.fixture
def host(bring, tmp_path, monkeypatch):
    """The same on a host with an installed Ollama; `.changes` are the engine's, one for each service."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ollama").write_text("")
    changes = []
    one = serving_run.convergence.converge

    def converge(change, **more):
        changes.append(change)
        return one(change, **more)

    monkeypatch.setattr(serving_run.convergence, "converge", converge)

    def run(*given, **common):
        none = dict.fromkeys(ollama_service.argument_spec()["instances"]["options"])
        del changes[:]
        return bring(prefix=str(tmp_path), instances=[dict(none, **one) for one in given], **common)

    run.changes = changes
    run.bring = bring
    run.program = str(tmp_path / "bin/ollama")
    return run


CHAT = {"name": "chat", "visible_devices": [0, 1], "host": "127.0.0.1:11435"}
CODE = {"name": "code", "visible_devices": [2, 3], "host": "127.0.0.1:11436"}


def test_a_service_claims_its_gpus_and_its_port(bring):
    bring(visible_devices=[1], host="localhost:1234")
    claims = bring.asked["change"].settings
    assert claims == {
        "X-Gpufleet": {"Exclusive": ["yes"], "GPU": [bring.facts["devices"][1]["uuid"]], "Port": ["1234"]}
    }
    bring(share_gpus=True)
    claims = bring.asked["change"].settings["X-Gpufleet"]
    assert (claims["Exclusive"], len(claims["GPU"]), claims["Port"]) == (["no"], 4, ["11434"])


def test_the_port_that_another_file_sets_is_claimed(bring):
    override = b"[Service]\nEnvironment=OLLAMA_HOST=127.0.0.1:999\n"
    bring.system.files.append(("/etc/systemd/system/ollama.service.d/override.conf", override))
    bring()
    assert bring.asked["change"].settings["X-Gpufleet"]["Port"] == ["999"]


def test_what_another_service_on_the_host_claims_is_refused_with_both_names(bring):
    bring.system.files.append(("/etc/systemd/system/vllm@a.service.d/zz-gpufleet.conf", A_OWN))
    with pytest.raises(Refused, match=r"ollama.service and vllm@a.service both listen on port 11434"):
        bring()
    with pytest.raises(Refused, match=r"both claim GPU 1 \(NVIDIA H200, GPU-00000001"):
        bring(host=":11500", allow_unauthenticated=True)
    assert bring.asked is None
    bring(host="127.0.0.1:11500", visible_devices=[0, 2, 3])
    bring.system.states["vllm@a.service"] = {"LoadState": "not-found"}
    bring()


def test_a_claim_is_checked_again_when_it_is_written(bring):
    bring()
    bring.system.lock = lambda unit, limit: nullcontext()
    with bring.asked["change"].while_writing():
        pass
    bring.system.files.append(("/etc/systemd/system/vllm@a.service.d/zz-gpufleet.conf", A_OWN))  # by a run meanwhile
    with pytest.raises(StepError, match="both listen"), bring.asked["change"].while_writing():
        pass


def test_that_a_unit_does_not_exist_is_left_to_the_engine_to_say(bring):
    bring.system.files.append(("/etc/systemd/system/vllm@a.service.d/zz-gpufleet.conf", A_OWN))
    bring.system.states["ollama.service"] = {"LoadState": "not-found"}
    bring()
    assert bring.asked["change"].unit == "ollama.service"


def test_instances_are_units_of_their_own(host):
    result = host(CHAT, CODE, keep_alive="-1")
    assert [change.unit for change in host.changes] == ["ollama@chat.service", "ollama@code.service"]
    assert [change.environment["CUDA_VISIBLE_DEVICES"] for change in host.changes] == ["0,1", "2,3"]
    assert all(change.environment["OLLAMA_KEEP_ALIVE"] == "-1" for change in host.changes)
    assert all(change.environment["OLLAMA_NOPRUNE"] == "1" for change in host.changes)  # they share the store
    assert result["msg"].startswith("ollama@chat: ok · 2× H200")
    assert " | ollama@code: ok · 2× H200" in result["msg"]
    assert sorted(result["instances"]) == ["ollama@chat.service", "ollama@code.service"]
    assert result["changed"] is False


def test_what_a_later_instance_held_before_is_not_in_the_way_of_an_earlier_one(host):
    """Two that swap their GPUs; but what the earlier one has now counts for the later one."""
    host(CHAT, CODE)
    system = host.bring.system
    system.lock = lambda unit, limit: nullcontext()
    chat, code = host.changes
    written = {
        change.unit: "[X-Gpufleet]\nGPU=%s\n" % change.settings["X-Gpufleet"]["GPU"][0] for change in (chat, code)
    }
    path = "/etc/systemd/system/%s.d/zz-gpufleet.conf"
    system.files.append((path % code.unit, written[chat.unit].encode()))
    with chat.while_writing():
        pass
    system.files.append((path % chat.unit, written[code.unit].encode()))
    with pytest.raises(StepError, match="both claim GPU 2"), code.while_writing():
        pass


def test_instances_in_each_others_way_are_refused_before_the_first_is_touched(host):
    with pytest.raises(Refused, match="ollama@chat.service and ollama@code.service both claim GPU 1"):
        host(CHAT, dict(CODE, visible_devices=[1, 2]))
    with pytest.raises(Refused, match="ollama@chat.service and ollama@code.service both listen on port 11435"):
        host(CHAT, dict(CODE, host="localhost:11435"))
    with pytest.raises(Refused, match="ollama@code.service: visible_devices: There is no GPU 9"):
        host(CHAT, dict(CODE, visible_devices=[9]))
    assert host.changes == []


def test_a_change_of_one_instance_is_the_hosts_even_when_the_next_one_fails(host, monkeypatch):
    one = serving_run.convergence.converge

    def converge(change, **more):
        if change.unit == "ollama@code.service":
            raise ServiceError("broken", Outcome(changed=False))
        return one(change, **more)

    host.bring.outcome = Outcome(changed=True)
    monkeypatch.setattr(serving_run.convergence, "converge", converge)
    with pytest.raises(ServiceError) as error:
        host(CHAT, CODE)
    assert error.value.outcome.changed is True


def test_an_instance_that_leaves_is_stopped_before_the_others_come(host):
    host(CHAT, dict(CODE, state="absent"))
    gone, chat = host.changes
    assert (gone.unit, gone.state, gone.enabled, gone.started) == ("ollama@code.service", "present", False, False)
    assert (gone.environment, gone.settings) == ({}, {})
    assert chat.unit == "ollama@chat.service"


def test_the_memory_of_an_instance_that_leaves_is_waited_for(host):
    host(dict(CODE, state="absent"))
    assert (host.bring.asked["hooks"].gpus, host.bring.asked["hooks"].release) == (True, 60)


@pytest.mark.parametrize("listens, port", [(None, 11434), ("192.0.2.21:11500", 11500), (":0x", 11434)])
def test_the_port_at_which_a_running_server_listens(bring, listens, port):
    environ = {} if listens is None else {"OLLAMA_HOST": listens}
    bring(visible_devices=[0], host="127.0.0.1:11600")
    assert bring.asked["hooks"].port_of(environ) == port
    bring(state="absent")
    assert bring.asked["hooks"].port_of(environ) == port


def test_an_instance_runs_the_program_in_place(host):
    host.bring.system.states["ollama@chat.service"] = {"LoadState": "loaded", "MainPID": "7"}
    for running, stale in (
        (host.program, False),
        ("/machine" + host.program, False),
        ("/usr/local/lib/gpufleet/old/bin/ollama (deleted)", True),
    ):
        host.bring.system.programs[7] = running
        host(CHAT)
        (step,) = [step for step in host.bring.asked["steps"] if type(step).__name__ == "ProgramStep"]
        assert step.needed() is stale
        step.apply()
        assert re.search(r"chat\.service ran .*, which has been replaced, .* the previous release", step.undo())


def test_an_instance_needs_an_installed_ollama(host):
    os.unlink(host.program)
    with pytest.raises(Refused, match="there is no .*/bin/ollama that it could start; expected an installed"):
        host(CHAT)


def test_isolated_gpus_are_given_by_uuid_and_their_nodes_alone_allowed(bring):
    result = bring(visible_devices=[2, 3], isolate=True)
    change, uuids = bring.asked["change"], [device["uuid"] for device in bring.facts["devices"][2:]]
    assert change.environment["CUDA_VISIBLE_DEVICES"] == ",".join(uuids)
    assert change.settings["Service"]["DevicePolicy"] == ["closed"]
    assert change.settings["Service"]["DeviceAllow"] == [
        "",
        "/dev/nvidia2 rw",
        "/dev/nvidia3 rw",
        "/dev/nvidiactl rw",
        "/dev/nvidia-uvm rw",
        "/dev/nvidia-uvm-tools rw",
    ]
    assert result["msg"] == ("ok · 2× H200 · alone with GPU 2,3 · not proven (prove_model is not set) · Ollama 0.32.15")


@pytest.mark.parametrize(
    "given, words",
    [
        ({"isolate": True}, "isolate requires visible_devices"),
        ({"isolate": True, "environment": {"CUDA_VISIBLE_DEVICES": "2,3"}}, "are indexes, which count otherwise"),
        (
            {"host": "0.0.0.0"},
            "host: 0.0.0.0 is reachable from other hosts, and the service asks for no key: anyone there could use, pull",
        ),
        ({"host": ":11434"}, "is reachable from other hosts"),
        ({"host": "10.0.0.5:11434"}, "is reachable from other hosts"),
        ({"environment": {"OLLAMA_HOST": "[::]:80"}}, "is reachable from other hosts"),
        (
            {"sandbox": True, "models_dir": "/home/fleet/models"},
            "needs /home/fleet/models, but the sandbox hides /home from it",
        ),
        ({"sandbox": True, "models_dir": "/usr/s", "prefix": "/root/x"}, "needs /root/x, but the sandbox hides /root"),
        ({"visible_devices": "none"}, "none is not available for Ollama"),
        ({"instances": [{"name": "a b"}]}, "is not a valid name"),
    ],
)
def test_what_would_not_hold_is_refused(bring, given, words):
    with pytest.raises(Refused) as error:
        bring(**given)
    assert words in str(error.value)
    assert bring.asked is None


def test_loopback_and_a_forced_address_are_let_through(bring):
    for host in ("127.0.0.1", "localhost:80", "[::1]:80", "127.9.9.9:1"):
        bring(host=host)
    bring(host="0.0.0.0", allow_unauthenticated=True)
    assert bring.warnings == []


def test_an_open_address_in_someone_elses_file_is_warned_of(bring):
    override = b"[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0\n"
    bring.system.files.append(("/etc/systemd/system/ollama.service.d/override.conf", override))
    bring()
    assert "the address of the unit, which is not declared: 0.0.0.0 is reachable from other hosts" in bring.warnings[0]
    bring(allow_unauthenticated=True)
    assert bring.warnings == []


def test_the_sandbox_may_write_where_the_server_does(bring, monkeypatch):
    monkeypatch.setattr(install, "home", lambda user: "/usr/share/ollama")
    bring(sandbox=True, models_dir="/srv/models")
    settings = bring.asked["change"].settings["Service"]
    assert settings["ReadWritePaths"] == ["-/usr/share/ollama", "-/srv/models"]
    assert settings["ProtectSystem"] == ["strict"]
    assert "DeviceAllow" not in settings
    bring(sandbox=True, models_dir="/usr/share/ollama/.ollama/models", isolate=True, visible_devices="all")
    settings = bring.asked["change"].settings["Service"]
    assert settings["ReadWritePaths"] == ["-/usr/share/ollama"]
    assert settings["DevicePolicy"] == ["closed"]


def test_what_would_hide_the_gpus_is_objected_to(bring):
    def unit(text):
        return merge([("/x.conf", b"[Service]\n" + text)])

    bring(visible_devices=[2])
    unit_check = bring.asked["change"].unit_check
    assert "PrivateDevices=yes in /x.conf:2 keeps /dev/nvidia2" in unit_check(unit(b"PrivateDevices=yes"))
    assert "/dev/nvidia-uvm" in unit_check(unit(b"DeviceAllow=/dev/nvidia2\nDeviceAllow=/dev/nvidiactl"))
    assert unit_check(unit(b"DeviceAllow=char-nvidia*")) is None
    bring(visible_devices=[2], isolate=True)
    wider = unit(b"DeviceAllow=char-nvidia* rw")
    assert "isolate: DeviceAllow=char-nvidia* rw in /x.conf:2" in bring.asked["change"].unit_check(wider)
    bring.facts = {"source": "procfs", "count": 0, "fault": None, "devices": []}
    bring()
    assert bring.asked["change"].unit_check(unit(b"PrivateDevices=yes")) is None


@pytest.mark.parametrize(
    "given, others, value, proven",
    [
        (None, b"", "1", None),
        (True, b"", "1", "true"),
        (False, b"", None, None),
        (None, b"Environment=OLLAMA_NO_CLOUD=0\n", None, None),
    ],
)
def test_no_call_to_the_cloud_unless_asked_for(bring, given, others, value, proven):
    bring.system.files.append(("/etc/systemd/system/ollama.service.d/override.conf", b"[Service]\n" + others))
    bring(no_cloud=given)
    assert bring.asked["change"].environment.get("OLLAMA_NO_CLOUD") == value
    assert bring.checks["effective"].get("OLLAMA_NO_CLOUD") == proven
