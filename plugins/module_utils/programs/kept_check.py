# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs state_check.py as an earlier check has kept it; answers ``lacks`` where there is nothing that root can trust."""

import sys


def kept(folder, name, key):
    """The program and the modules that were kept for this Python; None if there are none that only root can change."""
    import marshal
    import os

    path = "/"
    try:
        for part in ("", *folder.strip("/").split("/"), name):  # from above: below a folder of root's nobody can swap
            path = os.path.join(path, part)
            found = os.lstat(path)
            if found.st_uid or found.st_mode & 0o22:  # a link has all rights
                return None
        with open(path, "rb") as file:
            there, version, program, texts = marshal.load(file)
    except (OSError, EOFError, ValueError, TypeError):
        return None
    return (program, texts) if (there, version) == (key, sys.version) else None


def main(folder, name, key, writes, calls, mark):
    """Print the mark and the list of answers as one line.

    :param folder: where it is kept, under ``name``.
    :param key: what was kept must have the same.
    :param writes: whether what is compiled may be kept.
    :param calls: see state_check.py; as JSON.
    """
    sys.path[:] = [path for path in sys.path if path not in ("", ".")]  # see state_check.py
    found = kept(folder, name, key)
    if found is None:
        sys.stdout.write(mark + '[{"state": "lacks", "why": "", "result": null}]\n')
        return
    import json
    import marshal

    program: dict = {"__name__": "state_check"}
    exec(marshal.loads(found[0]), program)
    program["main"]((folder, name, key) if writes else None, found[0], found[1], json.loads(calls), mark)
