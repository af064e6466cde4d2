# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of a host on the controller: its mode, its names, its summary."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from ansible_collections.gpufleet.inference.plugins.action import doctor


def test_the_archive_is_for_its_user_alone(tmp_path: Path) -> None:
    odd = {
        "../x": "1",
        "/etc/passwd": "1",
        "logs/../y": "1",
        "units/vllm@chat.service.show.txt": "a\x1b[31mb",
        "a.txt": "c",
    }
    path = doctor.write(str(tmp_path / "new"), "gpu/1", odd)
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.listdir(tmp_path / "new") == [os.path.basename(path)]
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        content = archive.extractfile(archive.getmembers()[1]).read()
    assert names == {"a.txt", "units/vllm@chat.service.show.txt"} and content == b"ab"
    assert os.path.basename(path).startswith("doctor-gpu_1-")


def test_the_summary_names_the_fix() -> None:
    found = [{"pain": "failed", "text": "ollama has\nfailed", "fix": "start it"}]
    assert doctor.lines("gpu1", "1 known problem found", found) == [
        "gpu1: 1 known problem found",
        "  failed: ollama has failed",
        "    fix: start it",
    ]
