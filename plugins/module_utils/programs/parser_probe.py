# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SAMPLES PROGRAM [WORD...]: runs vLLM's own command up to the point where its arguments are parsed, and ends there.

PROGRAM is the path of a script or the name of a module, SAMPLES a JSON object with a sample value for each kind. Prints
``TABLE `` and the options of the parser as JSON, one line, and ``PARSED`` when the parser accepts the arguments. What
it rejects, argparse writes to standard error, and exits.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys

PLAIN = ("_StoreAction", "_AppendAction", "_StoreTrueAction", "_StoreFalseAction", "BooleanOptionalAction")


def accepts(kind, sample):
    """Whether an option's type takes this value."""
    try:
        return kind(sample) is not None
    except Exception:  # whatever somebody else's function raises
        return False


def describe(parser, command, samples):
    """The options of a parser, or of its subparser for this command."""
    for action in parser._actions:
        if isinstance(action.choices, dict) and command in action.choices:
            parser = action.choices[command]
    found = {}
    for name, action in parser._option_string_actions.items():
        option = dict(bare=action.nargs == 0, several=action.nargs in ("+", "*"), takes=[], choices=None)
        if type(action).__name__ in PLAIN and action.nargs in (None, 0, "+", "*"):
            if action.choices is not None:
                option["choices"] = [str(choice) for choice in action.choices]
            option["takes"] = [kind for kind in samples if not action.type or accepts(action.type, samples[kind])]
        if name.startswith("--"):
            found[name[2:]] = option
    return found


def main(samples, program):
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        sys.stdout.write("TABLE %s\n" % json.dumps(describe(self, sys.argv[1], samples)))
        sys.stdout.flush()
        real(self, args, namespace)
        sys.stdout.write("PARSED\n")
        sys.stdout.flush()
        os._exit(0)

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    if program.startswith("/"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.argv = sys.argv[2:]  # as the program itself would have it
    main(given, sys.argv[0])
