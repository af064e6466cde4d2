# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is true of every program that is handed to a host as text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Set

import pytest

ROOT = Path(__file__).resolve().parents[5]
ROOM = ROOT / "plugins/module_utils/programs"
PROGRAMS = sorted(path for path in ROOM.glob("*.py") if path.name != "__init__.py")
#: What a program finds in the environment that it is about.
ELSEWHERE = {"environment_check": {"torch"}, "requirements_of": {"packaging", "pip"}}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_it_imports_the_standard_library_alone(path: Path) -> None:
    found: Set[str] = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert found - ELSEWHERE.get(path.stem, set()) - sys.stdlib_module_names == set()


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_to_import_it_does_nothing(path: Path) -> None:
    """It is imported where its source is read, which may be a module that is about to print its result."""
    words = [
        sys.executable,
        "-I",
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1]); import %s" % path.stem,
        str(ROOM),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_somebody_ships_it(path: Path) -> None:
    """By an import, which is what puts it into Ansible's archive and among the sources of a check."""
    said = re.compile(r"\bprograms import ([\w, ]+, )?%s\b" % path.stem)
    assert any(said.search(file.read_text(encoding="utf-8")) for file in (ROOT / "plugins").rglob("*.py"))
