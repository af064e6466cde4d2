# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: what it refuses, and that it shows no key."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.modules import monitoring_service

ROW = {"job": "vllm", "host": "gpu1", "address": "192.0.2.1", "port": 8000, "labels": {"unit": "vllm@a"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"targets": [dict(ROW, port="http")]}, "vllm of gpu1 has the port 'http'"),
        ({"targets": [dict(ROW, address="a b")]}, "has the address 'a b'; expected a name"),
        ({"targets": [dict(ROW, job="../x")]}, "has the job '../x'"),
        ({"targets": [dict(ROW, labels={"A-b": 1})]}, "has the label 'A-b'"),
        ({"targets": [dict(ROW, key="key-1")]}, "needs the key key-1, which is not among keys"),
        ({"keys": {"../x": "sesame"}}, "keys: '../x' is not a name"),
        ({"host": "0.0.0.0"}, "anyone there could read all metrics"),
    ],
)
def test_what_is_refused(run_module, given, words):
    result = run_module(monitoring_service.main, given)
    assert result["failed"] and words in result["msg"] and "sesame" not in str(result)
