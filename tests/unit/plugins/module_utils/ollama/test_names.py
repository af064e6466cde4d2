# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import names


@pytest.mark.parametrize(
    "name, full",
    [
        ("llama3.3", "registry.ollama.ai/library/llama3.3:latest"),
        ("llama3.3:70b", "registry.ollama.ai/library/llama3.3:70b"),
        ("me/m:1", "registry.ollama.ai/me/m:1"),
        ("hub.example:5000/me/m", "hub.example:5000/me/m:latest"),
        ("hub.example:5000/me/m:q4_0", "hub.example:5000/me/m:q4_0"),
    ],
)
def test_full(name, full):
    assert names.full(name) == full


@pytest.mark.parametrize("name", ["", "a/b/c/d", "../x", "a b", "m:", "m:../../x", "/m", "a/../b", "x" * 81])
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match="is not a model name"):
        names.full(name)


def test_same_ignores_case_and_what_is_filled_in():
    assert names.same("M70B", "registry.ollama.ai/library/m70b:latest")
    assert not names.same("m70b", "m70b:q4")


def test_manifest():
    expected = "/srv/models/manifests/registry.ollama.ai/library/m70b/latest"
    assert names.manifest("/srv/models", "m70b") == expected
