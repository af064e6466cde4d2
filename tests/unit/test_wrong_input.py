# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong input and the one line that the roles print for it: each row is a host of one run.

Nothing reaches a host: nothing listens at these addresses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

Row = Tuple[str, Dict[str, Any], str]
ROWS: List[Row] = [
    ("gpu_host", {"gpu_host_required": "maybe"}, "gpu_host_required is 'maybe'; expected true or false"),
    ("gpu_host", {"gpu_host_pynvml": 2}, "gpu_host_pynvml is 2; expected true or false"),
    ("gpu_host", {"gpu_host_limits": ["memlock"]}, "gpu_host_limits is a list; expected a dictionary"),
    ("gpu_host", {"gpu_host_facts_timeout": "10s"}, "gpu_host_facts_timeout is '10s'; expected a number"),
    ("ollama", {"ollama_context_length": "32k"}, "ollama_context_length is '32k'; expected a whole number"),
    ("ollama", {"ollama_sched_spread": "maybe"}, "ollama_sched_spread is 'maybe'; expected true or false"),
    ("ollama", {"ollama_isolate": "maybe"}, "ollama_isolate is 'maybe'; expected true or false"),
    (
        "ollama",
        {"ollama_state": "gone"},
        "ollama_state is 'gone'; expected one of present, stopped, absent, uninstalled",
    ),
    ("ollama", {"ollama_kv_cache_type": ["q8_0"]}, "ollama_kv_cache_type is a list; expected one of f16, q8_0, q4_0,"),
    ("ollama", {"ollama_timeout": "3m"}, "ollama_timeout is '3m'; expected a number"),
    ("ollama", {"gpufleet_prove": "yes"}, "gpufleet_prove is 'yes'; expected one of change, now"),
    ("ollama", {"ollama_environment": "TZ"}, "ollama_environment is a text; expected a dictionary"),
    ("ollama", {"ollama_instances": {"chat": {}}}, "ollama_instances is a dictionary; expected a list"),
    ("ollama", {"ollama_instances": "chat"}, "ollama_instances is 'chat'; expected a list of dictionaries"),
    ("ollama", {"ollama_instances": ["chat"]}, "ollama_instances[0] is a text; expected a dictionary"),
    ("ollama", {"ollama_instances": [{"host": ":1"}]}, "ollama_instances[0].name is missing"),
    (
        "ollama",
        {"ollama_instances": [{"name": "chat", "visble_devices": [0]}]},
        "ollama_instances[chat].visble_devices is not an option; did you mean visible_devices?",
    ),
    (
        "ollama",
        {"ollama_instances": [{"name": "chat", "num_parallel": "four"}]},
        "ollama_instances[chat].num_parallel is 'four'; expected a whole number",
    ),
    (
        "ollama",
        {"ollama_version": "1.2.3", "ollama_mirror": "/no/such/mirror"},
        "ollama_mirror: there is no /no/such/mirror/v1.2.3/ollama-linux-* on the controller; expected the layout of",
    ),
    ("vllm", {"vllm_instances": {"chat": {}}}, "vllm_instances is a dictionary; expected a list"),
    ("vllm", {"vllm_instances": "chat"}, "vllm_instances is 'chat'; expected a list of dictionaries"),
    ("vllm", {"vllm_instances": [{"name": "a"}], "vllm_port": "http"}, "vllm_port is 'http'; expected a number"),
    (
        "vllm",
        {"vllm_instances": [{"name": "a", "max_num_seq": 4}]},
        "vllm_instances[a].max_num_seq is not an option; did you mean max_num_seqs?",
    ),
    ("vllm", {"vllm_models": "Qwen/Qwen3-8B"}, "vllm_models: expected a list of dictionaries, each with the name of a"),
    ("vllm", {"vllm_models": ["Qwen/Qwen3-8B"]}, "vllm_models: expected a list of dictionaries, each with the name of"),
    (
        "vllm",
        {"vllm_models": [{"name": "Qwen/Qwen3-8B", "revison": "main"}]},
        "vllm_models[Qwen/Qwen3-8B].revison is not an option; did you mean revision?",
    ),
    (
        "vllm",
        {"vllm_models": [{"name": "Qwen/Qwen3-8B", "offline": "maybe"}]},
        "vllm_models[Qwen/Qwen3-8B].offline is 'maybe'; expected true or false",
    ),
    ("vllm", {"vllm_version": "0.33.0", "vllm_installer": "conda"}, "vllm_installer is 'conda'; expected one of auto,"),
    ("llama_server", {"llama_server_ctx_size": "8k"}, "llama_server_ctx_size is '8k'; expected a whole number"),
    ("llama_server", {"llama_server_models": {"name": "a"}}, "llama_server_models: expected a list of dictionaries"),
    ("torchrun", {"torchrun_join_timeout": "1m"}, "torchrun_join_timeout is '1m'; expected a number"),
    ("torchrun", {"torchrun_environment": ["A=1"]}, "torchrun_environment is a list; expected a dictionary"),
    ("torchrun", {"torchrun_state": "running"}, "torchrun_state is 'running'; expected one of present, started,"),
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Dict[str, List[str]], str]:
    """Of each host the messages of what failed there, and the output of the run."""
    folder = tmp_path_factory.mktemp("wrong")
    hosts = {"row%d" % number: dict(row[1], role=row[0]) for number, row in enumerate(ROWS)}
    inventory = {"all": {"hosts": hosts, "vars": {"ansible_host": "127.0.0.1", "ansible_port": 1}}}
    task = {"ansible.builtin.include_role": {"name": "gpufleet.inference.{{ role }}"}}
    plays = [{"hosts": "all", "gather_facts": False, "strategy": "free", "tasks": [task]}]
    for name, content in (("hosts.json", inventory), ("play.yml", plays)):
        (folder / name).write_text(json.dumps(content))
    environ = dict(
        os.environ,
        ANSIBLE_CALLBACK_PLUGINS=str(ROOT / "tests/fleet/callback_plugins"),
        ANSIBLE_CALLBACKS_ENABLED="results",
        ANSIBLE_COLLECTIONS_PATH=str(ROOT / ".collections"),
        ANSIBLE_CALLBACK_RESULT_FORMAT="yaml",
        ANSIBLE_HOME=str(folder),
        ANSIBLE_NOCOLOR="1",
        GPUFLEET_RESULTS=str(folder / "results.jsonl"),
    )
    words = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.json", "-f", "8", "play.yml"]
    done = subprocess.run(
        words, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said: Dict[str, List[str]] = {}
    for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        if result.get("status") == "failed":
            messages = [one["msg"] for one in result["result"].get("results", []) if "msg" in one]
            said.setdefault(result["host"], []).extend(messages or [result["result"]["msg"]])
    return said, done.stdout + done.stderr


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda number: "%s-%s" % (number, ROWS[number][0]))
def test_wrong_input_is_one_line_that_names_the_variable(failures: Any, number: int) -> None:
    said, output = failures
    _role, _variables, sentence = ROWS[number]
    assert len(said.get("row%d" % number, ())) == 1, (said.get("row%d" % number), output[-3000:])
    (message,) = said["row%d" % number]
    assert message.startswith(sentence), message
    assert message.endswith("(nothing was changed)") or "expected the layout" in message, message
    assert "\n" not in message and len(message) < 400


def test_no_specification_is_printed(failures: Any) -> None:
    """Ansible's own check of a role prints all of it, hundreds of lines, for each host."""
    _said, output = failures
    assert "argument_spec_data" not in output and "short_description" not in output
    assert len(output.splitlines()) < 25 * len(ROWS)
