# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks this host what the controller would ask it, and reports the answers. Changes nothing that is declared.

Run by ``gpufleet-self-check.service`` out of a folder that only root can enter. What it asks lies next to it, as does
kept_check.py, by which the compiled code of an earlier check is used.
"""

import sys


def main(folder):
    """Make the checks that ``question.json`` lists, with the code of ``code.json``; report them."""
    import json
    import marshal
    import os

    kept_check = __import__("kept_check")
    # what the rest imports is looked up where state_check.py looks
    sys.path[:] = [path for path in sys.path if path not in ("", ".", folder)]
    with open(os.path.join(folder, "question.json"), encoding="utf-8") as file:
        question = json.load(file)
    kept = question["kept"]
    found = kept_check.kept(*kept)
    if found is None:
        with open(os.path.join(folder, "code.json"), encoding="utf-8") as file:
            text, texts = json.load(file)
        found = marshal.dumps(compile(text, "state_check", "exec")), texts
    program: dict = {"__name__": "state_check"}
    exec(marshal.loads(found[0]), program)
    sources = program["load"](found[1])
    answers = [program["check"](*call) for call in question["calls"]]
    __import__(question["report"])
    said = sys.modules[question["report"]].report(question, answers)
    if said:
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
    program["keep_compiled"](kept, found[0], sources)


if __name__ == "__main__":
    main(sys.path[0])
    __import__("os")._exit(0)  # without tearing down what was imported, see question.py
