# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users of a host put where the facts are read: programs of their own, and names for their processes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts, model, processes

SMI = """<?xml version="1.0" ?>
<nvidia_smi_log><driver_version>595.1</driver_version><gpu id="1"><uuid>GPU-1</uuid><processes>
<process_info><pid>7</pid><type>C</type><process_name>%s</process_name><used_memory>1 MiB</used_memory></process_info>
</processes></gpu></nvidia_smi_log>"""


@pytest.fixture
def places(monkeypatch):
    """`places(NAME)` makes a folder with an nvidia-smi that says its name; PATH has them in the order of their making."""
    with tempfile.TemporaryDirectory(dir="/opt" if os.geteuid() == 0 else os.path.expanduser("~")) as base:
        os.chmod(base, 0o755)
        monkeypatch.setenv("PATH", "")

        def make(name, mode=0o755, owner=-1):
            folder = Path(base) / name
            folder.mkdir()
            program = folder / "nvidia-smi"
            program.write_text("#!/bin/sh\necho %s >%s/ran; exit 6\n" % (name, base))
            program.chmod(0o755)
            os.chown(folder, owner, -1)
            folder.chmod(mode)
            monkeypatch.setenv("PATH", "%s:%s" % (os.environ["PATH"], folder))

        make.ran = Path(base) / "ran"
        yield make


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
def test_root_runs_no_nvidia_smi_of_others(places, monkeypatch, tmp_path):
    """The PATH of a login may begin with ~/.local/bin, and `su` keeps it."""
    places("users", owner=40404)
    places("everybodys", mode=0o777)
    monkeypatch.setenv("PATH", "%s:.:relative:/no/such" % os.environ["PATH"])
    places("roots")
    monkeypatch.chdir(places.ran.parent / "users")
    facts._read_with_smi(lambda *part: None, str(tmp_path))
    assert places.ran.read_text() == "roots\n"


@pytest.mark.parametrize("name", ["\x1b[2Jevil", "a\x00b", "\x07", "a\x9bb", "\ud800"])
def test_a_name_that_is_no_xml_hides_no_gpu(monkeypatch, tmp_path, name):
    text = (SMI % name).encode("utf-8", "surrogatepass")
    monkeypatch.setattr("subprocess.run", lambda *words, **named: type("Done", (), {"returncode": 0, "stdout": text}))
    monkeypatch.setattr("shutil.which", lambda name, path: "/bin/true")
    parts = []
    facts._read_with_smi(lambda *part: parts.append(part), str(tmp_path))
    devices = [data[0] for kind, data in parts if kind == "device"]
    shown = devices[0]["processes"][0]["name"]
    assert len(devices) == 1 and shown.isprintable()


@pytest.mark.parametrize(
    "name, shown",
    [
        ("python train.py --token=secret", "python train.py"),
        ("\x1b[2J\x1b]0;title\x07/usr/bin/python3", "?]0;title?/usr/bin/python3"),
        ("a\nfatal: [gpu1]: FAILED!", "a fatal: [gpu1]: FAILED!"),
        ("\u202etxt.exe", "?txt.exe"),
        ("x" * 5000, "x" * 300),
    ],
)
def test_what_a_process_calls_itself(name, shown):
    assert model.process_name(name) == shown


@pytest.mark.parametrize(
    "path",
    ["/system.slice/a.service/../../init.scope", "/user.slice/user-1.slice/user@1.service/evil.service", "/", ""],
)
def test_a_user_names_no_unit_of_the_system(path):
    """What he makes below his own manager's unit is that unit's."""
    assert processes.unit_of_cgroup("0::%s\n" % path) in ("a.service", "user@1.service", None)
