# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of a model's source."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.records import Records, fingerprint


def test_written_read_and_forgotten(tmp_path: Path) -> None:
    records = Records("127.0.0.1:11434", str(tmp_path))
    name = "registry.ollama.ai/library/mine:latest"
    assert records.read(name) == {}
    records.write(name, {"digest": "abc"})
    assert records.read(name) == {"digest": "abc"}
    assert Path(records.path(name)).parent == tmp_path / "127.0.0.1:11434"
    assert Records("127.0.0.1:11435", str(tmp_path)).read(name) == {}
    Path(records.path(name)).write_text("[]")
    assert records.read(name) == {}
    Path(records.path(name)).write_text("{")
    assert records.read(name) == {}
    records.forget(name)
    records.forget(name)
    assert os.listdir(records.folder) == []


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    first = fingerprint(str(file), {})
    assert first["sha256"] == hashlib.sha256(b"one").hexdigest()
    assert fingerprint(str(file), dict(first, sha256="0" * 64))["sha256"] == "0" * 64, "taken from the record"
    os.utime(file, ns=(0, 0))
    assert fingerprint(str(file), dict(first, sha256="0" * 64))["sha256"] == first["sha256"]
    file.write_bytes(b"three")
    assert fingerprint(str(file), first)["sha256"] == hashlib.sha256(b"three").hexdigest()
    with pytest.raises(OSError):
        fingerprint(str(tmp_path / "none"), {})
