# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who downloads a model and who seeds it, over fleets that differ: which of two hosts' entries mean the same model."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.filter.model_seeding import FilterModule

plan = FilterModule().filters()["model_seeding"]


def there(name: str, **more: Any) -> Dict[str, Any]:
    return {"item": {"name": name, **more}, "path": "/there"}


def lacks(name: str, **more: Any) -> Dict[str, Any]:
    return {"item": {"name": name, **more}, "path": None, "needs": [name]}


def test_who_downloads_and_who_seeds() -> None:
    results = {
        "a": [lacks("o/one"), lacks("o/two"), lacks("g/g", source="git")],
        "b": [lacks("o/one"), there("o/two"), lacks("g/g", source="git")],
        "c": [lacks("o/one"), lacks("o/two"), lacks("o/alone")],
        "d": [],
    }
    assert plan(results, ["a", "b", "c", "d"]) == {
        "pull": {"a": [{"name": "o/one"}]},
        "seed": {
            "a": {"models": [{"name": "o/one"}], "peers": ["b", "c"]},
            "b": {"models": [{"name": "o/two"}], "peers": ["a", "c"]},
        },
    }
    # of a later batch, whose hosts alone lack it now
    results["a"][0] = there("o/one")
    assert plan(results, ["c"])["seed"]["a"] == {"models": [{"name": "o/one"}], "peers": ["c"]}


def test_two_hosts_are_enough_to_share() -> None:
    assert plan({"a": [lacks("o/m")], "b": [lacks("o/m")]}, ["a", "b"])["pull"] == {"a": [{"name": "o/m"}]}


def test_a_host_is_a_peer_once() -> None:
    results = {"a": [lacks("o/1"), lacks("o/2")], "b": [lacks("o/1"), lacks("o/2")]}
    assert plan(results, ["a", "b"])["seed"] == {"a": {"models": [{"name": "o/1"}, {"name": "o/2"}], "peers": ["b"]}}


def test_another_revision_or_hub_is_another_model() -> None:
    hub, none = {"source": "modelscope"}, {"pull": {}, "seed": {}}
    assert plan({"a": [there("o/m")], "b": [lacks("o/m", revision="v2")]}, ["b"]) == none
    assert plan({"a": [there("o/m")], "b": [lacks("o/m", **hub)]}, ["b"]) == none
    assert plan({"a": [there("o/m", **hub)], "b": [lacks("o/m", **hub)]}, ["b"])["seed"]["a"]["peers"] == ["b"]
    same = {"a": [there("o/m", source="huggingface", revision="")], "b": [lacks("o/m", revision=None)]}
    assert plan(same, ["b"])["seed"]["a"]["peers"] == ["b"]


def test_the_seeder_is_told_of_it_as_it_is_declared_there() -> None:
    here = {"source": "modelscope", "revision": "v1", "root": "/data", "token": "t", "include": ["*"]}
    results = {"b": [lacks("o/m", source="modelscope", revision="v1")], "a": [there("o/m", **here)]}
    told = {"name": "o/m", "source": "modelscope", "revision": "v1", "root": "/data"}
    assert plan(results, ["b"]) == {"pull": {}, "seed": {"a": {"models": [told], "peers": ["b"]}}}


def test_one_that_failed_neither_has_it_nor_waits_for_it() -> None:
    failed = {"item": {"name": "o/m"}, "failed": True, "msg": "no such host"}
    assert plan({"a": [failed], "b": [lacks("o/m")]}, ["a", "b"]) == {"pull": {}, "seed": {}}


# --- models of Ollama


def serves(needs: str = "", has: str = "", unit: str = "ollama.service") -> Dict[str, Any]:
    return {"unit": unit, "needs": needs.split(), "models": [{"name": name, "digest": "d"} for name in has.split()]}


@pytest.mark.parametrize(
    "hosts, batch, pull, seed",
    [
        ({"a": serves("m"), "b": serves("m"), "c": serves("m")}, "abc", {"a": ["m"]}, {"a": ("m", "bc")}),
        ({"a": serves("m"), "b": serves(has="m"), "c": serves("m")}, "abc", {}, {"b": ("m", "ac")}),
        ({"a": serves(has="m"), "b": serves("m")}, "b", {}, {"a": ("m", "b")}),  # of an earlier batch
        ({"a": serves("m"), "b": serves("n")}, "ab", {}, {}),  # nothing to share
        ({"a": serves("m")}, "a", {}, {}),
        ({"a": serves("m"), "b": {}, "c": None, "d": serves("m")}, "abcd", {"a": ["m"]}, {"a": ("m", "d")}),
        ({"a": serves("m"), "z": serves("m")}, "a", {}, {}),  # z comes later
        (
            {"a": serves("m n"), "b": serves("n o"), "c": serves("o", has="m")},
            "abc",
            {"a": ["n"], "b": ["o"]},
            {"c": ("m", "a"), "a": ("n", "b"), "b": ("o", "c")},
        ),
    ],
)
def test_who_pulls_and_who_seeds_models_of_ollama(
    hosts: Dict[str, Any], batch: str, pull: Dict[str, List[str]], seed: Dict[str, Any]
) -> None:
    found = plan(hosts, list(batch))
    assert {name: [item["name"] for item in items] for name, items in found["pull"].items()} == pull
    assert {
        name: (" ".join(model["name"] for model in one["models"]), "".join(one["peers"]))
        for name, one in found["seed"].items()
    } == seed


def test_what_is_declared_goes_along() -> None:
    pinned = {"unit": "ollama@a.service", "needs": ["m@sha256:abc"], "models": []}
    found = plan({"a": pinned, "b": pinned}, ["a", "b"])
    assert found["pull"] == {"a": [{"name": "m", "digest": "abc"}]}
    assert found["seed"]["a"]["unit"] == "ollama@a.service"


def test_a_model_without_a_digest_is_not_there() -> None:
    made = {"unit": "ollama.service", "models": [{"name": "m", "digest": None}]}
    assert plan({"a": made, "b": serves("m"), "c": serves("m")}, ["a", "b", "c"])["pull"] == {"b": [{"name": "m"}]}


def test_a_host_is_a_peer_of_ollama_once() -> None:
    found = plan({"a": serves("m n"), "b": serves("m n")}, ["a", "b"])
    models = [{"name": "m", "source": "ollama"}, {"name": "n", "source": "ollama"}]
    assert found["seed"] == {"a": {"models": models, "peers": ["b"], "unit": "ollama.service"}}


def test_a_host_that_failed_is_left_out() -> None:
    failed = {"failed": True, "msg": "unreachable"}
    assert plan({"a": failed, "b": serves("m")}, ["a", "b"]) == {"pull": {}, "seed": {}}
