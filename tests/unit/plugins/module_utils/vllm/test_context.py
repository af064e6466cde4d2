# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a request may be, by the rules of each release."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import context, releases

LENGTH = {"max_position_embeddings": 32768}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {"original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope"}}


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, None),
        ({"n_positions": 99}, 99),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": 99, "seq_length": 50}, 50),
        ({"text_config": LENGTH, "max_position_embeddings": 1}, 32768),
        (dict(LENGTH, model_max_length=131072), 131072),  # Command-R
        (dict(LENGTH, rope_scaling={"rope_type": "llama3", "factor": 8.0}), 32768),
        (dict(LENGTH, rope_scaling={"type": "linear", "factor": 2.0}), 65536),
        (dict(LENGTH, rope_scaling={"type": "linear", "factor": float("nan")}), 32768),
        (dict(LENGTH, rope_scaling={"type": "linear", "factor": 2.0}, model_type="gemma3"), 32768),
        (dict(LENGTH, rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0}}), 65536),
        ({"text_config": {"model_type": "gemma3_text"}}, 131072),
    ],
)
def test_the_longest(config, expected):
    assert context.read(config).longest == expected
    assert context.read(config, (0, 33, 0)).longest == expected


@pytest.mark.parametrize(("release", "tokens"), [((0, 29, 0), 131072), ((0, 30, 0), 32768), ((), 131072)])
def test_yarn_by_release(release, tokens):
    """Since 0.30 config.json must have the product itself."""
    assert context.read(dict(LENGTH, rope_scaling=YARN), release).longest == tokens
    whole = dict(max_position_embeddings=131072, rope_scaling=YARN)
    assert context.read(whole, release).longest == 131072


def test_longrope_starts_with_the_original_length():
    found = context.read(dict(LONGROPE, max_position_embeddings=131072))
    assert (found.longest, found.default) == (131072, 4096)


def test_overrides():
    """Qwen's own way to a longer context, and sub-configs, which are merged."""
    base = {"max_position_embeddings": 40960, "rope_scaling": None, "text_config": {"a": 1, "b": {"c": 1}}}
    found = context.overridden(base, {"max_position_embeddings": 131072, "rope_parameters": dict(YARN, rope_theta=1)})
    assert context.read(found, (0, 33, 0)).longest == 131072 and "rope_scaling" not in found
    merged = context.overridden(base, {"text_config": {"b": {"d": 2}}})["text_config"]
    assert merged == {"a": 1, "b": {"d": 2}}


@pytest.mark.parametrize(
    "version, numbers",
    [("0.33.0", (0, 33, 0)), ("0.28.0+cu129", (0, 28, 0)), ("0.8.5.post1", (0, 8, 5)), ("0.1.dev1+gabc", ()), ("", ())],
)
def test_versions(version, numbers):
    assert releases.parse(version) == numbers


@pytest.mark.parametrize(
    "release, share, part",
    [((0, 19, 1), 0.9, 128), ((0, 20, 0), 0.92, 128), ((0, 28, 0), 0.92, 128), ((0, 29, 0), 0.92, 32), ((), 0.92, 32)],
)
def test_what_differs_by_release(release, share, part):
    assert (releases.memory_share(release), releases.expert_part(release, 128)) == (share, part)


@pytest.mark.parametrize(
    "release, paths", [((0, 20, 0), 1), ((0, 22, 1), 3), ((0, 25, 1), 3), ((0, 27, 1), 4), ((0, 33, 0), 4), ((), 4)]
)
def test_on_which_paths_the_key_is_asked_for(release, paths):
    assert releases.paths_with_key(release) == ("/v1", "/v2", "/inference", "/cohere")[:paths]
