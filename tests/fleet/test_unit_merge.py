# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real systemd and our merge read the same random units, and the tables of the unit tests, and agree on them all."""

from __future__ import annotations

import base64
import importlib.util
import sys
from pathlib import Path
from typing import Any, Dict

sys.path.insert(0, str(Path(__file__).parent))

import on_host

ROUNDS = 20


def tables() -> Any:
    path = on_host.ROOT / "tests/unit/plugins/module_utils/systemd/test_unit.py"
    spec = importlib.util.spec_from_file_location("unit_tables", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(table: Dict[str, Any]) -> Dict[str, str]:
    return {name: base64.b64encode(row[0]).decode() for name, row in table.items()}


def test_systemd_and_our_merge_agree(lab: Any) -> None:
    known = tables()
    data = {
        "seed": 20261122,
        "rounds": ROUNDS,
        "files": encoded(known.FILES),
        "environment_files": encoded(known.ENVIRONMENT_FILES),
    }
    found = on_host.run(lab, lab.reset("gpu1"), "merge.py", data)
    assert found["differences"] == []
    assert found["compared"] > 4 * ROUNDS and found["drop_ins"] > 5 * found["compared"] / 2
    expected = {name: row[1] for name, row in known.ENVIRONMENT_FILES.items()}
    assert found["environment_files"] == expected
    for name, (content, values) in known.FILES.items():
        if b"Unset" not in content and b"%u" not in content:
            assert found["files"][name] == values, name
