# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that builds, tests, switches and prunes, killed before each of its changes: what it leaves, what the next finds.

The installer is a function of this test; all else is real.
"""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import environment, step
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.build import Builder
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.environment import EnvironmentStep
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.wheels import Choice
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import files
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

PARTS = {"bin/python", "lib/engine", "lib/dependency"}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """`host.bring("1.0")` is the module's work; `host.fails` what the installer is to fail at."""
    this = SimpleNamespace(fails="", synced=[], folder=tmp_path / "opt/engine")
    interpreter = tmp_path / "python3.11"
    interpreter.write_text("")
    interpreter.chmod(0o755)

    def run(builder, command, hint=None):
        path, what = builder.path, "test"
        if "venv" in command:
            what = "venv"
            os.mkdir(path + "/bin")
            os.symlink(interpreter, path + "/bin/python")
        elif "install" in command:
            what = "install"
            os.mkdir(path + "/lib")
            for name in ("engine", "dependency"):
                with open(path + "/lib/" + name, "w") as file:
                    file.write(name)
        if this.fails == what:
            raise Failed("%s failed" % what)
        return json.dumps({"device": "cpu", "packages": {"engine": "1.0"}})

    def step_for(_engine, params):
        choice = Choice("engine", params["version"], "cpu", ("engine==" + params["version"],))
        return EnvironmentStep(choice, str(interpreter), root=str(tmp_path / "opt"))

    def bring(version, check=False):
        params = {"engine": "engine", "version": version, "wheels": None}
        return step.converge(params, check, None)

    rmtree = shutil.rmtree

    def marker_last(path, **more):
        """In the order that leaves the most misleading rest."""
        for part in ("lib", "bin"):
            rmtree(os.path.join(path, part), **more)
        rmtree(path, **more)

    monkeypatch.setattr(environment.shutil, "rmtree", marker_last)
    monkeypatch.setattr(Builder, "_run", run)
    monkeypatch.setattr(step, "step_for", step_for)
    monkeypatch.setattr(environment, "_texts", lambda folder: [])
    monkeypatch.setattr(files, "sync_all", this.synced.append)
    monkeypatch.setattr(environment, "_writer", lambda path: "")
    monkeypatch.setattr(environment.os, "fsync", lambda descriptor: None)
    this.bring, this.step = bring, lambda version: step_for("", {"version": version})
    return this


def content(path):
    found = set()
    for here, _folders, names in os.walk(path):
        found.update(os.path.relpath(os.path.join(here, name), path) for name in names)
    return found & PARTS


def look(host):
    """What lies there: `whole`, `half`, `links`. Nothing that passes for whole is less than that."""
    whole, half, links = [], [], {}
    for name in sorted(os.listdir(host.folder)) if host.folder.exists() else []:
        path = str(host.folder / name)
        if os.path.islink(path):
            links[name] = os.readlink(path)
        elif os.path.isdir(path):
            (whole if environment.read_record(path) else half).append(name)
            assert not environment.read_record(path) or content(path) == PARTS or name.endswith(".aside"), name
    return SimpleNamespace(whole=whole, half=half, links=links)


def versions(names):
    return [name.split("-")[0] for name in names]


def start(host, which):
    shutil.rmtree(str(host.folder.parent), ignore_errors=True)
    host.fails = ""
    for version in {"nothing": [], "former": ["1.0"], "three": ["0.8", "0.9", "1.0"], "damaged": ["1.0"]}[which]:
        step = host.step(version)
        step.apply()
    if which == "damaged":
        os.unlink(step.python)


@pytest.mark.parametrize(
    ("which", "then"),
    [(which, then) for which in ("nothing", "former") for then in ("same", "former", "failing install", "failing test")]
    + [("three", "same"), ("three", "former")],
)
def test_killed_at_every_change(host, kills, which, then):
    def prepared():
        start(host, which)
        return lambda: host.bring("1.1")

    for number in kills.each(prepared):
        here = look(host)
        if which != "nothing":
            assert versions([here.links["current"]])[0] in ("1.0", "1.1") and here.links["current"] in here.whole, (
                number
            )
        if then == "same":
            assert host.bring("1.1")["changed"] or not here.half
            here = look(host)
            assert versions([here.links["current"]]) == ["1.1"]
        elif then == "former":
            would, done = host.bring("1.0", check=True), host.bring("1.0")
            assert would["changed"] == done["changed"], number
            here = look(host)
            assert versions([here.links["current"]]) == ["1.0"]
        else:
            host.fails = then.split()[1]
            before = look(host).links.get("current")
            if host.step("1.1").built():
                continue
            with pytest.raises(Failed, match="failed"):
                host.bring("1.1")
            here = look(host)
            assert here.links.get("current") == before, number
            host.fails = ""
            host.bring("1.1")
            here = look(host)
        assert here.half == [] and set(here.links) <= {"current", "previous"}, number
        assert {name for name in here.links.values() if name not in here.whole} == set(), number
        assert not host.bring(versions([here.links["current"]])[0])["changed"], number
    assert kills.points > 15


@pytest.mark.parametrize("then", ["same", "other", "failing"])
def test_killed_while_a_damaged_one_is_rebuilt(host, kills, then):
    def prepared():
        start(host, "damaged")
        return lambda: host.bring("1.0")

    for number in kills.each(prepared):
        if then == "failing" and not host.step("1.0").built():
            host.fails = "install"
            with pytest.raises(Failed, match="install failed"):
                host.bring("1.0")
            assert content(host.step("1.0").path) == PARTS - {"bin/python"}, "what was in use is back"
            host.fails = ""
        if then == "other":
            host.bring("1.1")
        host.bring("1.0")
        here = look(host)
        assert here.half == [] and host.step("1.0").built() and set(here.links) <= {"current", "previous"}, number
        assert all(content(str(host.folder / name)) == PARTS for name in here.whole), number
        assert not host.bring("1.0")["changed"]
    assert kills.points > 15


def test_killed_while_it_is_undone(host, kills):
    """As by the engine, when a service does not run in the new one: the half removed one is not whole, and goes."""

    def prepared():
        start(host, "former")
        step = host.step("1.1")
        step.apply()
        return step.undo

    for number in kills.each(prepared):
        look(host)
        host.bring("1.0")
        here = look(host)
        assert here.half == [] and versions([here.links["current"]]) == ["1.0"], number
        host.bring("1.1")
        assert versions([look(host).links["current"]]) == ["1.1"]
    assert kills.points > 8


def test_what_is_being_built_is_not_left_over(host, monkeypatch):
    start(host, "former")
    seen, build = [], Builder._test

    def test(builder):
        seen.append(
            (
                host.bring("1.0", check=True)["changed"],
                host.bring("1.0")["pruned"],
                os.stat(builder.path).st_mode & 0o777,
            )
        )
        build(builder)

    monkeypatch.setattr(Builder, "_test", test)
    host.bring("1.1")
    assert seen == [(False, [], 0o700)] and os.stat(host.step("1.1").path).st_mode & 0o777 == 0o755


def test_it_is_whole_once_all_of_it_is_on_the_disk(host, monkeypatch):
    done, rename = [], os.rename
    monkeypatch.setattr(files, "sync_all", lambda path: done.append(("all", content(path) == PARTS)))
    monkeypatch.setattr(
        environment.os, "rename", lambda old, new, **at: (done.append(os.path.basename(new)), rename(old, new, **at))
    )
    monkeypatch.setattr(environment.os, "fsync", lambda descriptor: done.append("sync"))
    replace = os.replace
    monkeypatch.setattr(
        environment.os, "replace", lambda old, new: (done.append(os.path.basename(new)), replace(old, new))
    )
    host.bring("1.0")
    assert done == [("all", True), "sync", "gpufleet.json", "sync", "current", "sync"]
