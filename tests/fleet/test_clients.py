# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A managed host with the real worker, as those see it who use it: PyPI's clients, and several users at once.

The clients run on this machine in an environment of their own in the cache; the host gets none of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "lab"), str(TESTS / "lab/ollama")]

import archive  # noqa: E402
import clients  # noqa: E402
import hostsetup  # noqa: E402


@pytest.fixture(scope="module")
def managed(lab: Any) -> Iterator[str]:
    """A host that site.yml has set up, with the real worker for the CPU, reachable from here, two tiny models on it."""
    host = lab.reset("gpu1")
    hostsetup.uninstall(host)
    lab.state(host, "none")
    words = {
        "ollama_archive": str(archive.path(worker="cpu")),
        "ollama_visible_devices": None,
        "ollama_sched_spread": False,
        "ollama_num_parallel": 2,
        "ollama_max_loaded_models": 2,
        "ollama_host": "0.0.0.0",
        "ollama_allow_unauthenticated": True,
        "gpu_host_required": False,
    }
    run = lab.playbook("site.yml", "--limit", host, "-e", json.dumps(words), warnings=True)
    assert re.search(r"%s: ok" % host, run.output), run.output
    hostsetup.add_models(host, "tiny")
    copied = lab.module(host, "ollama_model", {"models": [{"name": "second", "copy_of": "tiny"}]})
    assert not copied["failed"], copied
    yield host
    lab.state(host)
    hostsetup.uninstall(host)


def test_clients(managed: str) -> None:
    address = hostsetup.sh(managed, "hostname -I").split()[0]
    script = str(TESTS / "fleet/host/clients.py")
    done = subprocess.run(
        [clients.path(), script, "http://%s:11434" % address, "tiny"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert sorted(told["list"]) == ["second:latest", "tiny:latest"]
    assert told["show"] == "llama"
    assert told["generate"] == [True, 5, 5]
    assert told["stream"][-1] is True and not any(told["stream"][:-1])
    assert told["chat"] == ["assistant", 5]
    assert told["embed"] == 501
    assert "tiny:latest" in told["ps"]
    assert told["missing"] == 404
    assert sorted(told["openai models"]) == ["second:latest", "tiny:latest"]
    assert told["openai chat"] == ["length", 5]
    assert told["openai stream"] == ["chat.completion.chunk", "length"]
    assert told["openai completion"] == ["length", 5]
    assert told["openai missing"] == 404


def test_several_users_of_one_and_of_two_models(managed: str, lab: Any) -> None:
    words = {"loadtest_models": ["tiny", "second"], "loadtest_users": 4, "loadtest_requests": 1, "loadtest_tokens": 24}
    run = lab.playbook("playbooks/loadtest.yml", "--limit", managed, "-e", json.dumps(words))
    print(run.output)
    one, two = run.of("inference_loadtest", managed)[-1]["results"]
    assert [model["name"] for model in one["models"]] == ["tiny"]
    assert [(model["name"], model["requests"]) for model in two["models"]] == [("tiny", 2), ("second", 2)]
    for result in (one, two):
        assert result["errors"] == []
        assert result["tokens_per_second"] > 0
        for model in result["models"]:
            assert model["tokens"] == 24 * model["requests"]
            assert 0 < model["first_token_seconds"]["median"] < model["answer_seconds"]["median"]
            assert model["between_tokens_seconds"]["median"] > 0
    # two at a time (num_parallel), so the other two wait for at least one answer
    (model,) = one["models"]
    assert model["first_token_seconds"]["most"] > 0.5 * 23 * model["between_tokens_seconds"]["median"]
