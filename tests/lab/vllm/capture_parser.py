#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records how vLLM's own parser reads a line of its configuration file, for tests/unit/fixtures/vllm/parser.json.

    capture_parser.py WHEELS > parser.json

WHEELS holds unpacked wheels, as `vllm-0.33.0/vllm/…`. Runs in an environment with PyYAML and regex; vLLM itself and
torch are not needed: each version's parser class is taken from its source and built up as its commands do, as the
sub-parser of `vllm serve` and alone for `python -m vllm.entrypoints.openai.api_server`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

LINES = (
    "enable-prefix-caching: true",
    "enable-prefix-caching: false",
    "no-enable-prefix-caching: true",
    'compilation-config.use_cudagraph: "false"',
    'compilation-config.use_cudagraph: "true"',
    'served-model-name: "a"',
    'served-model-name: ["a"]',
    'served-model-name: ["a", "b"]',
    'middleware: "guard.Guard"',
    'speculative-config: {"n": 1}',
    'speculative-config: "{\\"n\\": 1}"',
    'lora-modules: ["a=/a", "b=/b"]',
    'lora-modules: ["a=/a", "{\\"name\\": \\"b\\"}"]',
)
NAMES = {
    "FlexibleArgumentParser",
    "SortedHelpFormatter",
    "StoreBoolean",
    "human_readable_int",
    "summary_line",
    "EnableDisableAction",
    "_register_action",
}
PRELUDE = """
import argparse, ast, functools, json, os, sys, textwrap
import regex as re
import yaml
from argparse import *
from argparse import _ArgumentGroup
from collections import defaultdict
from typing import *
import logging
logger = logging.getLogger("vllm")
logger.warning_once = logger.info_once = logger.debug
"""


def parser_class(wheel: Path) -> Any:
    """The version's FlexibleArgumentParser."""
    places = ("utils/argparse_utils.py", "utils/__init__.py", "utils.py")
    source = next(wheel / "vllm" / place for place in places if (wheel / "vllm" / place).is_file())
    if "class FlexibleArgumentParser" not in source.read_text("utf-8"):
        source = next(wheel / "vllm" / place for place in places[1:] if (wheel / "vllm" / place).is_file())
    names: Dict[str, Any] = {}
    exec(PRELUDE, names)
    for node in ast.parse(source.read_text("utf-8")).body:
        if getattr(node, "name", None) in NAMES:
            exec(compile(ast.Module([node], []), str(source), "exec"), names)
    return names["FlexibleArgumentParser"]


def read(kind: Any, command: str, line: str) -> Any:
    """The value that the parser gives the option of such a line."""
    root = kind(prog="vllm")
    server = root.add_subparsers(dest="subparser").add_parser("serve") if command == "serve" else root
    server.add_argument("model_tag", nargs="?")
    server.add_argument("--model")
    server.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=None)
    server.add_argument("--compilation-config", type=json.loads)
    server.add_argument("--speculative-config", type=json.loads)
    server.add_argument("--served-model-name", nargs="+")
    server.add_argument("--lora-modules", nargs="+")
    server.add_argument("--middleware", action="append")
    server.add_argument("--config")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "config.yaml")
        file.write_text('model: "/srv/m"\n%s\n' % line, "utf-8")
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                found = root.parse_args(["serve", "--config", str(file)][command != "serve" :])
        except SystemExit:
            return "refused: " + said.getvalue().strip().splitlines()[-1]
        except ValueError as error:
            return "refused: %s" % error
    option = line.partition(":")[0].partition(".")[0].replace("no-enable", "enable").replace("-", "_")
    return getattr(found, option)


def main(wheels: Path) -> None:
    logging.disable(logging.CRITICAL)
    found: Dict[str, Any] = {}
    for wheel in sorted(wheels.glob("vllm-*"), key=lambda path: [int(n) for n in path.name[5:].split(".")]):
        kind = parser_class(wheel)
        found[wheel.name[5:]] = {
            command: {line: read(kind, command, line) for line in LINES} for command in ("serve", "module")
        }
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write(os.linesep)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
