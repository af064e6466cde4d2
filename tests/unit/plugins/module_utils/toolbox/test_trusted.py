# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who could replace a file, told by the folders on its way."""

from __future__ import annotations

import os

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.trusted import intruder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
STRANGER = 1234


@pytest.fixture
def usr(tmp_path):
    (tmp_path / "usr/lib").mkdir(parents=True)
    return tmp_path / "usr"


def test_roots_own(usr):
    assert intruder(str(usr / "lib")) is None
    assert intruder(str(usr / "lib/not/yet")) is None
    assert intruder("/") is None


@pytest.mark.parametrize("whose", ["lib", "."])
def test_a_folder_of_another_user(usr, whose):
    os.chown(usr / whose, STRANGER, STRANGER)
    assert intruder(str(usr / "lib/ollama")) == "%s belongs to user 1234" % os.path.normpath(usr / whose)


def test_a_folder_that_any_user_may_write(usr):
    usr.chmod(0o777)
    assert intruder(str(usr / "lib")) == "%s may be written by any user" % usr


def test_a_sticky_folder_keeps_what_root_has_in_it(usr):
    usr.chmod(0o1777)
    assert intruder(str(usr / "lib/ollama")) is None
    assert intruder(str(usr / "bin")) == "%s/bin does not exist, and any user may create it" % usr
    assert intruder(str(usr)) == "%s may be written by any user" % usr


def test_a_group_counts_when_somebody_is_in_it(usr, monkeypatch):
    usr.chmod(0o2775)
    os.chown(usr, 0, STRANGER)
    monkeypatch.setattr(files, "_has_members", lambda gid: True)
    assert intruder(str(usr / "lib")) == "%s may be written by group 1234" % usr
    monkeypatch.setattr(files, "_has_members", lambda gid: False)
    assert intruder(str(usr / "lib")) is None


def test_members_of_a_group():
    import grp
    import pwd

    user = next(entry for entry in pwd.getpwall() if entry.pw_gid)
    assert files._has_members(user.pw_gid)
    assert files._has_members(1234567), "a number without a name says nothing"
    taken = {entry.pw_gid for entry in pwd.getpwall()}
    empty = [group.gr_gid for group in grp.getgrall() if not group.gr_mem and group.gr_gid not in taken]
    assert not files._has_members(empty[0])


def test_links_are_followed_and_must_be_roots(usr, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (usr / "opt").symlink_to("../theirs")
    assert intruder(str(usr / "opt/x")) is None
    os.chown(usr / "opt", STRANGER, STRANGER, follow_symlinks=False)
    assert intruder(str(usr / "opt/x")) == "%s/opt belongs to user 1234" % usr
    os.chown(usr / "opt", 0, 0, follow_symlinks=False)
    os.chown(theirs, STRANGER, STRANGER)
    assert intruder(str(usr / "opt/x")) == "%s belongs to user 1234" % theirs


def test_links_in_a_circle(usr):
    (usr / "a").symlink_to("b")
    (usr / "b").symlink_to("a")
    assert "too many symbolic links" in intruder(str(usr / "a/x"))
