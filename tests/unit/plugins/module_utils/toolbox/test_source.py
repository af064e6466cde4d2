# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The source of a program is the same text, whichever of the four loaders has it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import guard, parser_probe
from ansible_collections.gpufleet.inference.plugins.module_utils.programs.state_check import Sources
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of

ROOT = Path(__file__).resolve().parents[5]
COLLECTIONS = ROOT / ".collections"
ROOM = "ansible_collections.gpufleet.inference.plugins.module_utils"
PRINT = """
from {0}.toolbox.source import source_of
from {0}.programs import guard
sys.stdout.write(type(guard.__loader__).__name__ + "\\n" + source_of(guard))
""".format(ROOM)
TEXT = Path(guard.__file__).read_text(encoding="utf-8")


def printed(begin: str, *words: str) -> "list[str]":
    """The kind of loader and the text, in a Python of its own in which ``begin`` makes the collection importable."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + begin + PRINT, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n", 1)


def test_files() -> None:
    assert source_of(guard) == TEXT
    assert printed("sys.path.insert(0, sys.argv[1])", str(COLLECTIONS)) == ["SourceFileLoader", TEXT]


def test_the_archive_in_which_ansible_packs_a_module(tmp_path: Path) -> None:
    archive = tmp_path / "AnsiballZ.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        name = ""
        for part in ROOM.split("."):
            name += part + "/"
            packed.writestr(name + "__init__.py", "")
        for file in ("programs/__init__.py", "programs/guard.py", "toolbox/__init__.py", "toolbox/source.py"):
            packed.write(ROOT / "plugins/module_utils" / file, name + file)
    assert printed("sys.path.insert(0, sys.argv[1])", str(archive)) == ["zipimporter", TEXT]


def test_the_sources_in_memory_of_a_check() -> None:
    begin = """
sys.path.insert(0, sys.argv[1])
from {0}.programs.state_check import Sources
texts = {{"{0}." + name: open(sys.argv[2] + name.replace(".", "/") + ".py").read()
         for name in ("programs.guard", "toolbox.source")}}
sys.path.pop(0)
for name in [name for name in sys.modules if name.startswith("ansible_collections")]: del sys.modules[name]
sys.meta_path.insert(0, Sources(texts))
""".format(ROOM)
    assert printed(begin, str(COLLECTIONS), str(ROOT / "plugins/module_utils") + "/") == ["Sources", TEXT]


def test_ansibles_own_loader_of_collections() -> None:
    """As on the controller."""
    begin = (
        "from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder\n"
        "_AnsibleCollectionFinder(paths=[sys.argv[1]])._install()"
    )
    assert printed(begin, str(COLLECTIONS)) == ["_AnsibleCollectionLoader", TEXT]


@pytest.mark.parametrize("name, found", [("a.b.c", True), ("a.b", True), ("a", True), ("a.b.d", False), ("b", False)])
def test_what_is_found_in_memory(name: str, found: bool) -> None:
    spec = Sources({"a.b.c": "X = 1"}).find_spec(name)
    assert (spec is not None) == found
    assert spec is None or (spec.submodule_search_locations is None) == (name == "a.b.c")


def test_a_source_is_compiled_as_it_is() -> None:
    assert "\\n" not in source_of(parser_probe).split('"""')[0]
    compile(source_of(parser_probe), "x", "exec")
