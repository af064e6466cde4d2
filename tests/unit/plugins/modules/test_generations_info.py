# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: it lists what is on the host, and warns of what it cannot use."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import generations
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Service
from ansible_collections.gpufleet.inference.plugins.modules import generations_info


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(generations, "FOLDER", str(tmp_path / "generations"))
    return tmp_path / "generations"


def accept(unit, **options):
    generations.accept(Service(unit, "", options), "Ollama", {"ready_seconds": 0.4}, "0.32.15", False, Outcome())


def test_a_host_without_generations(run_module, folder):
    result = run_module(generations_info.main)
    assert (result["msg"], result["generations"], result["table"]) == ("0 generations of 0 services", {}, [])
    assert not folder.exists()


def test_all_services_or_one(run_module, folder):
    accept("ollama.service", keep_alive="5m")
    accept("ollama.service", keep_alive="1h")
    accept("vllm@chat.service", port=8000)
    result = run_module(generations_info.main)
    assert not result["changed"] and result["msg"] == "3 generations of 2 services"
    assert [one["number"] for one in result["generations"]["ollama.service"]] == [1, 2]
    for name in ("ollama", "ollama.service"):
        assert list(run_module(generations_info.main, {"unit": name})["generations"]) == ["ollama.service"]


def test_a_damaged_file_is_a_warning_and_hides_no_other(run_module, folder):
    accept("ollama.service", keep_alive="5m")
    (folder / "vllm@chat.service.json").write_text("{")
    (folder / ".ollama.service.json.new").write_text("left by a kill")
    result = run_module(generations_info.main, warnings=("vllm@chat.service.json does not hold generations",))
    assert list(result["generations"]) == ["ollama.service"]


def test_another_user_than_root_is_told_to_become_root(run_module, folder, monkeypatch):
    accept("ollama.service", keep_alive="5m")
    monkeypatch.setattr(generations.os, "access", lambda path, mode: False)
    result = run_module(generations_info.main, warnings=("ollama.service.json cannot be read by user",))
    assert result["generations"] == {}
