# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that ask a Python environment, in this process."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import types
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import (
    environment_check,
    parser_probe,
    requirements_of,
)

COMMAND = """
import argparse, sys
parser = argparse.ArgumentParser()
commands = parser.add_subparsers()
serve = commands.add_parser("serve")
serve.add_argument("--port", type=int, choices=[1, 2])
serve.add_argument("--names", nargs="+")
serve.add_argument("--quiet", "-q", action="store_true")
parser.parse_args()
print("it starts")
"""


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`probe(words)`: what the probe prints about COMMAND, up to the exit of its process."""
    (tmp_path / "command").write_text(COMMAND)

    class Ended(BaseException):
        pass

    def leave(status: int) -> None:
        raise Ended

    monkeypatch.setattr(parser_probe.os, "_exit", leave)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", argparse.ArgumentParser.parse_args)

    def probe(*words: str) -> List[str]:
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "command"), *words])
        with pytest.raises((Ended, SystemExit)):
            parser_probe.main(str(tmp_path / "command"))
        return capsys.readouterr().out.splitlines()

    return probe


def test_the_options_of_the_parser_and_what_it_accepts(probe: Any) -> None:
    options, parsed = probe("serve", "--port", "1")
    assert options.split() == ["OPTIONS", "--help", "--port", "--names", "--quiet"]
    assert parsed == "PARSED"


def test_what_the_parser_rejects(probe: Any) -> None:
    assert [line[:7] for line in probe("serve", "--prot", "1")] == ["OPTIONS"]


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["--tool", "known"], True),
        (["--tool", "nosuch"], False),
        (["--tool", "mine", "--tool-parser-plugin", "p"], True),  # it is known only once the plugin is loaded
        (["--tool", "absent"], True),
    ],
)
def test_vllms_own_checks(
    probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: List[str], parsed: bool
) -> None:
    """Some are in one module, some in another; what fails without being a verdict is none."""
    command = COMMAND.replace("parser.parse_args", 'serve.add_argument("--tool")\nparser.parse_args')
    (tmp_path / "command").write_text(
        command.replace("\nparser.p", '\nserve.add_argument("--tool-parser-plugin")\nparser.p')
    )

    def validate_parsed_serve_args(arguments: argparse.Namespace) -> None:
        if arguments.tool == "absent":
            raise AttributeError("of another version")

    def validate_api_server_args(arguments: argparse.Namespace) -> None:
        if arguments.tool not in ("known", "absent"):
            raise KeyError("invalid tool call parser: %s" % arguments.tool)

    for name, check in ("common.cli_args", validate_parsed_serve_args), ("openai.api_server", validate_api_server_args):
        module = types.ModuleType("vllm.entrypoints." + name)
        check.__module__ = module.__name__
        setattr(module, check.__name__, check)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    try:
        lines = probe("serve", *given)
    except KeyError as error:
        assert "nosuch" in str(error) and not parsed
    else:
        assert (lines[-1] == "PARSED") is parsed


class Tensor:
    def __init__(self, result: float) -> None:
        self.result = result

    def __mul__(self, number: int) -> "Tensor":
        return self

    def sum(self) -> "Tensor":
        return self

    def item(self) -> float:
        return self.result


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A PyTorch of two GPUs; `torch.results` has what the arithmetic gives on each device."""
    module: Any = ModuleType("torch")
    module.__version__, module.version = "2.13.0", SimpleNamespace(cuda="13.0")
    module.cuda = SimpleNamespace(device_count=lambda: 2, get_device_name=lambda device: "H200 " + device)
    module.results = {"cpu": 12.0, "cuda:0": 12.0, "cuda:1": 12.0}

    def arange(_end: float, device: str) -> Tensor:
        result = module.results[device]
        if isinstance(result, Exception):
            raise result
        return Tensor(result)

    module.arange = arange
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_arithmetic_on_one_device_is_enough(torch: Any) -> None:
    assert environment_check.device("cpu") == "cpu"
    assert environment_check.device("cuda") == "H200 cuda:0"
    torch.results["cuda:0"] = RuntimeError("out of memory")
    assert environment_check.device("cuda") == "H200 cuda:1"
    torch.results["cuda:1"] = RuntimeError("out of memory")
    with pytest.raises(SystemExit, match="cuda:1: out of memory"):
        environment_check.device("cuda")


def test_a_device_that_cannot_be_used(torch: Any) -> None:
    torch.results["cuda:0"] = 11.0
    with pytest.raises(SystemExit, match=r"2 \* \(0 \+ 1 \+ 2 \+ 3\) is 11.0 on cuda:0"):
        environment_check.device("cuda")
    torch.cuda.device_count = lambda: 0
    with pytest.raises(SystemExit, match="torch 2.13.0, built with CUDA 13.0, finds no GPU"):
        environment_check.device("cuda")


def test_the_report(torch: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "setLogRecordFactory", lambda factory: None)
    environment_check.main("cpu", ["json"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["device"] == "cpu" and "pytest" in report["packages"]


def test_requirements_that_hold_here(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["numpy>=2", "Torch_Audio==1; python_version > '3'", "winreg; sys_platform == 'win32'", "x; extra == 'y'"]
    monkeypatch.setattr(requirements_of.importlib.metadata, "requires", lambda package: texts)
    assert requirements_of.requirements_of("engine", []) == ["numpy>=2", "Torch_Audio==1"]
    assert requirements_of.requirements_of("engine", ["torch-audio"]) == ["numpy>=2"]
    monkeypatch.setattr(requirements_of.importlib.metadata, "requires", lambda package: None)
    assert requirements_of.requirements_of("engine", []) == []
