# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that make users and directories: done, done again, and undone."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import account, install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.account import DirectoryStep, UserStep
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError

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
    assert install_record.remembered("directories")[-1] == path
    directory.undo()
    assert os.listdir(tmp_path) == []
    assert not remembered.parent.exists()


def test_a_directory_that_was_filled_meanwhile_stays(tmp_path):
    directory = DirectoryStep(str(tmp_path / "models"), ME)
    directory.apply()
    (tmp_path / "models/blobs").mkdir()
    assert "models remains, as something was put into it" in directory.undo()
    assert os.listdir(tmp_path) == ["models"]


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give anything away")
USER = 40404


@pytest.fixture
def home(monkeypatch):
    """The home of user `racer`, in a folder that this one may enter."""
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", USER, USER, "", "/", "/bin/false")))
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "home")
        path.mkdir()
        os.chown(path, USER, USER)
        yield path


RACER = """
import os, sys
path, target, number = sys.argv[1], sys.argv[2], 0
os.setgid(%d); os.setuid(%d)
print(flush=True)
while True:
    try:
        os.rename(path, path + ".gone%%d" %% number)
        os.symlink(target, path)
        number += 1
        os.unlink(path)
    except OSError:
        pass
""" % (USER, USER)


@ROOT
def test_a_directory_below_one_of_the_users_swapped_for_a_link(home):
    """Between mkdir and chown: the user gave itself a folder of root's after some dozens of tries."""
    target, path = home.parent / "precious", home / "models"
    target.mkdir()
    racer = subprocess.Popen([sys.executable, "-c", RACER, str(path), str(target)], stdout=subprocess.PIPE)
    try:
        racer.stdout.readline()
        for _attempt in range(400):
            directory = DirectoryStep(str(path), "racer")
            with suppress(OSError, StepError):
                directory.apply()
            with suppress(OSError, StepError):
                directory.undo()
            assert target.stat().st_uid == 0
    finally:
        racer.kill()
        racer.wait()
        racer.stdout.close()


@ROOT
@pytest.mark.parametrize("below", ["", "models", "a/models"])
def test_a_link_in_the_way_of_a_directory(home, below):
    target = home.parent / "precious"
    target.mkdir()
    (home / "link").symlink_to(target if below else target / "new")
    directory = DirectoryStep(str(home / "link" / below), "racer")
    with pytest.raises(StepError, match="link cannot be used|link is a symbolic link in a folder that others"):
        directory.apply()
    directory.undo()
    assert os.listdir(target) == [] and install_record.remembered("directories") == []


@ROOT
@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_a_directory_whatever_the_umask_is(home, umask):
    former = os.umask(umask)
    try:
        DirectoryStep(str(home / "a/b"), "racer").apply()
    finally:
        os.umask(former)
    modes = [((home / name).stat().st_uid, (home / name).stat().st_mode & 0o777) for name in ("a", "a/b")]
    assert modes == [(0, 0o755), (USER, 0o755)]


@ROOT
def test_a_directory_that_root_has_prepared_is_given_and_taken_back(home):
    place = Path("/run/gpufleet-test-%d" % os.getpid())
    place.mkdir()
    try:
        (place / "blobs").mkdir()
        directory = DirectoryStep(str(place), "racer")
        assert not directory.needed()
        assert directory.give(("blobs",)) is None and directory.needed()
        assert directory.diff() == {
            "before": "directory %s of root\n" % place,
            "after": "directory %s of racer\n" % place,
        }
        directory.apply()
        assert (place.stat().st_uid, (place / "blobs").stat().st_uid) == (USER, USER)
        assert install_record.remembered("directories") == [], "uninstalling does not remove it"
        directory.undo()
        assert (place.stat().st_uid, (place / "blobs").stat().st_uid) == (0, 0)
        (place / "x").write_text("")
        assert "x is in it" in directory.give(("blobs",)) and not directory.needed()
        assert "No such file" in DirectoryStep(str(place / "none"), "racer").give(())
    finally:
        shutil.rmtree(place)


# --- the user


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", [0, 1, 2, 3])
@pytest.mark.parametrize("then", ["again", "undone"])
def test_a_run_killed_while_it_makes_the_user(accounts, monkeypatch, call, then):
    """The user is remembered before it is made: whatever is left, the next run knows whose it is."""
    left, run, add = [call], account.run, install_record.add

    def killed(work, *words):
        if not left[0]:
            raise Killed
        left[0] -= 1
        work(*words)

    with monkeypatch.context() as patch:
        patch.setattr(account, "run", lambda command: killed(run, command))
        patch.setattr(install_record, "add", lambda kind, name: killed(add, kind, name))
        with pytest.raises(Killed):
            UserStep("ollama", accounts.home).apply()
    assert not accounts.users or install_record.remembered("users") == ["ollama"]
    again = UserStep("ollama", accounts.home)
    again.apply()
    if then == "undone":
        again.undo()
        assert bool(accounts.users) == (call == 3), "what the killed run has made is not this run's to undo"
    else:
        assert (install_record.remembered("users"), install_record.remembered("homes")) == (["ollama"], [accounts.home])


def test_a_user_that_cannot_be_made_is_forgotten(accounts, monkeypatch):
    def fails(command):
        raise StepError("useradd: cannot lock /etc/passwd")

    monkeypatch.setattr(account, "run", fails)
    user = UserStep("ollama", accounts.home)
    with pytest.raises(StepError):
        user.apply()
    user.undo()
    assert (install_record.remembered("users"), install_record.remembered("homes")) == ([], [])


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
    assert (install_record.remembered("users"), install_record.remembered("homes")) == (["ollama"], [accounts.home])
    user.undo()
    assert install_record.remembered("users") == []
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
    with pytest.raises(StepError, match="sh -c echo no >&2; exit 9: exit status 9: no"):
        account.run(["sh", "-c", "echo no >&2; exit 9"])
    with pytest.raises(StepError, match="nosuchcommand: No such file"):
        account.run(["nosuchcommand"])
