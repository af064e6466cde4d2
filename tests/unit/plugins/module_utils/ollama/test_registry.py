# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry's manifest, from a server that gives one and ones that do not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import registry
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "config": {"digest": "sha256:c", "size": 279},
        "layers": [{"digest": "sha256:l", "size": 673511872, "mediaType": "application/vnd.ollama.image.model"}],
    }
).encode()


@pytest.mark.parametrize(
    "name, scheme, place",
    [
        ("llama3.3:70b", "https", "registry.ollama.ai/v2/library/llama3.3/manifests/70b"),
        ("me/mine", "https", "registry.ollama.ai/v2/me/mine/manifests/latest"),
        ("http://10.0.0.1:5000/library/a:v1", "http", "10.0.0.1:5000/v2/library/a/manifests/v1"),
        ("reg.example.com/team/a:v1", "https", "reg.example.com/v2/team/a/manifests/v1"),
    ],
)
def test_where_it_is(name: str, scheme: str, place: str) -> None:
    assert registry.manifest_url(name) == "%s://%s" % (scheme, place)


def test_digest_and_layers(ollama: Any) -> None:
    ollama.answers["/v2/library/a/manifests/v1"] = (200, MANIFEST)
    name = "http://127.0.0.1:%d/library/a:v1" % ollama.port
    # a proxy of the server is no way to this machine itself
    found = registry.manifest(name, insecure=True, environ={"HTTP_PROXY": "http://127.0.0.1:1"})
    assert found.digest == hashlib.sha256(MANIFEST).hexdigest()
    assert found.layers == {"sha256:c": 279, "sha256:l": 673511872}


@pytest.mark.parametrize("answer", [(404, b"{}"), (200, b"<html>"), (200, b"{}"), (200, b"[]")])
def test_nothing_usable(ollama: Any, answer: Any) -> None:
    ollama.answers["/v2/library/a/manifests/v1"] = answer
    with pytest.raises(Failed, match="/v2/library/a/manifests/v1: "):
        registry.manifest("http://127.0.0.1:%d/library/a:v1" % ollama.port, insecure=False, environ={})
