# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the module is told of models; the rest, which it has in common with ollama_seed, is tested in test_ollama_seed.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.inference.plugins.modules import model_seed


def test_what_a_model_of_a_hub_must_be_told_by(run_module: Any) -> None:
    given = {"token": "0" * 32, "models": [{"source": "huggingface"}]}
    assert "required arguments: name" in run_module(model_seed.main, given)["msg"]
    given["models"] = [{"name": "o/a", "source": "git"}]
    assert "value of source must be one of: huggingface, modelscope" in run_module(model_seed.main, given)["msg"]
