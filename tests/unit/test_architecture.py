# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/architecture.md is held to the code: its floors by the imports, its table of files by what lies there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Dict, List, Set

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
PACKAGE = "ansible_collections.gpufleet.inference.plugins."
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")

FILES = sorted(
    path for path in PLUGINS.rglob("*.py") if path.name != "__init__.py" and path.parent.name != "doc_fragments"
)
FLOORS = {
    place.replace("plugins/", "").rstrip("/"): int(floor)
    for floor, place in re.findall(r"^\| (\d) \| `(plugins/[^`]+)` \|", TEXT, re.MULTILINE)
}
"""Room, such as ``module_utils/gpu``, to its floor."""


def room(path: Path) -> str:
    """The room of a file: its folder."""
    return str(path.parent.relative_to(PLUGINS))


def imports(path: Path) -> Set[Path]:
    """The files of the collection that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith(PACKAGE)):
            beginning = path.parents[node.level - 1] if node.level else PLUGINS
            place = beginning.joinpath(*str(node.module or "").removeprefix(PACKAGE).split("."))
            beneath = [place / (alias.name + ".py") for alias in node.names]
            found.update(file for file in [place.with_suffix(".py"), *beneath] if file.is_file())
    return found


IMPORTS: Dict[Path, Set[Path]] = {path: imports(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_arrows_go_down(path: Path) -> None:
    """A file imports from its own room, and from rooms on lower floors."""
    wrong = []
    for other in IMPORTS[path]:
        here, there = room(path), room(other)
        if here != there and not FLOORS[there] < FLOORS[here]:
            wrong.append("%s (floor %d) imports %s (floor %d)" % (here, FLOORS[here], there, FLOORS[there]))
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in FILES if room(path).partition("/")[0].endswith("_utils")], ids=str)
def test_imports_below_are_relative(path: Path) -> None:
    """question.py finds them by that."""
    assert PACKAGE not in path.read_text(encoding="utf-8") or path.name == "question.py"


def test_one_file_of_module_utils_imports_ansible() -> None:
    """So `make lowest` leaves out the tests of the others."""
    words = re.compile(r"^\s*(from|import) ansible[. ]", re.MULTILINE)
    importing = [path for path in FILES if words.search(path.read_text(encoding="utf-8"))]
    below = [str(path.relative_to(PLUGINS)) for path in importing if "module_utils" in path.parts]
    assert below == ["module_utils/toolbox/entry.py"]


def test_no_circle() -> None:
    done: Set[Path] = set()

    def visit(path: Path, way: List[Path]) -> None:
        assert path not in way, " -> ".join(str(one.relative_to(PLUGINS)) for one in [*way, path])
        if path not in done:
            for other in IMPORTS[path]:
                visit(other, [*way, path])
            done.add(path)

    for path in FILES:
        visit(path, [])


def test_each_file_stands_in_the_table() -> None:
    """Each file below module_utils has a row, and each row has a file."""
    told = set()
    for row in re.findall(r"^\| (`[a-z_/]+\.py`(?:, `[a-z_/]+\.py`)*) \|", TEXT, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):
            folder = name.rpartition("/")[0] if "/" in name else folder
            told.add(("%s/%s" % (folder, name) if folder and "/" not in name else name).replace("plugins/", ""))
    there = {str(path.relative_to(PLUGINS)).replace("module_utils/", "") for path in FILES}
    below = {name for name in there if not name.startswith(("modules/", "action/", "lookup/", "filter/"))}
    assert below - told == set(), "not in docs/architecture.md"
    assert {name for name in told if name not in there} == set(), "in docs/architecture.md, and not there"
