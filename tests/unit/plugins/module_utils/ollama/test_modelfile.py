# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modelfiles as people write them."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.modelfile import parse
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

WHOLE = '''# of the house
FROM /srv/models/house.gguf

PARAMETER num_ctx 8192
PARAMETER temperature 0.5
PARAMETER stop "<|end|>"
parameter stop User:
PARAMETER use_mmap false
PARAMETER mode fast
TEMPLATE """{{ .System }}
{{ .Prompt }}"""
SYSTEM """Be brief."""
LICENSE "ours"
MESSAGE user Hi there
MESSAGE assistant """Hello,
you."""
RENDERER plain
'''


def test_everything_that_is_known() -> None:
    found = parse(WHOLE)
    assert found.source == "/srv/models/house.gguf"
    assert found.from_file
    assert found.body == {
        "parameters": {
            "num_ctx": 8192,
            "temperature": 0.5,
            "stop": ["<|end|>", "User:"],
            "use_mmap": False,
            "mode": "fast",
        },
        "template": "{{ .System }}\n{{ .Prompt }}",
        "system": "Be brief.",
        "license": ["ours"],
        "messages": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello,\nyou."}],
        "renderer": "plain",
    }


def test_from_a_model_of_the_store() -> None:
    found = parse("from llama3.3:70b\nSYSTEM Be brief.")
    assert found.source == "llama3.3:70b"
    assert not found.from_file


@pytest.mark.parametrize(
    "text, reason",
    [
        ("SYSTEM x", "there is no FROM"),
        ("FROM a\nFROM b", "line 2: a second FROM"),
        ("FROM ./a.gguf", "FROM ./a.gguf: expected an absolute path"),
        ("FROM a.gguf", "expected an absolute path"),
        ("FROM a\n\nADAPTER /srv/lora", "line 3: ADAPTER is not supported"),
        ("FROM a\nPARAMETER num_ctx", "line 2: PARAMETER num_ctx has no value"),
        ("FROM a\nMESSAGE robot x", "line 2: MESSAGE robot"),
        ('FROM a\nSYSTEM """x\ny', 'line 2: """ is not closed'),
    ],
)
def test_what_cannot_be_used(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse(text)
