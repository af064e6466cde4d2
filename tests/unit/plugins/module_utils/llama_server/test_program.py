# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the program takes by its own help, and what of a configuration that rejects."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import program
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused


@pytest.fixture
def flags(fixture_text):
    return program.parse_help(fixture_text("llama_server/help.txt"))


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("--model", 1, []),
        ("-m", 1, []),
        ("LLAMA_ARG_MODEL", 1, []),
        ("HF_TOKEN", 1, []),
        ("--metrics", 0, []),
        ("--no-warmup", 0, []),
        ("--flash-attn", 1, []),
        ("--split-mode", 1, ["none", "layer", "row", "tensor"]),
        ("LLAMA_ARG_CACHE_TYPE_V", 1, ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]),
        ("--control-vector-layer-range", 2, []),
        ("--override-tensor", 1, []),
        ("--fim-qwen-1.5b-default", 0, []),
        ("--spec-draft-hf", 1, []),
    ],
)
def test_the_help_is_read(flags, name, values, allowed):
    assert flags[name] == program.Flag(values, allowed)


def test_all_of_it_is_read(fixture_text, flags):
    text = fixture_text("llama_server/help.txt")
    assert len([name for name in flags if name.startswith("LLAMA_")]) == len(
        {line.split("env: ")[1].rstrip(")") for line in text.splitlines() if "(env: LLAMA_" in line}
    )
    assert "-----" not in flags and program.parse_help("nothing of the kind\n-") == {}


def test_what_it_takes_is_accepted(flags):
    arguments = ["--no-warmup", "--top-k", "-1", "--control-vector-layer-range", "1", "2", "-fa", "on"]
    program.check(flags, {"LLAMA_ARG_CTX_SIZE": "1", "LLAMA_ARG_SPLIT_MODE": "row", "PATH": "/x"}, arguments)
    program.check(flags, {}, [])


@pytest.mark.parametrize(
    ("variables", "arguments", "words"),
    [
        (
            {"LLAMA_ARG_CTXSIZE": "1"},
            [],
            "LLAMA_ARG_CTXSIZE: this llama-server does not read it; did you mean LLAMA_ARG_",
        ),
        ({"LLAMA_ARG_CACHE_TYPE_K": "f7"}, [], "LLAMA_ARG_CACHE_TYPE_K: f7; expected one of f32, f16"),
        ({}, ["--no-warmpu"], "--no-warmpu: this llama-server has no such argument; did you mean --no-warmup?"),
        ({}, ["--zzz", "1"], "--zzz: this llama-server has no such argument"),
        ({}, ["--top-k"], "--top-k: takes 1 values, not 0"),
        ({}, ["--no-warmup", "1"], "--no-warmup: takes 0 values, not 1"),
        ({}, ["--pooling", "most"], "--pooling: most; expected one of none, mean"),
        ({}, ["lonely"], "lonely: this llama-server has no such argument"),
    ],
)
def test_what_it_would_reject_is_refused(flags, variables, arguments, words):
    with pytest.raises(Refused) as caught:
        program.check(flags, variables, arguments)
    assert words in str(caught.value)


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    path.parent.chmod(0o755)
    return str(path)


def test_a_program_is_asked(tmp_path, monkeypatch, fixture_text):
    (tmp_path / "help.txt").write_text(fixture_text("llama_server/help.txt"))
    monkeypatch.setattr(program.users, "ids_of", lambda user: program.users.Ids(0, 0, []))
    assert "--model" in program.ask(script(tmp_path / "good", 'cat "${0%%/good}/help.txt"'), "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo error: no library >&2; exit 127", "ended with status 127 and said error: no library"),
        ("exit 0", "ended with status 0 and said nothing"),
        ("yes", "ended with status"),
    ],
)
def test_another_program_is_refused(tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(program.users, "ids_of", lambda user: program.users.Ids(0, 0, []))
    with pytest.raises(Refused) as caught:
        program.ask(script(tmp_path / "bad", text), "x")
    assert words in str(caught.value) and "expected llama-server's help" in str(caught.value)


def test_a_program_that_cannot_be_run(tmp_path):
    with pytest.raises(Refused, match="program: user nosuch cannot run"):
        program.ask(str(tmp_path / "nosuch"), "nosuch")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.gguf"], "a.gguf"),
        (["a.gguf", "mmproj-a.gguf", "README.md"], "a.gguf"),
        (["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf"], "a-00001-of-00003.gguf"),
        ([], "has no GGUF file"),
        (["a.gguf", "b.gguf"], "has a.gguf, b.gguf; expected one"),
    ],
)
def test_the_model_in_a_folder(tmp_path, names, found):
    for name in names:
        (tmp_path / name).touch()
    if " " in found:
        with pytest.raises(Refused, match=found):
            program.model_file(str(tmp_path))
    else:
        assert program.model_file(str(tmp_path)) == str(tmp_path / found)
        assert program.model_file(str(tmp_path / found)) == str(tmp_path / found)


def test_the_size_of_a_split_model(tmp_path):
    for part in (1, 2):
        (tmp_path / ("a-0000%d-of-00002.gguf" % part)).write_bytes(b"GGUF" * part)
    assert program.size_of(str(tmp_path / "a-00001-of-00002.gguf")) == 12
    assert program.size_of(str(tmp_path / "nosuch")) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read .*No such file"),
        (b"hello", "begins with b'hell'; expected b'GGUF'"),
        (b"", "begins with b''"),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(program.users, "ids_of", lambda user: program.users.Ids(0, 0, []))
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.raises(Refused, match="model: .*" + words):
        program.check_readable("model", str(tmp_path / "m"), "x", b"GGUF")
    (tmp_path / "m").write_bytes(b"GGUF and more")
    program.check_readable("model", str(tmp_path / "m"), "x", b"GGUF")
    program.check_readable("ssl_key_file", str(tmp_path / "m"), "x")
