# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else may write where root builds, and what is shown of a build, whatever the umask and the environment are."""

from __future__ import annotations

import json
import os
import stat

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import build, interpreters
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.environment import EnvironmentStep
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.wheels import Choice
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files, users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

ALICE = 12345
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who is attacked")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """`make()` is a step, `make.ran` what it runs, with what the installer could read."""
    interpreter = tmp_path / "python3.11"
    interpreter.write_text("#!/bin/sh\n")
    interpreter.chmod(0o755)
    ran = []

    def run(command, **more):
        path = next((word for word in command if word.startswith(str(tmp_path)) and "engine/" in word), "")
        seen = {}
        for here, _folders, names in os.walk(path.partition("/bin/python")[0]) if path else ():
            for name in names:
                if name.endswith(".txt"):
                    with open(os.path.join(here, name)) as file:
                        seen[name] = (file.read(), os.stat(os.path.join(here, name)).st_mode & 0o777)
        if "venv" in command:
            os.mkdir(command[-1] + "/bin")
            os.symlink(interpreter, command[-1] + "/bin/python")
        ran.append((command, more["env"], seen))
        said = json.dumps({"device": "cpu", "packages": {}}).encode()
        return type("Done", (), {"returncode": 0, "stdout": said, "stderr": b""})()

    monkeypatch.setattr(build.subprocess, "run", run)
    monkeypatch.setattr(interpreters, "_search_path", lambda: str(tmp_path / "nothing"))
    monkeypatch.setattr(files, "sync_all", lambda path: None)

    def step(root="opt", packages=("engine==1.0",), **more):
        return EnvironmentStep(
            Choice("engine", "1.0", "cpu", packages, **more), str(interpreter), None, str(tmp_path / root)
        )

    step.ran = ran
    return step


@root_alone
@pytest.mark.parametrize("whose", ["a user's", "a group's", "everybody's", "below a user's", "a link in a user's"])
def test_where_others_may_write_root_runs_nothing(make, tmp_path, whose):
    folder, victim = tmp_path / "opt", tmp_path / "victim"
    folder.mkdir()
    victim.mkdir()
    root = "opt"
    if whose == "a group's":
        os.chown(folder, 0, ALICE)
        folder.chmod(0o775)
    elif whose == "everybody's":
        folder.chmod(0o1777)
    else:
        os.chown(folder, ALICE, ALICE)
        if whose == "below a user's":
            (folder / "roots").mkdir()
            root = "opt/roots"
        elif whose == "a link in a user's":
            (folder / "link").symlink_to(victim)
            root = "opt/link"
    with pytest.raises(Failed, match="root would run programs there. Declare a folder of root's"):
        make(root).apply()
    assert make.ran == [] and os.listdir(victim) == []


@root_alone
def test_a_folder_of_root_below_a_sticky_one_is_root_s(make, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared/opt").mkdir()
    make("shared/opt").apply()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(Failed, match="may be written by any user"):
        make("shared/opt", packages=("engine==1.1",)).apply()


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_the_user_of_a_service_can_use_it_whatever_the_umask_is(make, tmp_path, umask):
    before = os.umask(umask)
    try:
        make().apply()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for here, folders, names in os.walk(tmp_path / "opt"):
        for name in [*folders, *names]:
            found = os.lstat(os.path.join(here, name))
            if not stat.S_ISLNK(found.st_mode) and name != ".lock":
                assert found.st_mode & 0o777 == (0o755 if stat.S_ISDIR(found.st_mode) else 0o644), name


def test_a_password_in_a_package_stands_nowhere(make, tmp_path):
    secret = "https://me:s3cret@wheels.example.com/engine-1.0-py3-none-any.whl"
    step = make(packages=("engine @ " + secret, "more"), constraints=("numpy @ " + secret,), without=("torch",))
    assert "s3cret" not in json.dumps(step.diff())
    step.apply()
    assert not any("s3cret" in word for command, _environment, _seen in make.ran for word in command)
    seen = [seen for _command, _environment, seen in make.ran if ".requirements.txt" in seen]
    assert seen[0][".requirements.txt"] == ("engine @ %s\n" % secret, 0o600)
    assert seen[0][".constraints.txt"] == ("numpy @ %s\n" % secret, 0o600)
    assert "s3cret" not in json.dumps([step.record(), step.diff()])
    for here, _folders, names in os.walk(step.path):
        for name in names:
            with open(os.path.join(here, name)) as file:
                assert "s3cret" not in file.read()
    assert (
        step.asked == make(packages=step.choice.packages, constraints=step.choice.constraints, without=("torch",)).asked
    )


@root_alone
def test_root_takes_no_settings_and_caches_from_another_user_s_home(make, tmp_path, monkeypatch):
    """`sudo` without -H leaves HOME as it was; a cache of wheels there could hold anything."""
    (tmp_path / "alice").mkdir()
    os.chown(tmp_path / "alice", ALICE, ALICE)
    (tmp_path / "mine").mkdir()
    for home, expected in (
        (tmp_path / "alice", users.home()),
        (tmp_path / "none", users.home()),
        (tmp_path / "mine", str(tmp_path / "mine")),
    ):
        monkeypatch.setenv("HOME", str(home))
        make("opt-" + home.name).apply()
        assert {given["HOME"] for _command, given, _seen in make.ran} == {expected}
        make.ran.clear()


@root_alone
def test_pruning_follows_no_link(make, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    for number in range(3):
        step = make(packages=("engine==1.%d" % number,))
        step.apply()
        (tmp_path / "opt/engine" / step.name / "lib").symlink_to(victim)
    (tmp_path / "opt/engine/9.9-cpu-abc").symlink_to(victim)
    assert len(step.prune(str(tmp_path / "units"))) == 1
    assert os.listdir(victim) == ["kept"] and (tmp_path / "opt/engine/9.9-cpu-abc").is_symlink()
