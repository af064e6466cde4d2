# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, types and labels of variables, held to the roles' own files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, List

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.plugin_utils.role import OURS, Role, labels, translated

ROOT = Path(__file__).resolve().parents[4]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def told(role: str, *names: str, **more: Any) -> List[str]:
    magic = {"ansible_role_name": OURS + role, "role_path": str(ROOT / "roles" / role)}
    task_vars = {**dict.fromkeys(names), **magic, **more}
    found = Role.of(task_vars)
    return list(found.misspelled(task_vars)) if found else []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ollama_visible_device", "ollama_visible_devices"),
        ("ollama_keepalive", "ollama_keep_alive"),
        ("ollama_num_paralel", "ollama_num_parallel"),
        ("ollama_sched_spred", "ollama_sched_spread"),
        ("ollama_env", "ollama_environment"),
    ],
)
def test_a_name_nearly_right_is_told_with_the_right_one(given: str, meant: str) -> None:
    assert told("ollama", given, "ollama_state") == [
        "the role gpufleet.inference.ollama has no variable %s, so its value has no effect; did you mean %s?"
        % (given, meant)
    ]


@pytest.mark.parametrize(
    "name", ["ollama_archive_server", "ollama_result", "ollama_", "ollama_debug", "vllm_instance", "visible_device"]
)
def test_others_names_are_their_own(name: str) -> None:
    assert told("ollama", name) == []


def test_outside_of_our_roles_nothing_is_told() -> None:
    assert told("ollama", "ollama_keepalive", ansible_role_name="other.collection.ollama") == []
    assert told("ollama", "ollama_keepalive", ansible_role_name=None) == []
    assert told("ollama", "ollama_keepalive", role_path="/nowhere") == []


@pytest.mark.parametrize("role", ROLES)
def test_the_roles_own_variables_are_known_and_their_results_not_told_of(role: str) -> None:
    specs = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    entries = yaml.safe_load(specs.read_text())["argument_specs"].values()
    names = {name for entry in entries for name in entry.get("options", {})}
    assert names == {role + "_" + name for name in Role(role, ROOT / "roles" / role).variables()}
    files = [*(ROOT / "roles").rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")]
    used = {name for file in files for name in re.findall(r"^ *(%s_\w+):" % role, file.read_text(), re.MULTILINE)}
    used |= {name for file in files for name in re.findall(r"register: (%s_\w+)" % role, file.read_text())}
    assert told(role, *used) == []


def test_a_variable_has_the_type_of_its_default() -> None:
    role = Role("gpu_host", ROOT / "roles/gpu_host")

    def wrong(**task_vars: Any) -> List[str]:
        return list(role.mistyped(task_vars, lambda text: {"{{ no }}": False}.get(text, text)))

    assert wrong(gpu_host_required="false", gpu_host_pynvml="no", gpu_host_persistence="{{ no }}") == []
    assert wrong(gpu_host_limits="memlock=infinity", gpu_host_facts_timeout="2.5") == []
    assert wrong(gpu_host_required="maybe") == ["gpu_host_required is 'maybe'; expected true or false"]
    assert wrong(gpu_host_limits=["memlock"]) == ["gpu_host_limits is a list; expected a dictionary"]
    assert wrong(gpu_host_facts_timeout="10s") == ["gpu_host_facts_timeout is '10s'; expected a number"]
    assert wrong(gpu_host_facts_timeout=True) == ["gpu_host_facts_timeout is true; expected a number"]


def test_the_variables_of_options_are_read_from_the_tasks() -> None:
    names = Role("ollama", ROOT / "roles/ollama").names(OURS + "ollama_model")
    service = Role("ollama", ROOT / "roles/ollama").names(OURS + "ollama_service")
    assert service["prove"] == "gpufleet_prove" and service["host"] == "ollama_host"
    assert names["insecure"] == "ollama_registry_insecure" and names["name"] == "ollama_models_unit"
    vllm = Role("vllm", ROOT / "roles/vllm")
    assert vllm.names(OURS + "model_source")["revision"] == "vllm_models[].revision"
    assert vllm.names(OURS + "vllm_service")["instances"] == "vllm_instances"
    torchrun = Role("torchrun", ROOT / "roles/torchrun")
    job = str(ROOT / "roles/torchrun/tasks/job.yml")
    assert torchrun.names(OURS + "torchrun_job", job)["timeout"] == "torchrun_timeout"


NAMES = {
    **{name: "ollama_" + name for name in ("host", "instances", "prove_model", "allow_unauthenticated", "mirror")},
    "insecure": "ollama_registry_insecure",
    "registry_mirror": "ollama_registry_mirror",
    "isolate": "ollama_isolate",
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "registry_mirror: http://m has no TLS; expected insecure: true with it",
            "ollama_registry_mirror: http://m has no TLS; expected ollama_registry_insecure: true with it",
        ),
        ("host (OLLAMA_HOST): '0.0.0.0:1'", "ollama_host (OLLAMA_HOST): '0.0.0.0:1'"),
        (
            "give the port; or set allow_unauthenticated: true",
            "give the port; or set ollama_allow_unauthenticated: true",
        ),
        ("mirror: there is no /m/v1/ollama-linux-*", "ollama_mirror: there is no /m/v1/ollama-linux-*"),
        ("ollama@a.service: host: odd", "ollama@a.service: ollama_host: odd"),
        ("isolate requires GPUs, but no host has any", "ollama_isolate requires GPUs, but no host has any"),
        ("leave ollama_prove_model out", "leave ollama_prove_model out"),
        ("this host, a host, has no mirror /srv/prove_model/x", "this host, a host, has no mirror /srv/prove_model/x"),
    ],
)
def test_a_message_names_the_variables(message: str, expected: str) -> None:
    assert translated(message, NAMES, labels(NAMES, {})) == expected
    assert translated(message, NAMES, labels({}, {})) == message, "outside of a role they are options"


def test_a_message_names_the_instance_that_sets_an_option() -> None:
    instances = [{"name": "a", "host": "h"}, {"name": "b"}]
    label = labels(NAMES, {"instances": instances})
    assert label("host") == "ollama_instances[a].host" and label("mirror") == "ollama_mirror"
    assert (
        labels(NAMES, {"instances": [{**one, "host": "h"} for one in instances]})("host") == "ollama_instances[].host"
    )
