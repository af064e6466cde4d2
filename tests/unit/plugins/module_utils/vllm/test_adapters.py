# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRA adapters: what is written for vLLM, and what keeps them from being served."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.hf_model.parallel import Parallel
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import adapters, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.adapters import Adapter

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def host():
    warnings = []
    return SimpleNamespace(check_mode=False, warn=warnings.append, warnings=warnings)


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    (tmp_path / "adapter_model.safetensors").touch()
    return tmp_path


def read(host, paths=(), **given):
    return adapters.read({"lora_adapters": given, "model_paths": dict(paths), "user": USER}, host)


def test_by_path_and_by_the_name_of_a_downloaded_model(host, adapter):
    path = str(adapter)
    assert read(host, {"Team/sql": path}, sql="Team/sql", law=path) == [
        Adapter("law", path, 8),
        Adapter("sql", path, 8),
    ]
    assert read(host) == []


def test_the_highest_rank_counts(host, adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 64, "x": "y"}}))
    assert read(host, a=str(adapter))[0].rank == 64


@pytest.mark.parametrize("text", [None, "{", "[]", '{"r": "8"}', '{"r": true}', '{"r": -1}', '{"r": 1e999}', "{}"])
def test_what_is_not_an_adapter(host, adapter, text):
    (adapter / "adapter_config.json").unlink()
    if text is not None:
        (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(Refused, match=r"lora_adapters\.a: .* has no adapter_config\.json with a rank"):
        read(host, a=str(adapter))


def test_an_adapter_without_weights(host, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(Refused, match=r"lora_adapters\.a: .* has no weights"):
        read(host, a=str(adapter))
    (adapter / "adapter_model.bin").touch()
    assert read(host, a=str(adapter))


def test_an_adapter_that_its_user_can_read(adapter):
    (adapter / "adapter_model.bin").symlink_to("/nosuch")  # vLLM prefers the other one
    adapters.check_readable(Adapter("a", str(adapter), 8), USER)
    adapters.check_readable(Adapter("a", "/nosuch", 0), USER)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as somebody else")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_only_root_can_read(name):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own folders are closed to others
        os.chmod(place, 0o755)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            with open(os.path.join(place, file), "w", encoding="utf-8"):
                os.chmod(os.path.join(place, file), 0o600 if file == name else 0o644)
        with pytest.raises(Refused, match=r"lora_adapters\.a: user daemon cannot read .*%s: Permission denied" % name):
            adapters.check_readable(Adapter("a", place, 8), "daemon")


@pytest.mark.parametrize("path", ["Team/unknown", 5, None])
def test_names_that_nothing_was_downloaded_for(host, path):
    with pytest.raises(Refused, match="is neither the path of a directory nor the name of a downloaded model"):
        read(host, a=path)


def test_what_a_play_has_not_downloaded_yet(host):
    with pytest.raises(Refused, match="has no adapter_config"):
        read(host, a="/nosuch")
    host.check_mode = True
    assert read(host, a="/nosuch") == [Adapter("a", "/nosuch", 0)] and "no directory /nosuch" in host.warnings[0]


def declared(*found, **options):
    return settings.declare({"model": "/m", **options}, Parallel(1, 1, 1, ""), None, (), found).config


@pytest.mark.parametrize(("rank", "limit"), [(0, None), (16, None), (17, 32), (64, 64), (300, 512)])
def test_what_is_written(rank, limit):
    config = declared(Adapter("a", "/a", 8), Adapter("b", "/b", rank))
    assert config["enable-lora"] is True and config.get("max-lora-rank") == limit
    assert [json.loads(word) for word in config["lora-modules"]] == [
        {"name": "a", "path": "/a"},
        {"name": "b", "path": "/b"},
    ]
    assert json.loads(declared(Adapter("a", "/a", 8))["lora-modules"]) == {"name": "a", "path": "/a"}
    assert "enable-lora" not in declared()


def test_a_declared_rank():
    assert declared(Adapter("a", "/a", 8), extra_args={"max_lora_rank": 128})["max-lora-rank"] == 128


@pytest.mark.parametrize(
    "found, options, words",
    [
        (Adapter("a", "/a", 600), {}, "lora_adapters.a: its rank is 600; vLLM serves ranks up to 512"),
        (
            Adapter("a", "/a", 64),
            {"extra_args": {"max-lora-rank": 16}},
            "its rank is 64, but extra_args.max-lora-rank is",
        ),
        (
            Adapter("chat", "/a", 8),
            {"served_model_name": ["x", "chat"]},
            "lora_adapters.chat: this is the name of the model",
        ),
        (Adapter("a", "/a", 8), {"extra_args": {"lora_modules": ["b=/b"]}}, "use the option lora_adapters"),
        (Adapter("a", "/a", 8), {"extra_args": {"no-enable-lora": True}}, "use the option lora_adapters"),
    ],
)
def test_what_is_refused(found, options, words):
    with pytest.raises(Refused) as caught:
        declared(found, **options)
    assert words in str(caught.value)
