# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that make users and directories: done, done again, and undone."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.service import account, made
from ansible_collections.gpufleet.inference.plugins.module_utils.service.account import DirectoryStep, UserStep

ME = pwd.getpwuid(os.geteuid()).pw_name


# --- directories


def test_a_directory_is_made_with_its_parents_and_undone(tmp_path, remembered):
    path = str(tmp_path / "srv/ollama/models")
    directory = DirectoryStep(path, ME)
    assert directory.needed()
    assert path in directory.diff()["after"]
    directory.apply()
    assert os.stat(path).st_mode & 0o777 == 0o755
    assert not directory.needed()
    assert made.remembered("directories")[-1] == path
    directory.undo()
    assert os.listdir(tmp_path) == []
    assert not remembered.parent.exists()


def test_a_directory_that_was_filled_meanwhile_stays(tmp_path):
    directory = DirectoryStep(str(tmp_path / "models"), ME)
    directory.apply()
    (tmp_path / "models/blobs").mkdir()
    directory.undo()
    assert os.listdir(tmp_path) == ["models"]


# --- the user


@pytest.fixture
def accounts(monkeypatch, tmp_path):
    """Users and groups in memory; the commands that would change them, as they are called."""
    users, groups, commands = {}, {"video": [], "render": []}, []
    monkeypatch.setattr(pwd, "getpwnam", lambda name: users[name])

    def group(name):
        return grp.struct_group((name, "x", 1, groups[name]))

    monkeypatch.setattr(grp, "getgrnam", group)

    def run(command):
        commands.append(" ".join(command))
        if command[0] == "useradd":
            users["ollama"] = object()
            os.makedirs(command[command.index("-d") + 1], exist_ok=True)
        elif command[0] == "userdel":
            del users["ollama"]
        elif command[0] == "usermod":
            groups[command[3]].append("ollama")
        elif command[0] == "gpasswd":
            groups[command[3]].remove("ollama")

    monkeypatch.setattr(account, "run", run)
    accounts = type("Accounts", (), {"users": users, "groups": groups, "commands": commands})
    accounts.home = str(tmp_path / "home")
    return accounts


def test_the_user_is_made_and_undone(accounts):
    user = UserStep("ollama", accounts.home)
    assert user.needed()
    assert user.diff()["after"] == "user ollama, in groups render, video\n"
    user.apply()
    assert accounts.commands == [
        "useradd -r -s /bin/false -U -m -d %s ollama" % accounts.home,
        "usermod -a -G render ollama",
        "usermod -a -G video ollama",
    ]
    assert not UserStep("ollama", accounts.home).needed()
    assert (made.remembered("users"), made.remembered("homes")) == (["ollama"], [accounts.home])
    user.undo()
    assert made.remembered("users") == []
    assert accounts.commands[3:] == ["userdel -f ollama"]
    assert not os.path.exists(accounts.home)


def test_a_user_that_was_there_only_joins_groups(accounts):
    accounts.users["ollama"] = object()
    accounts.groups["render"].append("ollama")
    del accounts.groups["video"][:]
    user = UserStep("ollama", accounts.home)
    user.apply()
    assert accounts.commands == ["usermod -a -G video ollama"]
    user.undo()
    assert accounts.commands[1:] == ["gpasswd -d ollama video"]


def test_groups_that_do_not_exist_are_not_made(accounts):
    accounts.users["ollama"] = object()
    accounts.groups.clear()
    assert not UserStep("ollama", accounts.home).needed()


def test_commands_that_fail_are_quoted():
    with pytest.raises(account.AccountError, match="sh -c echo no >&2; exit 9: exit status 9: no"):
        account.run(["sh", "-c", "echo no >&2; exit 9"])
    with pytest.raises(account.AccountError, match="nosuchcommand: No such file"):
        account.run(["nosuchcommand"])
