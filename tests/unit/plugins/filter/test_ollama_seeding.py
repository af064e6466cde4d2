# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who downloads and who seeds, over fleets that differ."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.filter import ollama_seeding


def host(needs: str = "", has: str = "", unit: str = "ollama.service") -> Dict[str, Any]:
    return {"unit": unit, "needs": needs.split(), "models": [{"name": name, "digest": "d"} for name in has.split()]}


@pytest.mark.parametrize(
    "hosts, batch, pull, seed",
    [
        ({"a": host("m"), "b": host("m"), "c": host("m")}, "abc", {"a": ["m"]}, {"a": ("m", "bc")}),
        ({"a": host("m"), "b": host(has="m"), "c": host("m")}, "abc", {}, {"b": ("m", "ac")}),
        ({"a": host(has="m"), "b": host("m")}, "b", {}, {"a": ("m", "b")}),  # of an earlier batch
        ({"a": host("m"), "b": host("n")}, "ab", {}, {}),  # nothing to share
        ({"a": host("m")}, "a", {}, {}),
        ({"a": host("m"), "b": {}, "c": None, "d": host("m")}, "abcd", {"a": ["m"]}, {"a": ("m", "d")}),
        ({"a": host("m"), "z": host("m")}, "a", {}, {}),  # z comes later
        (
            {"a": host("m n"), "b": host("n o"), "c": host("o", has="m")},
            "abc",
            {"a": ["n"], "b": ["o"]},
            {"c": ("m", "a"), "a": ("n", "b"), "b": ("o", "c")},
        ),
    ],
)
def test_plan(hosts: Dict[str, Any], batch: str, pull: Dict[str, List[str]], seed: Dict[str, Any]) -> None:
    found = ollama_seeding.FilterModule().filters()["ollama_seeding"](hosts, list(batch))
    assert {name: [item["name"] for item in items] for name, items in found["pull"].items()} == pull
    assert {name: (" ".join(one["models"]), "".join(one["peers"])) for name, one in found["seed"].items()} == seed


def test_what_is_declared_goes_along() -> None:
    pinned = {"unit": "ollama@a.service", "needs": ["m@sha256:abc"], "models": []}
    found = ollama_seeding.plan({"a": pinned, "b": pinned}, ["a", "b"])
    assert found["pull"] == {"a": [{"name": "m", "digest": "abc"}]}
    assert found["seed"]["a"]["unit"] == "ollama@a.service"


def test_a_model_without_a_digest_is_not_there() -> None:
    made = {"unit": "ollama.service", "models": [{"name": "m", "digest": None}]}
    assert ollama_seeding.plan({"a": made, "b": host("m"), "c": host("m")}, ["a", "b", "c"])["pull"] == {
        "b": [{"name": "m"}]
    }


def test_a_host_is_a_peer_once() -> None:
    found = ollama_seeding.plan({"a": host("m n"), "b": host("m n")}, ["a", "b"])
    assert found["seed"] == {"a": {"models": ["m", "n"], "peers": ["b"], "unit": "ollama.service"}}


def test_a_host_that_failed_is_left_out() -> None:
    failed = {"failed": True, "msg": "unreachable"}
    assert ollama_seeding.plan({"a": failed, "b": host("m")}, ["a", "b"]) == {"pull": {}, "seed": {}}
