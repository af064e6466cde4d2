# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: how its result is told, that check mode writes nothing, and that the role's variables are its options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from ansible import template
from ansible.parsing.dataloader import DataLoader

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Outcome,
    ServiceError,
    StepError,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import service
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import run
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import template as unit_files
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Needed, Refused
from ansible_collections.gpufleet.inference.plugins.modules import ollama_service

ROLE = Path(__file__).resolve().parents[4] / "roles/ollama"


@pytest.fixture
def bring(replaced):
    return replaced(service)


def test_the_result_is_given_on(run_module, bring):
    result = run_module(ollama_service.main)
    assert (result["failed"], result["changed"], result["msg"]) == (False, False, "ok")


def test_options_and_check_mode_are_given_on(run_module, bring):
    seen = {}

    def does(params, check_mode, warn):
        seen.update(params, check_mode=check_mode)
        warn("look out")
        return {"changed": True}

    bring.does = does
    run_module(ollama_service.main, {"keep_alive": -1, "sched_spread": "yes"}, check=True, warnings=("look out",))
    assert seen["keep_alive"] == "-1"
    assert seen["sched_spread"] is True
    assert seen["check_mode"] is True


@pytest.mark.parametrize("error", [Refused("no GPU 9"), StepError("no GPU 9")])
def test_what_is_refused_changes_nothing(run_module, bring, error):
    bring.raises = error
    result = run_module(ollama_service.main)
    assert result["failed"]
    assert result["msg"] == "no GPU 9 (nothing was changed)"
    assert result["changed"] is False


def test_a_proof_that_failed_tells_all(run_module, bring):
    outcome = Outcome(rolled_back=True, verdict=Verdict("cpu_fallback", "no GPU", {"found": 0}))
    bring.raises = ServiceError("ollama.service: cpu_fallback: no GPU. The previous state is restored.", outcome)
    result = run_module(ollama_service.main)
    assert result["failed"]
    assert result["msg"].endswith("The previous state is restored.")
    assert result["verdict"] == "cpu_fallback"
    assert result["evidence"] == {"found": 0}
    assert result["rolled_back"] is True


def test_an_archive_is_asked_for(run_module, bring):
    bring.raises = Needed(["/a.tgz"])
    result = run_module(ollama_service.main)
    assert result["needs"] == ["/a.tgz"]
    assert result["changed"] is False
    assert not result["failed"]


@pytest.mark.parametrize(
    "given", [{"num_parallel": "many"}, {"kv_cache_type": "q9"}, {"nosuch": 1}, {"state": "latest"}]
)
def test_a_wrong_type_is_refused(run_module, given):
    result = run_module(ollama_service.main, given)
    assert result["failed"]
    assert next(iter(given)) in result["msg"]


def test_check_mode_makes_no_write_call(run_module, monkeypatch, tmp_path):
    """The whole path in check mode, on a host where everything is to be done; each way to write raises."""
    device = {
        "index": 0,
        "uuid": "GPU-1",
        "minor": 0,
        "name": "NVIDIA H200",
        "pci_bus_id": "0000:00:06.0",
        "processes": [],
        "mig": {"enabled": False},
        "health": {"ok": True, "fit": True, "lost": False, "reasons": []},
        "display_active": False,
    }
    facts = {"source": "nvml", "count": 1, "fault": None, "devices": [device]}
    monkeypatch.setattr(gpu_facts, "gather", lambda **options: facts)

    class Reading(System):
        """A systemd that knows no such unit, and runs no command but the two that read."""

        def show(self, unit):
            return {"Id": unit, "LoadState": "not-found", "ActiveState": "inactive"}

        def load(self, names):
            return []

        def _call(self, *words, **options):
            raise AssertionError("a command in check mode: %s" % (words,))

        _run = _call

    monkeypatch.setattr(run, "System", Reading)
    monkeypatch.setattr(unit_files, "UNIT_PATH", ("/nowhere",))

    def forbidden(*words, **options):
        raise AssertionError("written in check mode: %s %s" % (words, options))

    writing = (
        "mkdir makedirs rename replace unlink remove rmdir symlink link chmod chown fchmod fchown ftruncate truncate utime "
        "killpg mknod mkfifo"
    )
    for name in writing.split():
        monkeypatch.setattr(os, name, forbidden)
    real_open = os.open

    def reading(path, flags, *words, **options):
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), path
        return real_open(path, flags, *words, **options)

    monkeypatch.setattr(os, "open", reading)
    result = run_module(
        ollama_service.main,
        {
            "visible_devices": "all",
            "archive": "/controller/o.tgz",
            "archive_checksum": "ab" * 32,
            "prefix": str(tmp_path),
            "models_dir": "/nowhere/models",
        },
        check=True,
        diff=True,
    )
    assert not result["failed"], result["msg"]
    assert result["changed"]
    assert "CUDA_VISIBLE_DEVICES=0" in result["diff"]["after"]
    assert "ExecStart=%s/bin/ollama serve" % tmp_path in result["diff"]["after"]
    assert "directory /nowhere/models" in result["diff"]["after"]
    assert result["msg"].startswith("would install Ollama · 1× H200")
    assert result["version"] is None
    assert os.listdir(tmp_path) == []


# --- what the role makes of it

LISTED = {"ollama_prove_model": "m8b", "ollama_models": ["m8b"]}
NOW = {"gpufleet_prove": "now"}


@pytest.mark.parametrize(
    "given, again",
    [
        ({**LISTED, "ollama_result": {"proof_due": True}, "ollama_models_result": {}}, True),
        ({**LISTED, **NOW, "ollama_result": {"proof_due": True}}, False),  # --tags service, and no store has it
        ({**LISTED, **NOW, "ollama_result": {"proof_due": False}}, True),  # --tags service
        ({**LISTED, **NOW, "ollama_models_result": {}}, True),  # --tags models
        ({**LISTED, "ollama_result": {"proof_due": False}, "ollama_models_result": {}}, False),
        ({"ollama_models": [], **NOW, "ollama_result": {"proof_due": False}}, False),  # the first task has proven it
    ],
)
def test_when_the_role_verifies_again(given, again):
    trusted = getattr(template, "trust_as_template", str)  # since ansible-core 2.19
    inner = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    variables = {name: trusted(text) for name, text in inner.items()}
    variables.update(given, ansible_check_mode=False, ollama_instances=[], ollama_state="present")
    templar = template.Templar(DataLoader(), variables=variables)
    assert templar.template(variables["ollama_prove_again"]) is again


def test_the_role_verifies_again_with_each_of_its_tags():
    (role,) = yaml.safe_load((ROLE / "tasks/main.yml").read_text(encoding="utf-8"))
    (task,) = [task for task in role["block"] if task.get("when") == "ollama_prove_again"]
    assert task["tags"] == ["service", "models"]
