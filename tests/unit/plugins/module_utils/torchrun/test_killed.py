# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed at any of its calls that change something, and what the next run makes of the host."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users

CALLS = (
    "mkdir",
    "rename",
    "link",
    "symlink",
    "unlink",
    "rmdir",
    "fchmod",
    "chmod",
    "fchown",
    "chown",
    "fsync",
    "write",
)
"""Functions of `os` by which a run changes files, besides an open that makes one."""
STATES = {
    "plain": {"arguments": ["--plain"]},
    "secret": {"secret_environment": {"KEY": "secret-one"}, "script": None, "content": "print('one')\n"},
    "secrets": {"secret_environment": {"KEY": "secret-two", "MORE": "secret-more"}, "script_path": "/srv/launch.sh"},
    "new_secret": {"secret_environment": {"KEY": "secret-new"}, "script": None, "content": "print('one')\n"},
    "claims": {"gpus": 2},
    "none": None,
}
WAYS = [
    ("none", "secret"),
    ("plain", "secrets"),
    ("secret", "plain"),
    ("secret", "secrets"),
    ("secret", "new_secret"),
    ("secret", "none"),
    ("secrets", "secret"),
    ("plain", "claims"),
    ("claims", "none"),
]


class Killed(BaseException):
    """In the place of SIGKILL: nothing may catch it."""


@pytest.fixture
def system(system):
    """The host's files in memory: this is a matter of thousands of runs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        shutil.copytree(system.root, root, dirs_exist_ok=True)
        system.root = root
        yield system


@pytest.fixture
def killing(system, monkeypatch):
    """`with killing(n) as count:` ends what is in it at call `n` with Killed; `count[0]` is the number of calls."""
    now = {"left": None, "count": [0]}

    def counted(function, changes=lambda *words, **named: True):
        def call(*words, **named):
            if now["left"] is not None and changes(*words, **named):
                now["count"][0] += 1
                if now["left"] == 0:
                    raise Killed
                now["left"] -= 1
            return function(*words, **named)

        return call

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(os, "open", counted(os.open, lambda path, flags, *more, **named: flags & os.O_CREAT))
    for name in ("start", "stop", "reload", "reset_failed"):
        monkeypatch.setattr(system, name, counted(getattr(system, name)))
    monkeypatch.setattr(users, "as_user", lambda ids, work, limit=60: work())

    @contextmanager
    def kill(after):
        now.update(left=after, count=[0])
        try:
            yield now["count"]
        except Killed:
            pass
        finally:
            now["left"] = None

    return kill


def files(system):
    """The files of the host that are neither logs nor locks: mode and content."""
    found = {}
    for folder, _folders, names in os.walk(system.root):
        for path in (os.path.join(folder, name) for name in names if not name.endswith(".lock")):
            at = os.lstat(path)
            text = Path(path).read_bytes() if stat.S_ISREG(at.st_mode) else os.readlink(path)
            found[path[len(system.root) :]] = (stat.S_IMODE(at.st_mode), text)
    return found


def picture(system):
    return (files(system), system.up, system.environment if system.up else None)


@pytest.fixture
def declared(bring):
    def run(name):
        options = STATES[name]
        return bring("absent") if options is None else bring(**options)

    return run


def begin(system, declared, name, way):
    """A new host in a state; what `way` made of it before is gone."""
    for folder in ("etc", "var"):
        shutil.rmtree(system.root + "/" + folder, ignore_errors=True)
    if os.path.exists(system.root + "/srv/launch.sh"):
        os.unlink(system.root + "/srv/launch.sh")
    system.up, system.environment, system.invocation = False, {}, ""
    if name != "none":
        declared(name)
    return way


@pytest.mark.parametrize("was, wanted", WAYS)
def test_the_next_run_leaves_nothing_of_it(system, declared, killing, was, wanted):
    right = {}
    for name in STATES:
        begin(system, declared, name, None)
        if name == "none":
            declared("plain")
        declared(name)
        right[name] = picture(system)
    points, after = 0, 0
    while True:
        for following in dict.fromkeys((wanted, was, "none" if after % 2 else "plain")):
            begin(system, declared, was, wanted)
            with killing(after) as count:
                declared(wanted)
            done = count[0] <= after
            for path, (mode, text) in files(system).items():
                assert b"secret-" not in (text if isinstance(text, bytes) else b"") or mode == 0o600, (after, path)
            declared(following)
            assert picture(system) == right[following], (after, following)
            assert declared(following)["changed"] is False, (after, following)
            points += 1
        if done:
            break
        after += 1
    assert after > 10
    print("%s to %s: killed at %d calls, %d runs after it" % (was, wanted, after, points))
