# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user of a job may put in root's way: nothing of root's is read, changed or deleted, and the run ends."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import stat
import tempfile
import threading
import time

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import evidence, logs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be misled")

ALICE, BOB = "daemon", "nobody"
IDS = users.ids_of(ALICE)
SECRET = "root:$6$verysecret"


@pytest.fixture
def system(system, monkeypatch):
    """The host's files where every user may look, and nobody but root may write."""
    root = tempfile.mkdtemp(prefix="gpufleet-test-", dir="/opt")
    os.chmod(root, 0o755)
    shutil.copytree(system.root, root, dirs_exist_ok=True)
    system.root = root
    made = os.umask(0o022)
    yield system
    os.umask(made)
    shutil.rmtree(root)


@pytest.fixture
def precious(system):
    """A folder of root with a file that nobody else may read; both are as before at the end."""
    folder = system.path("/root/precious")
    (folder / "old_run" / "attempt_0").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "shadow").write_text(SECRET)
    (folder / "shadow").chmod(0o600)
    before = look(folder)
    yield folder
    assert look(folder) == before


def look(folder):
    return {str(path): (path.lstat().st_mode, path.lstat().st_uid) for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def home(system):
    folder = system.path("/srv/alice")
    folder.mkdir(parents=True)
    os.chown(folder, IDS.uid, IDS.gid)
    return folder


def as_alice(work):
    return users.as_user(IDS, lambda: str(work()))


# --- the folder for the logs


@pytest.mark.parametrize("check, state", [(True, "started"), (False, "started"), (False, "present")])
@pytest.mark.parametrize("to", ["", "/deeper"])
def test_a_log_dir_that_is_a_link_to_a_folder_of_root(bring, home, precious, check, state, to):
    as_alice(lambda: os.symlink(precious, home / "runs"))
    with pytest.raises(Refused, match="log_dir: /srv/alice/runs.*: runs is a symbolic link in a folder that others"):
        bring(state, user=ALICE, log_dir="/srv/alice/runs" + to, check=check)
    assert not bring.system.path("/etc/gpufleet").exists()


@pytest.mark.parametrize("check", [True, False])
def test_a_log_dir_of_root_in_a_folder_of_the_user(bring, home, check):
    """He cannot have made it, but he can move it: root gives nothing away there."""
    (home / "runs").mkdir()
    with pytest.raises(Refused, match="log_dir: /srv/alice/runs belongs to user 0, .* give it to daemon, or"):
        bring(user=ALICE, log_dir="/srv/alice/runs", check=check)
    assert (home / "runs").stat().st_uid == 0


def test_a_log_dir_that_is_replaced_while_it_is_made(bring, home, precious):
    """A race of two hundred rounds against what alice can do in her folder: either it is alice's own new folder, or the run is refused."""
    stop = threading.Event()
    place = home / "runs"

    def swap():
        while not stop.is_set():
            for act in (lambda: os.rmdir(place), lambda: os.symlink(precious, place), lambda: os.unlink(place)):
                try:
                    act()
                except OSError:
                    pass

    made = bring.part(user=ALICE, log_dir="/srv/alice/runs")
    thread = threading.Thread(target=swap, daemon=True)
    thread.start()
    refused = 0
    try:
        for _round in range(200):
            try:
                made._make_log_dir()
            except Refused:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert 0 < refused <= 200


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_whatever_the_umask_is_the_user_can_write_his_logs_and_read_his_script(bring, system, umask):
    os.umask(umask)
    bring(user=ALICE, script=None, content="print(1)")
    as_alice(lambda: system.path("/var/log/torchrun/train/x").write_text("mine"))
    assert as_alice(system.path("/var/lib/gpufleet/torchrun/train/script.py").read_text) == "print(1)"
    as_alice(lambda: system.path("/var/lib/gpufleet/torchrun/train/ended").write_text("over"))


def test_another_user_gets_the_folder_in_a_folder_of_root(bring, system):
    for name in ("root", ALICE, BOB):
        bring(user=name)
        assert system.path("/var/log/torchrun/train").stat().st_uid == pwd.getpwnam(name).pw_uid


def test_old_logs_are_removed_with_the_rights_of_the_user(bring, system, precious):
    runs = system.path("/var/log/torchrun/train")
    bring(user=ALICE)

    def fill():
        for number in range(4):
            (runs / ("x_%d" % number) / "attempt_0").mkdir(parents=True)
            os.utime(runs / ("x_%d" % number), (number, number))
        os.symlink(precious, runs / "a_link")
        os.symlink(precious, runs / "x_0" / "deep")

    as_alice(fill)
    os.rename(runs / "x_1", runs / "x_1.root")
    shutil.copytree(precious, runs / "x_1.root", dirs_exist_ok=True)
    os.chown(runs / "x_1.root", 0, 0)
    os.chmod(runs / "x_1.root", 0o755)
    os.rename(runs / "x_1.root", runs / "x_1")
    bring(user=ALICE, restart=True, keep_logs=1)
    assert sorted(path.name for path in runs.iterdir()) == ["a_link", "x_1"]
    assert (runs / "x_1/shadow").read_text() == SECRET


# --- what the user's processes have left


def leave(system, put, name="stdout.log"):
    """A run of alice's whose log is made by `put(path)`."""
    folder = system.path("/var/log/torchrun/train/x_y/attempt_0/0")
    as_alice(lambda: folder.mkdir(parents=True))
    put(folder / name)


def failed(bring, system, **more):
    system.end("exit-code", "exited", "1")
    with pytest.raises(Failed) as caught:
        bring.bare("finished", user=ALICE, **more)
    return caught.value.result


def test_a_log_that_is_a_link_shows_nothing_of_root(bring, system, precious):
    bring(user=ALICE)
    for name in ("stdout.log", "stderr.log", "error.json"):
        leave(system, lambda path: as_alice(lambda: os.symlink(precious / "shadow", path)), name)
        shutil.rmtree(system.path("/var/log/torchrun/train/x_y/attempt_0/0")) if name != "error.json" else None
    assert SECRET not in json.dumps(failed(bring, system))


def test_a_hard_link_shows_nothing_of_root(bring, system, precious):
    bring(user=ALICE)
    leave(system, lambda path: os.link(precious / "shadow", path))  # where protected_hardlinks is 0
    assert SECRET not in json.dumps(failed(bring, system))
    os.unlink(system.path("/var/log/torchrun/train/x_y/attempt_0/0/stdout.log"))


def test_a_folder_of_logs_that_is_a_link_shows_nothing_of_root(bring, system, precious):
    bring(user=ALICE)
    precious.chmod(0o700)
    (precious / "stdout.log").write_text(SECRET)
    folder = system.path("/var/log/torchrun/train/x_y/attempt_0")
    as_alice(lambda: folder.mkdir(parents=True))
    as_alice(lambda: os.symlink(precious, folder / "0"))
    assert SECRET not in json.dumps(failed(bring, system))
    os.unlink(precious / "stdout.log")
    precious.chmod(0o755)


def _device(path):
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


def _socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.open(path.parent, os.O_PATH)
        one.bind("/proc/self/fd/%d/%s" % (folder, path.name))
        os.close(folder)


def _huge(path):
    with open(path, "wb") as stream:
        stream.write(b"begin\n")
        stream.truncate(1 << 40)


@pytest.mark.parametrize("name", ["stdout.log", "stderr.log", "error.json"])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, _device, _socket, _huge])
def test_what_is_no_log_neither_hangs_nor_fills_the_memory(bring, system, put, name):
    bring(user=ALICE)
    leave(system, put, name)
    began = time.monotonic()
    result = failed(bring, system)
    assert result["exit_status"] == 1 and time.monotonic() - began < evidence.LIMIT / 2
    assert len(json.dumps(result)) < 1 << 20


def test_no_terminal_obeys_last_words(bring, system):
    bring(user=ALICE)
    leave(system, lambda path: path.write_text("\x1b]0;owned\x07\x1b[31mred\x9b2J\u202eback\r50 %\rlast"), "stderr.log")
    assert failed(bring, system)["last_words"] == ["?]0;owned?red?back", "50 %", "last"]
    path = system.path("/var/log/torchrun/train/x_y/attempt_0/0/error.json")
    path.write_text(json.dumps({"message": {"message": "\x1b[2JValueError: x", "extraInfo": {"timestamp": "inf"}}}))
    assert [(one["message"], one["time"]) for one in failed(bring, system)["failures"]] == [("ValueError: x", None)]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100000,
        json.dumps({"message": "  \n "}),
        json.dumps({"message": [1]}),
        json.dumps({"message": {"message": {}, "extraInfo": {"timestamp": []}}}),
        json.dumps([]),
        '{"message": {"message": "x", "extraInfo": {"timestamp": %s}}}' % ("9" * 5000),
        "\0\xff",
    ],
)
def test_odd_error_files(bring, system, text):
    bring(user=ALICE)
    leave(system, lambda path: path.write_text(text, encoding="latin-1"), "error.json")
    assert failed(bring, system)["verdict"] in ("failed", "worker_failed", "peer_missing")


@pytest.mark.parametrize(
    "line",
    [
        "RANKS rank=x local=1",
        "RANKS rank=\u00b2 local=1",
        "ALLREDUCE MiB=1.2.3 s=e-- busbw=x",
        "ALLREDUCE MiB=1",
        "PAIR a=x b=1 gbps=0.1.1",
        "restart_count=%s group_world_size=1 global_ranks=[1 2,] global_world_sizes=[1" % ("9" * 5000),
        "failed (exitcode: -%s) local_rank: 1" % ("9" * 5000),
        "Root Cause (first observed failure):\n[0]:\n  rank : %s (local_rank: %s)\n  exitcode : %s"
        % (("9" * 5000,) * 3),
    ],
)
def test_odd_lines_say_nothing(line):
    said = logs.read(line)
    assert (said["ranks"], said["allreduce"], said["pairs"]) == ([], [], [])
    logs.rounds(line)
    logs.deaths(line)


@pytest.mark.parametrize(
    "text",
    ["\n" * (1 << 18), "restart_count=1 " * (1 << 14), "a" * (1 << 18), " " * (1 << 18), "NCCL WARN x\n" * (1 << 15)],
)
def test_no_log_takes_long_to_read(text):
    """Without bounds in the patterns each of them takes minutes."""
    began = time.process_time()
    logs.read(text)
    logs.rounds(text)
    logs.last_words(text)
    assert time.process_time() - began < 20


def test_logs_that_hang_cost_a_limit(bring, system, monkeypatch):
    bring(user=ALICE)
    monkeypatch.setattr(evidence, "LIMIT", 0.2)
    monkeypatch.setattr(evidence, "_runs", lambda folder: time.sleep(60) if folder else [])
    system.lines = ["python: something"]
    result = failed(bring, system)
    assert result["last_words"][0] == "python: something"
    assert result["last_words"][1].startswith("The logs in /var/log/torchrun/train cannot be read: it took longer")


@pytest.mark.parametrize(
    "text", ["9" * 5000, "x y z", "%s success exited \u00b2 i", "%s success exited 0 ../x", "\0" * 99]
)
def test_an_odd_word_of_the_end(bring, system, text):
    """The job's user may write that file, but no other one in its place."""
    bring(user=ALICE)
    path = system.path("/var/lib/gpufleet/torchrun/train/ended")
    mark = system.environment["GPUFLEET_JOB"]
    as_alice(lambda: path.write_text(text.replace("%s", mark)))
    system.up = False
    assert bring("present", user=ALICE)["ready"] is False
    with pytest.raises(PermissionError):
        as_alice(lambda: os.unlink(path))


def test_nothing_of_the_unit_runs_as_root(bring, system):
    """It would run with the job's variables: LD_PRELOAD, or LD_LIBRARY_PATH with a folder of the user."""
    bring(user=ALICE, environment={"LD_PRELOAD": "/srv/alice/evil.so"})
    text = system.path("/etc/systemd/system/torchrun@train.service").read_text()
    assert "User=daemon\n" in text and "=+" not in text and "=!" not in text


@pytest.mark.parametrize("place, mode, owner", [
    ("", 0o777, 0), ("train.py", 0o666, 0), ("train.py", 0o644, 40404), ("", 0o755, 40404), ("", 0o755, 0)
])  # fmt: skip
def test_root_is_told_when_it_runs_what_others_can_change(bring, system, place, mode, owner):
    path = system.path("/srv") / place
    path.chmod(mode)
    os.chown(path, owner, -1)
    said = []
    bring(warnings=said)
    safe = (mode, owner) == (0o755, 0)
    who = "may be written by any user" if owner == 0 else "belongs to user 40404"
    expected = "the job runs /srv/train.py as root, but %s %s: declare another user" % (str(path).rstrip("/"), who)
    assert [text for text in said if "as root" in text] == ([] if safe else [expected])
    bring(user=ALICE, warnings=said)
    assert len([text for text in said if "as root" in text]) == (not safe)


def test_root_is_told_when_it_runs_where_others_can_put_modules(bring, system):
    system.path("/shared").mkdir()
    system.path("/shared").chmod(0o777)
    said = []
    bring(warnings=said, working_directory="/shared")
    assert len([text for text in said if "the job runs as root in /shared, but " in text]) == 1


# --- the plain script


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("how", ["link", "fifo", "device", "folder", "parent"])
def test_a_script_path_in_a_folder_of_the_user(bring, system, home, precious, check, how):
    path = home / "bin" / "run.sh"
    as_alice(lambda: os.mkdir(home / "bin"))
    if how == "link":
        as_alice(lambda: os.symlink(precious / "shadow", path))
    elif how == "parent":
        os.rmdir(home / "bin")
        as_alice(lambda: os.symlink(precious, home / "bin"))
    else:
        {"fifo": os.mkfifo, "device": _device, "folder": os.mkdir}[how](path)
    with pytest.raises(Refused, match="script_path: /srv/alice/bin/run.sh: "):
        bring(user=ALICE, script_path="/srv/alice/bin/run.sh", check=check)


def test_a_script_in_the_way_is_not_shown(bring, home, precious):
    os.link(precious / "shadow", home / "run.sh")
    result = bring("present", user=ALICE, script_path="/srv/alice/run.sh")
    assert SECRET not in json.dumps(result) and "# /srv/alice/run.sh\n<another file>" in result["diff"]["before"]
    assert (home / "run.sh").read_text().startswith("#!/bin/sh")
    assert bring("present", user=ALICE, script_path="/srv/alice/run.sh")["changed"] is False
    as_alice(lambda: (home / ".run.sh.new").write_text("left"))
    assert bring("present", user=ALICE, script_path="/srv/alice/run.sh")["changed"] is True
    assert not (home / ".run.sh.new").exists()
