# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The digests of a job's script and of the Python files around it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import code


@pytest.fixture
def folder():
    """A folder that every user may read."""
    made = Path(tempfile.mkdtemp(prefix="gpufleet-test-", dir="/opt" if os.geteuid() == 0 else None))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def look(script=None, folder=None, user="root", said=None):
    params = {"script": script and str(script), "working_directory": folder and str(folder), "user": user}
    return code.of_job(params, ([] if said is None else said).append)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_script_and_the_python_files_below_its_folder(folder):
    for name in ("train.py", "lib/model.py", "lib/__pycache__/model.py", ".git/hook.py", "data.json", ".hidden.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    files = {"train.py": digest("train.py"), "lib/model.py": digest("lib/model.py")}
    script = folder / "train.py"
    assert look(script) == {"path": str(script), "digest": digest("train.py"), "folder": str(folder), "files": files}
    assert look(script, folder / "lib")["files"] == {"model.py": digest("lib/model.py")}
    assert look(None, folder) == {"path": None, "digest": None, "folder": str(folder), "files": files}
    assert look() is None and look(script, user="no-such-user") is None
    assert look(folder / "none.py")["digest"] is None


def test_large_folders_and_files_are_read_in_part(folder, monkeypatch):
    for number in range(9):
        (folder / ("m%d.py" % number)).write_text("%d234567" % number)
    monkeypatch.setattr(code, "FILES", 3)
    monkeypatch.setattr(code, "SIZE", 4)
    assert look(None, folder)["files"] == {"m%d.py" % number: digest("%d234" % number) for number in range(3)}


def test_what_is_no_file_hangs_nobody(folder):
    os.mkfifo(folder / "pipe.py")
    (folder / "device.py").symlink_to("/dev/zero")
    (folder / "none.py").symlink_to("/nowhere")
    assert look(None, folder)["files"] == {"device.py": None, "none.py": None, "pipe.py": None}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled")
def test_nothing_is_told_of_what_the_user_may_not_read(folder):
    (folder / "secret").write_text("1234")
    (folder / "secret").chmod(0o600)
    (folder / "train.py").symlink_to(folder / "secret")
    assert look(folder / "train.py", user="daemon")["digest"] is None
    assert look(folder / "train.py")["digest"] == digest("1234")


def test_a_folder_that_hangs_is_told(folder, monkeypatch):
    said = []
    monkeypatch.setattr(code, "LIMIT", 0.2)
    monkeypatch.setattr(code, "_python_files", lambda top: time.sleep(60))
    assert look(None, folder, said=said) is None
    assert said[0].startswith("the files in %s are not compared with those of other hosts: it took longer" % folder)
