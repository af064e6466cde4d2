# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From options to an environment: the driver decides, check mode writes nothing, wheels are asked for when missing."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import step
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.build import Builder, asked
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed
from ansible_collections.gpufleet.inference.plugins.modules import model_source
from ansible_collections.gpufleet.inference.plugins.modules import python_environment as module

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """`host("570.1")` sets the driver; builds are recorded, not done."""
    folder = tmp_path / "proc/driver/nvidia"
    built = []

    def build(builder):
        if host.fails:
            raise Failed("pip install: exit status 1: no such package")
        built.append(builder.path)
        os.makedirs(builder.path + "/bin")
        os.symlink(sys.executable, builder.python)
        with open(builder.path + "/gpufleet.json", "w") as file:
            hashed = asked(builder.choice, builder.interpreter)
            file.write('{"hash": "%s", "device": "NVIDIA H200", "packages": {"torch": "2"}}' % hashed)

    def host(driver):
        folder.mkdir(parents=True, exist_ok=True)
        text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  %s  Tue\n" % driver
        (folder / "version").write_text(text)

    monkeypatch.setattr(Builder, "build", build)
    step_for = step.step_for
    monkeypatch.setattr(step, "step_for", lambda engine, params: step_for(engine, params, str(tmp_path)))
    host.built, host.fails, host.root = built, False, str(tmp_path / "opt")
    return host


@pytest.fixture
def run(run_module, host):
    """`run(version=…)` runs the module for torch."""

    def with_options(check=False, **options):
        arguments = dict(engine="torch", root=host.root, interpreter=sys.executable, **options)
        return run_module(module.main, arguments, check=check)

    return with_options


def test_the_newest_that_the_driver_runs(run, host):
    host("550.54.15")
    result = run()
    assert (result["changed"], result["version"], result["cuda"]) == (True, "2.13.0", "cu126")
    assert result["msg"] == "built and switched to torch 2.13.0 (cu126)"
    assert (result["device"], result["packages"], result["previous"]) == ("NVIDIA H200", {"torch": "2"}, None)
    assert result["python"] == result["path"] + "/bin/python"
    again = run()
    assert (again["changed"], again["msg"], again["diff"]) == (False, "torch 2.13.0 (cu126)", {})
    assert len(host.built) == 1


def test_gpus_are_read_only_before_a_build(run, host, monkeypatch):
    asked = []

    def first_look(timeout):
        asked.append(timeout)
        return {"devices": [{"compute_capability": "7.0"}, {"compute_capability": None}]}

    monkeypatch.setattr(facts, "first_look", first_look)
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(machine="x86_64"))
    host("580.159.04")
    assert run()["msg"] == "built and switched to torch 2.13.0 (cu126)" and len(asked) == 1
    assert not run(version="2.13.0", cuda="cu126")["changed"] and len(asked) == 1
    assert "this host has 7.0" in run(version="2.15.0")["msg"]


def test_back_without_a_build(run, host):
    host("580.1")
    old = run(version="2.12.1")
    run(version="2.13.0")
    back = run(version="2.12.1")
    assert back["msg"] == "switched to torch 2.12.1 (cu130)" and back["path"] == old["path"]
    assert len(host.built) == 2


def test_check_mode_writes_nothing(run, host):
    host("580.1")
    result = run(version="2.13.0", check=True)
    assert (result["changed"], result["msg"]) == (True, "would have built and switched to torch 2.13.0 (cu130)")
    assert "torch==2.13.0" in result["diff"]["after"] and result["diff"]["before"] == ""
    assert host.built == [] and not os.path.exists(host.root)


def test_a_driver_that_is_too_old(run, host):
    host("570.86.15")
    result = run(version="2.13.0", cuda="13.0")
    assert result["failed"] and "needs NVIDIA driver 580 or newer; this host has driver 570.86.15" in result["msg"]
    assert host.built == [] and not os.path.exists(host.root)


def test_no_driver(run, host):
    result = run(version="2.13.0")
    assert result["failed"] and "this host has no NVIDIA driver" in result["msg"]
    assert run(version="2.13.0", cuda="cpu")["changed"]


def test_an_interpreter_that_is_not_there(run_module, host):
    arguments = {"engine": "torch", "cuda": "cpu", "root": host.root, "interpreter": "3.99"}
    result = run_module(module.main, arguments)
    assert result["failed"] and "there is no interpreter python3.99 on this host" in result["msg"]
    assert result["msg"].endswith("(nothing was changed)")


def test_a_build_that_fails(run, host):
    host.fails = True
    result = run(version="2.13.0", cuda="cpu")
    assert result["failed"] and not result["changed"]
    assert result["msg"].endswith("no such package. Nothing of it is left; what was in use still is")
    assert not os.path.exists(host.root)


def test_wheels_on_the_controller_are_asked_for_once(run, host):
    assert run(version="2.13.0", cuda="cpu", wheels="files/wheels")["needs"] == ["files/wheels"]
    assert not os.path.exists(host.root)
    assert "needs" not in run(version="2.13.0", cuda="cpu", wheels="files/wheels", check=True)
    run(version="2.13.0", cuda="cpu")
    assert run(version="2.13.0", cuda="cpu", wheels="files/wheels")["changed"] is False


def test_wheels_that_are_not_on_the_host(run, host):
    result = run(version="2.13.0", cuda="cpu", wheels="/nowhere", remote_src=True)
    assert result["failed"] and "there is no directory /nowhere on this host" in result["msg"]
    result = run(version="2.13.0", cuda="cpu", wheels="/nowhere", remote_src=True, check=True)
    assert result["failed"]


def test_further_indexes_are_no_part_of_the_name(run, host):
    one = run(version="2.13.0", cuda="cpu", check=True)
    other = run(version="2.13.0", cuda="cpu", index_url="https://a:b@mirror.example", check=True)
    assert one["path"] == other["path"]


def test_the_role_of_vllm_gives_every_option_on():
    tasks = yaml.safe_load((ROOT / "roles/vllm/tasks/main.yml").read_text(encoding="utf-8"))
    (given,) = [task[name] for task in tasks for name in task if name.endswith(".python_environment")]
    assert set(given) == set(module.argument_spec())
    for name, text in given.items():
        assert text in ("vllm", "{{ vllm_%s }}" % name, "{{ vllm_%s | default(omit) }}" % name)


def test_the_role_of_vllm_gives_every_option_of_a_model_on():
    tasks = yaml.safe_load((ROOT / "roles/vllm/tasks/main.yml").read_text(encoding="utf-8"))
    (given,) = [task[name] for task in tasks for name in task if name.endswith(".model_source")]
    assert set(given) == set(model_source.argument_spec()) - {"seeds"}
    sharing = yaml.safe_load((ROOT / "roles/vllm/tasks/seed.yml").read_text(encoding="utf-8"))[1]["block"]
    download, helped = [task[name] for task in sharing for name in task if name.endswith(".model_source")]
    assert download == {name: text for name, text in given.items() if name != "defer_downloads"}
    assert {name: text for name, text in helped.items() if name != "seeds"} == download
    spec = yaml.safe_load((ROOT / "roles/vllm/meta/argument_specs.yml").read_text(encoding="utf-8"))
    models = spec["argument_specs"]["main"]["options"]["vllm_models"]["options"]
    assert set(models) == set(given) - {"token", "defer_downloads"}
