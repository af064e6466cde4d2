# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every code block of the README and the guides, as it is printed: YAML is validated as the roles and modules do it,
and each command exists. tests/fleet/test_readme.py runs the way from nothing to serving on a lab host.
"""

from __future__ import annotations

import configparser
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping

import pytest
import yaml
from ansible import constants as C
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from generate import ENGINES, ROLES  # noqa: E402

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/*.md", "roles/*/README.md", "tests/lab/README.md"]
MODULES = "ansible_collections.gpufleet.inference.plugins.modules."
COLLECTION = "gpufleet.inference."
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VAULT = re.compile(r"\{\{ vault_\w+ \}\}")
#: Variables of Ansible that an inventory of the documents sets.
ANSIBLE = {"ansible_user", "ansible_connection", "ansible_python_interpreter"}
#: The module that takes the entries of a role's list of models.
MODELS = {"ollama_models": "ollama_model", "vllm_models": "model_source", "llama_server_models": "model_source"}


def snippets(language: str) -> List[Any]:
    """The blocks of a language, as parameters of a test."""
    found = []
    for path in (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))):
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            place = "%s:%d" % (path.relative_to(ROOT), text.count("\n", 0, match.start()) + 1)
            if match[1] == language:
                found.append(pytest.param(match[2], id=place))
    return found


# --- YAML


def validated(spec: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Fail as Ansible does on a name, type or choice that an argument spec does not have."""
    assert ArgumentSpecValidator(dict(spec)).validate(dict(values)).error_messages == []


def module_spec(name: str) -> Dict[str, Any]:
    return importlib.import_module(MODULES + name).argument_spec()


def check_module(name: str, values: Mapping[str, Any]) -> None:
    validated(module_spec(name), values)


def check_variables(values: Mapping[str, Any]) -> None:
    """Variables of roles: each by its role's argument specs, and as the module takes it."""
    unknown = set(values) - ANSIBLE
    for role in ROLES:
        own = {name: value for name, value in values.items() if name.startswith(role + "_")}
        if own:
            specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
            validated(specs["argument_specs"]["main"]["options"], own)
            unknown -= set(own)
        if own and role in ENGINES:
            spec = module_spec(ENGINES[role][0])
            given = {name[len(role) + 1 :]: value for name, value in own.items()}
            validated(spec, {name: unshared(value) for name, value in given.items() if name in spec})
        for name in own.keys() & MODELS.keys():
            entries = [{"name": entry} if isinstance(entry, str) else entry for entry in own[name]]
            for values in [{"models": entries}] if MODELS[name] == "ollama_model" else entries:
                check_module(MODELS[name], values)
    assert unknown == set()


def unshared(value: Any) -> Any:
    """Instances without ``hosts``: the role turns them into the module's ``nodes``."""
    if not (isinstance(value, list) and all(isinstance(entry, dict) for entry in value)):
        return value
    return [{key: part for key, part in entry.items() if key not in ("hosts", "network")} for entry in value]


def check_task(task: Dict[str, Any]) -> None:
    """A task: its keywords are Ansible's, its options the module's."""
    (action,) = set(task) - set(Task.fattributes)
    if action.startswith(COLLECTION):
        check_module(action[len(COLLECTION) :], task[action] or {})


def check_play(play: Dict[str, Any]) -> None:
    for entry in play.get("roles", []):
        role, values = (entry, {}) if isinstance(entry, str) else (entry["role"], entry.get("vars", {}))
        assert role.startswith(COLLECTION) and role[len(COLLECTION) :] in ROLES
        check_variables(values)
    for task in play.get("tasks", []):
        check_task(task)


def check_inventory(text: str, folder: Path) -> None:
    """Ansible itself reads the inventory; each group is one that a playbook serves."""
    (folder / "hosts.yml").write_text(text, encoding="utf-8")
    inventory = InventoryManager(DataLoader(), sources=[str(folder / "hosts.yml")])
    for name in yaml.safe_load(text):
        group = inventory.groups[name]
        assert name in ROLES and group.get_hosts()
        check_variables(group.get_vars())


@pytest.mark.parametrize("snippet", snippets("yaml"))
def test_yaml_is_valid(snippet: str, tmp_path: Path) -> None:
    text = VAULT.sub("a-long-random-word", snippet)
    content = yaml.safe_load(text)
    if isinstance(content, dict):
        if set(content) <= set(ROLES):
            check_inventory(text, tmp_path)
        else:
            check_variables(content)
        return
    for part in content:
        check_play(part) if "hosts" in part else check_task(part)


# --- settings


@pytest.mark.parametrize("snippet", snippets("ini"))
def test_settings_are_known(snippet: str) -> None:
    """Settings of Ansible are some that it has, and name callbacks of this collection; units are not checked."""
    settings = configparser.ConfigParser()
    settings.read_string(snippet)
    if "defaults" in settings:
        rows = C.config.get_configuration_definitions(ignore_private=False).values()
        known = {(place["section"], place["key"]) for row in rows for place in row.get("ini", ())}
        known.add(("defaults", "callback_result_format"))  # of the callback plugins
        assert {(name, key) for name in settings.sections() for key in settings[name]} <= known
        for name in filter(None, settings["defaults"].get("callbacks_enabled", "").split(",")):
            assert exists("plugins/callback/%s.py" % name.strip()[len(COLLECTION) :])


# --- commands

#: Commands that no test runs, and why.
NOT_RUN = {
    "ansible-doc": "prints documentation; tests/unit/test_package.py asks it for all modules",
    "ansible-galaxy collection install git+https://github.com/gpufleet/inference.git": (
        "needs the network; tests/unit/test_package.py installs the built collection"
    ),
    "ansible-inventory": "tests/unit/test_hosts_by_facts.py runs it",
    "antsibull-changelog release": "makes a release",
    "ansible-vault create": "asks for a password and opens an editor",
    "git clone https://github.com/gpufleet/inference.git": "needs the network",
    "pipx": "needs the network",
    "cd": "goes into the clone",
    "podman": "makes the image of the lab where there is no mirror of Debian",
    "mkdir ROOT": "the same",
    "tar -C ROOT": "the same",
    "sh tests/lab/image/setup.sh ROOT": "the same",
    "ssh -L": "opens a tunnel",
}


def commands(text: str) -> Iterator[List[str]]:
    """The words of each command, without comments and the variables before it."""
    for line in re.sub(r"\\\n|> \S+", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: List[str] = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", "|", ";"):
                words.append(word)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []


def exists(name: str) -> bool:
    return (ROOT / name).exists()


def check_playbook(words: List[str]) -> None:
    """The playbook exists, and what -e passes can be read."""
    given = [word for flag, word in zip(["", *words], words) if flag != "-i"]
    (playbook,) = [word for word in given if word.startswith(COLLECTION) or word.endswith(".yml")]
    fqcn = playbook.startswith(COLLECTION)
    assert exists("playbooks/%s.yml" % playbook[len(COLLECTION) :] if fqcn else playbook)
    for flag, value in zip(words, words[1:]):
        if flag == "-e":
            assert json.loads(value) if value.startswith("{") else re.match(r"[a-z_]+=.", value)


def check_command(words: List[str]) -> None:
    command = words[0].rpartition("/")[2]
    if command == "ansible-playbook":
        check_playbook(words[1:])
    elif command == "make":
        targets = re.findall(r"^([a-z-]+):", "".join(path.read_text() for path in MAKEFILES), re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
    elif command in ("python", "python3", "pytest"):
        assert [word for word in words[1:] if "/" in word and "=" not in word and not exists(word)] == []
    else:
        assert any(" ".join(words).startswith(known) for known in NOT_RUN), "name it in NOT_RUN, with the reason"


MAKEFILES = [ROOT / "Makefile", ROOT / "tests/lab/lab.mk"]


@pytest.mark.parametrize("snippet", snippets("shell"))
def test_commands_exist(snippet: str) -> None:
    for words in commands(snippet):
        check_command(words)


def test_every_language_is_known() -> None:
    """A block in another language would be checked by nothing."""
    found = {
        match[1] for pattern in DOCUMENTS for path in ROOT.glob(pattern) for match in BLOCK.finditer(path.read_text())
    }
    assert found <= {"yaml", "shell", "text", "ini"}
