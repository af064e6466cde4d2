# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments on a lab host with the real venv and pip; PyTorch is a few lines of Python in real wheels."""

from __future__ import annotations

import contextlib
import threading
import time
import zipfile

import pytest

TORCH = """\
import os, time
__version__ = %r
while os.path.exists("/tmp/torch-hangs"):
    time.sleep(0.1)
class version:
    cuda = None
class arange:
    def __init__(self, end, device):
        self.values = range(int(end))
    def __mul__(self, other):
        self.values = [value * other for value in self.values]
        return self
    def sum(self):
        self.value = float(sum(self.values))
        return self
    def item(self):
        return self.value
%s
"""


def wheel(folder, version, last_line="", requires=""):
    """A wheel of `torch`; `last_line` is what its import ends with."""
    info = "torch-%s.dist-info/" % version
    members = {
        "torch/__init__.py": TORCH % (version, last_line),
        info + "METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: %s\n%s" % (version, requires),
        info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[info + "RECORD"] = "".join("%s,,\n" % name for name in [*members, info + "RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / ("torch-%s-py3-none-any.whl" % version), "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    for version in ("2.12.1", "2.13.0"):
        wheel(folder, version)
    return folder


@pytest.fixture
def environment(module, host, sh, wheels):
    """`environment("2.13.0")` runs the module on the first host."""
    sh(host, "umount -q /proc/driver/nvidia; rm -rf /opt/gpufleet/torch /tmp/torch-hangs")

    def run(version, **more):
        options = {"cuda": "cpu", "package": "torch==%s" % version, "wheels": str(wheels), "installer": "pip"}
        arguments = dict({"engine": "torch", "version": version}, **dict(options, **more.pop("options", {})))
        return module(host, "python_environment", arguments, **more)

    return run


def left(sh, host):
    return sh(host, "ls /opt/gpufleet/torch 2>/dev/null || true").split()


def imported(sh, host):
    return sh(host, "cd /; /opt/gpufleet/torch/current/bin/python -c 'import torch; print(torch.__version__)'").strip()


def test_upgraded_kept_switched_back_and_left_alone_when_the_next_fails(environment, host, sh, wheels):
    first = environment("2.12.1", check=True)
    assert first["changed"] and left(sh, host) == []
    old = environment("2.12.1")
    assert old["changed"] and not old["failed"], old
    assert imported(sh, host) == "2.12.1" and old["packages"]["torch"] == "2.12.1"
    again = environment("2.12.1")
    assert not again["changed"] and again["path"] == old["path"]

    new = environment("2.13.0")
    assert new["changed"] and imported(sh, host) == "2.13.0" and new["previous"] == old["path"].rpartition("/")[2]
    assert len(left(sh, host)) == 4
    inodes = sh(host, "ls -di %s" % old["path"])
    back = environment("2.12.1")
    assert back["msg"] == "switched to torch 2.12.1 (cpu)" and imported(sh, host) == "2.12.1"
    assert sh(host, "ls -di %s" % old["path"]) == inodes
    assert "wheels.tar" not in sh(host, "find / -xdev -name 'wheels.tar*'")

    # one that does not work is not switched to
    before = left(sh, host)
    wheel(wheels, "2.14.0", "import ctypes; ctypes.CDLL('libcudart.so.13')")
    failed = environment("2.14.0")
    assert failed["failed"] and not failed["changed"]
    assert "libcudart.so.13: cannot open shared object file" in failed["msg"]
    assert left(sh, host) == before and imported(sh, host) == "2.12.1"

    # nor one that cannot be installed, unless what is missing is left out
    wheel(wheels, "2.14.0", requires="Requires-Dist: nobody-has-this\n")
    failed = environment("2.14.0")
    assert "nobody-has-this" in failed["msg"] and "put there what is missing" in failed["msg"], failed
    assert left(sh, host) == before and imported(sh, host) == "2.12.1"
    without = environment("2.14.0", options={"without": ["nobody-has-this"]})
    assert without["changed"], without
    assert imported(sh, host) == "2.14.0" and without["pruned"] == [new["path"].rpartition("/")[2]]


def test_refused_for_the_driver(environment, host, sh):
    sh(
        host,
        "mkdir -p /run/fake && printf 'NVRM version: NVIDIA UNIX Kernel Module  470.82.01  x\\n' > /run/fake/version",
    )
    sh(host, "mount --bind /run/fake /proc/driver/nvidia")
    try:
        refused = environment("2.13.0", options={"cuda": "cu130"})
    finally:
        sh(host, "umount /proc/driver/nvidia")
    assert refused["failed"] and "this host has driver 470.82.01" in refused["msg"], refused
    assert left(sh, host) == []


def test_killed_in_the_middle(environment, host, sh):
    sh(host, "touch /tmp/torch-hangs")

    def killed():
        with contextlib.suppress(AssertionError):  # no result at all
            environment("2.13.0")

    thread = threading.Thread(target=killed)
    thread.start()
    # the test in the new environment hangs now; its parent is the module
    child, until = "", time.monotonic() + 400
    while not child:
        assert time.monotonic() < until and thread.is_alive()
        time.sleep(0.2)
        child = sh(host, "pgrep -f '^/opt/gpufleet/torch/2.13.*/python -c ' || true").strip()
    sh(host, "kill -KILL $(ps -o ppid= -p %s)" % child)
    thread.join(120)
    assert not thread.is_alive() and sh(host, "pgrep -f '^/opt/gpufleet/torch/2.13' || true") == ""
    assert len(left(sh, host)) == 1  # half of it, and no link
    sh(host, "rm /tmp/torch-hangs")
    done = environment("2.13.0")
    assert done["changed"] and imported(sh, host) == "2.13.0"
    assert len(left(sh, host)) == 2
