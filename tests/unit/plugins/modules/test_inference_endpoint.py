# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: its options, its result, and how a failure is told."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.modules import inference_endpoint


def test_options_are_given_on(run_module, monkeypatch):
    seen = {}

    def probe(params, check_mode, warn):
        seen.update(params)
        return {"changed": False, "msg": "ok", "verdict": "ok"}

    monkeypatch.setattr(inference_endpoint, "probe", probe)
    result = run_module(
        inference_endpoint.main, {"url": "http://h", "api_key": "sesame-key", "smoke": True}, check=True
    )
    assert result["verdict"] == "ok"
    assert seen["api_key"] == "sesame-key"
    assert (seen["state"], seen["timeout"], seen["tokens"]) == ("ready", 60.0, 1)
    assert result.get("invocation") is None or "sesame" not in str(result["invocation"])


@pytest.mark.parametrize(
    "error, expected",
    [
        (Failed("busy: 3 running", {"verdict": "busy"}), {"msg": "busy: 3 running", "verdict": "busy"}),
        (Refused("'x' is no URL"), {"msg": "'x' is no URL (nothing was changed)"}),
    ],
)
def test_a_failure_is_told(run_module, monkeypatch, error, expected):
    def probe(params, check_mode, warn):
        raise error

    monkeypatch.setattr(inference_endpoint, "probe", probe)
    result = run_module(inference_endpoint.main, {"url": "http://h"})
    assert result["failed"]
    assert {key: result.get(key) for key in expected} == expected


def test_the_url_is_needed(run_module):
    assert "url" in run_module(inference_endpoint.main)["msg"]
