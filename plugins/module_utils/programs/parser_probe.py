# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PROGRAM [WORD...]: runs vLLM's own command up to the point where its arguments are parsed, and ends there.

PROGRAM is the path of a script or the name of a module. Prints ``OPTIONS`` and the names of the parser's options, one
line, and ``PARSED`` when the parser and what vLLM checks right after it accept the arguments: options that need each
other, the names of parsers, the file of the chat template. What is rejected ends with a message on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys

PLACES = ("common.cli_args", "launchers.cli_args", "launchers.launcher", "openai.cli_args", "openai.api_server")
"""Modules of vllm.entrypoints that have its own checks, in one version or another."""


def validate(arguments):
    """Run vLLM's own checks, as far as this version has them. A failure that is not their verdict is ignored."""
    names = ["validate_parsed_serve_args"]
    if not any(getattr(arguments, kind + "_parser_plugin", None) for kind in ("tool", "reasoning")):
        names.append("validate_api_server_args")  # which knows the parsers of plugins only once these are loaded
    for place in PLACES:
        try:
            module = importlib.import_module("vllm.entrypoints." + place)
        except Exception:
            continue
        for name in names:
            check = getattr(module, name, None)
            if check and check.__module__ == module.__name__:
                try:
                    check(arguments)
                except (KeyError, TypeError, ValueError):
                    raise
                except Exception:
                    continue


def options(parser, command):
    """The options of a parser, or of its subparser for this command."""
    for action in parser._actions:
        if isinstance(action.choices, dict) and command in action.choices:
            parser = action.choices[command]
    return [name for name in parser._option_string_actions if name.startswith("--")]


def main(program):
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        sys.stdout.write(" ".join(["OPTIONS", *options(self, sys.argv[1])]) + "\n")
        sys.stdout.flush()
        validate(real(self, args, namespace))
        sys.stdout.write("PARSED\n")
        sys.stdout.flush()
        os._exit(0)

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    if program.startswith("/"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]  # as the program itself would have it
    main(sys.argv[0])
