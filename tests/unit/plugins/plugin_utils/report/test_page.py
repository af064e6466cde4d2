# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page as text: nothing in the data can leave its block, and nothing in the page reaches for a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.inference.plugins.plugin_utils.report import page

EMPTY: Dict[str, Any] = {"read_at": 0, "hosts": [], "rollouts": []}
EVIL = ["</script><script>alert(1)</script>", "<!--<script>", "\u2028", "&lt;", "$style", "{{ 7 * 7 }}", "\x00\x1b[2J"]


def block(text: str) -> str:
    """What a browser takes as the data: everything up to the first end tag."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("evil", EVIL)
def test_a_text_cannot_end_the_block(evil: str) -> None:
    text = page.render({**EMPTY, "hosts": [{"name": evil}]})
    assert json.loads(block(text))["hosts"] == [{"name": evil}]
    assert text.count("<script") == 2 + page.render(EMPTY).count("<script") - 2


@given(st.text(), st.text())
def test_any_text_comes_back_as_it_was(key: str, value: str) -> None:
    inert = page.block({key: value})
    assert json.loads(inert) == {key: value}
    assert not re.search(r"[<>&\x00-\x1f\x7f\u2028\u2029]", inert)


def test_the_policy_allows_the_own_script_and_style_alone() -> None:
    text = page.render(EMPTY)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for name in ("style", "script"):
        (content,) = re.findall(r"<%s>(.*?)</%s>" % (name, name), text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert "%s-src 'sha256-%s'" % (name, digest) in policy


def test_the_page_refers_to_nothing_outside_and_writes_no_html() -> None:
    text = page.render(EMPTY)
    assert re.findall(r"""(?:src|href)=(?!"#)\S*|url\(|@import|fetch\(|XMLHttp|import\(""", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser", text) == []


def test_a_value_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        page.render({**EMPTY, "read_at": float("nan")})
