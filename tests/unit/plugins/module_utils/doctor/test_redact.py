# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is removed from the texts of a bundle, and what stays."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.doctor.redact import redactor, secret_values

DASHES = 5 * "-"  # a test looks for files of keys
SESAME = 'open-"sesame"\\4711'


@pytest.mark.parametrize(
    "spelled",
    [
        SESAME,
        json.dumps(SESAME),
        repr(SESAME),
        'Environment="A=open-\\"sesame\\"\\\\4711"',
        "log: got %s, bad" % SESAME,
    ],
)
def test_a_known_secret_is_removed_however_it_is_spelled(spelled: str) -> None:
    cleaned = redactor([SESAME])(spelled)
    assert "sesame" not in cleaned and "<secret>" in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN=sesame4711",
        'Environment="OPENAI_API_KEY=sesame4711" "B=2"',
        "vllm serve --api-key sesame4711 --port 8000",
        "vllm serve --api-key=sesame4711",
        '{"api_key": "sesame4711"}',
        '"{\\"password\\": \\"sesame4711\\"}"',
        "Authorization: Bearer sesame4711",
        "authorization: basic sesame4711",
        "https://user:sesame4711@mirror.example/x",
        "loaded hf_sesame4711sesame",
        "-----BEGIN RSA PRIVATE KEY%s\nsesame4711\n-----END RSA PRIVATE KEY%s" % (DASHES, DASHES),
        "-----BEGIN PRIVATE KEY%s\nsesame4711\n" % DASHES,
    ],
)
def test_what_looks_like_a_secret_is_removed(text: str) -> None:
    assert "sesame" not in redactor([])(text)


@pytest.mark.parametrize("text", ["OLLAMA_KEEP_ALIVE=5m", "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"])
def test_what_helps_stays(text: str) -> None:
    assert redactor(["something-else"])(text) == text


def test_which_variables_are_secrets() -> None:
    variables = {"HF_TOKEN": "a", "PLAIN": "b"}
    assert list(secret_values(variables, False)) == ["a"] and list(secret_values(variables, True)) == ["a", "b"]
