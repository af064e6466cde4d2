# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release is installed and switched to in a scratch directory: done, done again, undone, and undone half-way."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import pwd
import shutil
import socket
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import archives, switch
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.release import BackStep, ReleaseStep
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.sources import UNVERIFIED, Release, Source
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.switch import Layout
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.template import TemplateStep
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import labels, unpack
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

LINKS = (("bin/ollama", "bin/ollama"), ("lib/ollama", "lib/ollama"))
ME = pwd.getpwuid(os.geteuid()).pw_name


def tree(folder):
    """Everything below a folder: path to mode and content or link."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(where, name)
            if os.path.islink(path):
                what = "-> " + os.readlink(path)
            elif os.path.isdir(path):
                what = "directory"
            else:
                with open(path, encoding="utf-8") as file:
                    what = file.read()
            found[os.path.relpath(path, folder)] = (os.lstat(path).st_mode & 0o777, what)
    return found


@pytest.fixture
def archive(tmp_path):
    """`archive("1", ...)` makes a release whose bin/ollama holds that text; gives (path, sha256)."""

    def make(text="one", members=None, zstd=False, name=None):
        path = tmp_path / (name or "ollama-%s.tgz" % text)
        # without the time of day: the same release has the same digest each time it is made
        with gzip.GzipFile(path, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
            for member in members or [
                ("bin/ollama", 0o755, text),
                ("lib/ollama/llama-server", 0o755, text),
                ("lib/ollama/cuda_v13/libggml-cuda.so", 0o600, ""),
            ]:
                entry = tarfile.TarInfo(member[0])
                entry.mode, entry.uid, entry.uname = member[1], 1234, "somebody"
                if len(member) > 3:
                    entry.type, entry.linkname = member[3], member[2]
                    tar.addfile(entry)
                else:
                    entry.size = len(member[2])
                    tar.addfile(entry, io.BytesIO(member[2].encode()))
        if zstd:
            plain = subprocess.run(["gzip", "-dc", str(path)], check=True, stdout=subprocess.PIPE).stdout
            path = path.with_suffix(".tar.zst")
            subprocess.run(["zstd", "-q", "-o", str(path)], check=True, input=plain)
        return str(path), hashlib.sha256(path.read_bytes()).hexdigest()

    return make


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "usr")


def step(archive, prefix, *addons):
    return ReleaseStep(Release(tuple(Source(*one) for one in (archive, *addons))), Layout("ollama", prefix, LINKS))


def libraries(prefix):
    return sorted(name for name in os.listdir(prefix + "/lib/ollama") if name != "llama-server")


def proven(release):
    release.apply()
    release.finish()


# --- the release


@pytest.mark.parametrize(
    "zstd", [False, pytest.param(True, marks=pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd here"))]
)
def test_a_release_is_taken_by_links(archive, prefix, zstd):
    packed = archive(zstd=zstd)
    release = step(packed, prefix)
    assert release.needed()
    assert not release.unpacked()
    assert release.diff()["before"] == ""
    proven(release)
    folder = "lib/gpufleet/ollama-" + packed[1][:12]
    found = tree(prefix)
    assert found["bin/ollama"][1] == "-> ../%s/bin/ollama" % folder
    assert found["lib/ollama"][1] == "-> gpufleet/ollama-%s/lib/ollama" % packed[1][:12]
    assert found[folder + "/bin/ollama"] == (0o755, "one")
    assert found[folder + "/lib/ollama/cuda_v13/libggml-cuda.so"] == (0o644, "")
    assert found[folder + "/.sha256"][1] == packed[1] + "\n"
    assert os.path.isdir(os.path.join(prefix, "lib/ollama/cuda_v13")), "as ../lib/ollama from the real binary"
    assert not [name for name in found if ".part" in name or ".gpufleet" in name]
    again = step(("gone", packed[1]), prefix)
    assert not again.needed()
    assert libraries(prefix) == ["cuda_v13"]


def test_undo_leaves_nothing(archive, prefix):
    os.makedirs(prefix + "/bin")
    os.makedirs(prefix + "/lib")
    before = tree(prefix)
    release = step(archive(), prefix)
    release.apply()
    release.undo()
    assert tree(prefix) == before


def test_a_switch_keeps_the_former_release_and_goes_back(archive, prefix):
    proven(step(archive("one"), prefix))
    before = tree(prefix)
    release = step(archive("two"), prefix)
    diff = release.diff()
    assert diff["before"] != diff["after"]
    release.apply()
    with open(prefix + "/bin/ollama", encoding="utf-8") as file:
        assert file.read() == "two"
    release.undo()
    assert tree(prefix) == before


def test_releases_before_the_former_one_are_removed(archive, prefix):
    for text in ("one", "two", "three"):
        proven(step(archive(text), prefix))
    step(archive("three"), prefix).finish()  # nothing was switched
    kept = sorted(name for name in os.listdir(prefix + "/lib/gpufleet"))
    assert kept == sorted("ollama-" + archive(text)[1][:12] for text in ("two", "three"))


def test_back_to_the_former_release_without_its_archive(archive, prefix):
    one = archive("one")
    step(one, prefix).apply()
    step(archive("two"), prefix).apply()
    back = step(("gone", one[1]), prefix)
    assert back.needed()
    assert back.unpacked()
    back.apply()
    with open(prefix + "/bin/ollama", encoding="utf-8") as file:
        assert file.read() == "one"


def test_upstreams_own_files_are_set_aside_and_come_back(archive, prefix):
    os.makedirs(prefix + "/lib/ollama/cuda_v12")
    os.makedirs(prefix + "/bin")
    for name in ("bin/ollama", "lib/ollama/llama-server"):
        with open(os.path.join(prefix, name), "w", encoding="utf-8") as file:
            file.write("vendor")
    before = tree(prefix)
    release = step(archive(), prefix)
    assert release.diff()["before"] == "%s/bin/ollama\n%s/lib/ollama\n" % (prefix, prefix)
    release.apply()
    release.finish()
    assert os.path.islink(prefix + "/bin/ollama")
    release.undo()
    assert {name: what for name, what in tree(prefix).items() if not name.startswith("lib/gpufleet")} == before


def test_upstreams_installer_over_our_links(archive, prefix):
    """What install.sh does: rm -rf lib/ollama, unpack over the prefix. Our release stays whole, and is taken again."""
    packed = archive("ours")
    proven(step(packed, prefix))
    subprocess.run(["rm", "-rf", prefix + "/lib/ollama"], check=True)
    subprocess.run(["tar", "-xzf", archive("vendor")[0], "-C", prefix], check=True)
    with open(prefix + "/bin/ollama", encoding="utf-8") as file:
        assert file.read() == "vendor"
    release = step(("gone", packed[1]), prefix)
    assert release.needed()
    assert release.unpacked()
    for _twice in range(2):
        proven(step(("gone", packed[1]), prefix))
        with open(prefix + "/bin/ollama", encoding="utf-8") as file:
            assert file.read() == "ours"
        assert not step(("gone", packed[1]), prefix).needed()
        subprocess.run(["rm", "-rf", prefix + "/lib/ollama", prefix + "/bin/ollama"], check=True)
        subprocess.run(["tar", "-xzf", archive("vendor")[0], "-C", prefix], check=True)


BAD = [
    ([("README", 0o644, "x")], "holds no program bin/ollama"),
    ([("../evil", 0o644, "x")], "unsafe name '../evil'"),
    ([("/etc/evil", 0o644, "x")], "unsafe name '/etc/evil'"),
    ([("lib/link", 0o777, "../../etc", tarfile.SYMTYPE)], "holds the link 'lib/link', which leads out"),
    ([("bin/hard", 0o777, "/etc/passwd", tarfile.LNKTYPE)], "unsafe name '/etc/passwd'"),
    ([("dev/null", 0o666, "", tarfile.CHRTYPE)], "holds a device"),
]


@pytest.mark.parametrize("members, reason", BAD)
def test_an_archive_that_is_no_release(archive, prefix, members, reason):
    release = step(archive(members=members), prefix)
    with pytest.raises(StepError, match=reason):
        release.apply()
    release.undo()
    assert tree(prefix) in ({}, {"lib": (0o755, "directory")})


def test_a_link_inside_the_archive_is_kept(archive, prefix):
    members = [
        ("bin/ollama", 0o755, "x"),
        ("lib/ollama/libggml.so.1", 0o644, "x"),
        ("lib/ollama/libggml.so", 0o777, "libggml.so.1", tarfile.SYMTYPE),
        ("lib/ollama/v12", 0o700, "", tarfile.DIRTYPE),
    ]
    packed = archive(members=members)
    step(packed, prefix).apply()
    assert os.readlink(prefix + "/lib/ollama/libggml.so") == "libggml.so.1"


def test_the_wrong_checksum(archive, prefix):
    path, right = archive()
    release = step((path, "0" * 64), prefix)
    with pytest.raises(StepError, match="has the SHA-256 %s; expected 000" % right):
        release.apply()


def test_a_file_that_is_no_archive(tmp_path, prefix):
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(StepError, match=r"neither a .tgz nor a .tar.zst"):
        step((str(path), archives.sha256_of(str(path))), prefix).apply()


@pytest.mark.parametrize(
    "zstd", [False, pytest.param(True, marks=pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd here"))]
)
def test_a_damaged_archive(archive, tmp_path, prefix, zstd):
    path, _digest = archive(zstd=zstd)
    cut = tmp_path / "cut"
    with open(path, "rb") as whole:
        cut.write_bytes(whole.read(os.path.getsize(path) // 2))
    with pytest.raises(StepError, match="is damaged"):
        step((str(cut), archives.sha256_of(str(cut))), prefix).apply()


def test_no_zstd_on_the_host(tmp_path, prefix, monkeypatch):
    path = tmp_path / "x.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setattr(archives.shutil, "which", lambda name: None)
    with pytest.raises(StepError, match="install the package zstd"):
        step((str(path), archives.sha256_of(str(path))), prefix).apply()


def test_an_archive_that_is_not_there(prefix):
    with pytest.raises(StepError, match="/nowhere/a.tgz cannot be read: No such file"):
        step(("/nowhere/a.tgz", "0" * 64), prefix).apply()
    with pytest.raises(StepError, match="/nowhere/a.tgz cannot be read: No such file"):
        archives.extract("/nowhere/a.tgz", prefix, "/nowhere/a.tgz")


def test_a_full_disk_is_named(archive, prefix, monkeypatch):
    def full(stream, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpack, "unpack", full)
    release = step(archive(), prefix)
    with pytest.raises(StepError, match="cannot be unpacked to .*: No space left on device"):
        release.apply()
    release.undo()
    assert "bin/ollama" not in tree(prefix)


def test_a_release_is_labelled_before_it_is_taken_for_whole(archive, prefix, monkeypatch):
    release, seen = step(archive(), prefix), []

    def restored(folder):
        seen.append(os.access(os.path.join(folder, "bin/ollama"), os.X_OK) and not release.unpacked())

    monkeypatch.setattr(labels, "restore", restored)
    proven(release)
    assert seen == [True] and release.unpacked()


def test_a_release_that_cannot_be_labelled_is_not_taken(archive, prefix, monkeypatch):
    def refused(folder):
        raise Failed("restorecon cannot label it")

    monkeypatch.setattr(labels, "restore", refused)
    release = step(archive(), prefix)
    with pytest.raises(StepError, match="restorecon cannot label it"):
        release.apply()
    release.undo()
    assert "bin/ollama" not in tree(prefix) and not release.unpacked()


@pytest.fixture
def web(archive):
    """`web(path)` serves a file; gives its URL."""
    servers = []

    def serve(path):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if path else 404)
                self.end_headers()
                if path:
                    with open(path, "rb") as file:
                        self.wfile.write(file.read())

            def log_message(self, *words):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return "http://127.0.0.1:%d/ollama.tgz?version=1" % server.server_address[1]

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_release_from_an_url(archive, prefix, web):
    path, digest = archive()
    release = step((web(path), digest), prefix)
    proven(release)
    assert not release.needed()
    assert not [name for name in os.listdir(prefix + "/lib/gpufleet") if "download" in name]


def test_an_url_that_sends_something_else(archive, prefix, web):
    with pytest.raises(StepError, match="has the SHA-256 .*; expected 000"):
        step((web(archive()[0]), "0" * 64), prefix).apply()
    with pytest.raises(
        StepError, match="cannot be fetched: HTTP Error 404: Not Found; check whether that mirror has this version"
    ):
        step((web(None), "0" * 64), prefix).apply()


def test_an_unverified_release_is_known_by_its_address(archive, prefix, web):
    url = web(archive()[0])
    step((url, UNVERIFIED), prefix).apply()
    assert step((url, UNVERIFIED), prefix).unpacked()
    assert not step((url + "&other", UNVERIFIED), prefix).unpacked()


def test_an_add_on_is_laid_over_the_release(archive, prefix):
    base = archive("one")
    files = [("lib/ollama/rocm/libggml-hip.so", 0o644, "rocm"), ("lib/ollama/llama-server", 0o755, "hip")]
    addon = archive(members=files, name="rocm.tgz")
    proven(step(base, prefix))
    assert libraries(prefix) == ["cuda_v13"]
    both = step(base, prefix, addon)
    assert both.needed(), "the same release with an add-on is another one"
    both.apply()
    assert libraries(prefix) == ["cuda_v13", "rocm"]
    with open(prefix + "/lib/ollama/llama-server", encoding="utf-8") as file:
        assert file.read() == "hip"
    both.undo()
    assert libraries(prefix) == ["cuda_v13"]


def test_an_add_on_that_is_damaged_leaves_nothing(archive, prefix, tmp_path):
    bad = tmp_path / "bad.tgz"
    bad.write_bytes(b"PK")
    release = step(archive(), prefix, (str(bad), archives.sha256_of(str(bad))))
    with pytest.raises(StepError, match="neither a .tgz nor"):
        release.apply()
    release.undo()
    assert tree(prefix) in ({}, {"lib": (0o755, "directory")})


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("undone", [False, True])
def test_a_run_killed_after_the_switch_is_taken_up(archive, prefix, undone):
    """The links are right, but nobody has proven that the service runs what they lead to."""
    proven(step(archive("one"), prefix))
    step(archive("two"), prefix).apply()  # and killed here
    again = step(archive("two"), prefix)
    again.finish()  # nothing was applied: this must not end it
    assert again.needed()
    again.apply()
    if undone:
        again.undo()
        assert read(prefix + "/bin/ollama") == "one", "the last one that was proven"
    else:
        again.finish()
        assert read(prefix + "/bin/ollama") == "two"
    assert ".ollama-switch" not in os.listdir(prefix + "/lib/gpufleet")


def test_a_run_killed_over_the_vendors_files_keeps_the_way_back(archive, prefix):
    os.makedirs(prefix + "/bin")
    with open(prefix + "/bin/ollama", "w", encoding="utf-8") as file:
        file.write("vendor")
    step(archive("one"), prefix).apply()  # and killed here
    other = step(archive("two"), prefix)
    other.apply()
    other.undo()
    assert read(prefix + "/bin/ollama") == "vendor"


def test_the_vendors_files_stay_through_later_switches(archive, prefix):
    os.makedirs(prefix + "/bin")
    with open(prefix + "/bin/ollama", "w", encoding="utf-8") as file:
        file.write("vendor")
    for text in ("one", "two", "three"):
        proven(step(archive(text), prefix))
    (aside,) = [name for name in os.listdir(prefix + "/lib/gpufleet") if name.startswith("ollama-before-")]
    assert read("%s/lib/gpufleet/%s/bin/ollama" % (prefix, aside)) == "vendor"


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_a_strict_umask_keeps_nobody_from_the_program(archive, prefix, tmp_path, umask):
    former = os.umask(umask)
    try:
        release = step(archive(), prefix)
        proven(release)
        (tmp_path / "etc/systemd/system").mkdir(parents=True)
        TemplateStep("ollama.service", "[Service]\n", root=str(tmp_path)).apply()
    finally:
        os.umask(former)
    assert (tmp_path / "etc/systemd/system/ollama.service").stat().st_mode & 0o777 == 0o644
    for path, (mode, what) in tree(prefix).items():
        expected = 0o755 if what == "directory" or path.endswith(("bin/ollama", "llama-server")) else 0o644
        assert what.startswith("->") or mode == expected, path


def test_the_vendors_installer_between_a_killed_run_and_the_next(archive, prefix):
    """What it put there is what comes back, not the link that the killed run had found."""
    proven(step(archive("one"), prefix))
    step(archive("two"), prefix).apply()  # and killed here
    subprocess.run(["rm", "-rf", prefix + "/lib/ollama", prefix + "/bin/ollama"], check=True)
    subprocess.run(["tar", "-xzf", archive("vendor")[0], "-C", prefix], check=True)
    third = step(archive("three"), prefix)
    third.apply()
    assert read(prefix + "/bin/ollama") == "three"
    third.undo()
    assert read(prefix + "/bin/ollama") == read(prefix + "/lib/ollama/llama-server") == "vendor"


def test_what_only_is_to_be_cleaned_up_restarts_nothing(archive, prefix):
    proven(step(archive("one"), prefix))
    killed = step(archive("two"), prefix)
    killed.switch.begin()
    os.mkdir(prefix + "/lib/gpufleet/.ollama-abc.part")
    del killed
    again = step(archive("one"), prefix)
    assert again.needed() and not again.restarts
    proven(again)
    assert not again.needed()
    assert not [name for name in os.listdir(prefix + "/lib/gpufleet") if name.startswith(".")]
    back = BackStep(Layout("ollama", prefix, LINKS))
    assert not back.needed()
    killed = step(archive("two"), prefix)
    killed.switch.begin()
    assert not back.needed(), "it is not dead yet"
    del killed
    assert back.needed() and not back.restarts
    back.apply()
    assert not back.needed() and read(prefix + "/bin/ollama") == "one"


def test_a_switch_that_is_undone_in_the_next_run_is_a_restart(archive, prefix):
    proven(step(archive("one"), prefix))
    step(archive("two"), prefix).apply()  # and killed here
    one, back = step(archive("one"), prefix), BackStep(Layout("ollama", prefix, LINKS))
    assert one.needed() and one.restarts
    assert back.needed() and back.restarts and back.diff()["before"] != back.diff()["after"]
    back.apply()
    back.undo()
    assert read(prefix + "/bin/ollama") == "one" and not back.needed()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["", "/bin", "/lib", "/lib/gpufleet"])
def test_a_prefix_where_others_may_write_is_refused(archive, prefix, whose):
    """They could replace the program, the record of the way back, or a folder by a link."""
    for folder in ("/bin", "/lib/gpufleet"):
        os.makedirs(prefix + folder)
    os.chown(prefix + whose, 1234, 1234)
    before = tree(prefix)
    release = step(archive(), prefix)
    with pytest.raises(StepError, match="prefix .*: %s belongs to user 1234" % (prefix + whose)):
        release.apply()
    release.undo()
    assert tree(prefix) == before


def test_two_runs_take_turns(archive, prefix, monkeypatch):
    """They would unpack over each other, and take each other's switch for one that was killed."""
    first, second = step(archive("one"), prefix), step(archive("two"), prefix)
    first.apply()
    monkeypatch.setattr(switch, "WAIT", 0.05)
    with pytest.raises(
        StepError, match="another run, process .*, is still busy with the releases in .*/lib/gpufleet after 0 s"
    ):
        second.apply()
    second.undo()
    assert not step(archive("one"), prefix).needed() and not BackStep(Layout("ollama", prefix, LINKS)).needed()
    monkeypatch.setattr(switch, "WAIT", 60)
    waiting = threading.Thread(target=second.apply)
    waiting.start()
    first.finish()
    waiting.join()
    second.undo()
    assert read(prefix + "/bin/ollama") == "one" and not step(archive("one"), prefix).needed()
    assert os.listdir(prefix + "/lib/gpufleet") == [first.name]


def test_a_lock_that_any_user_can_hold_keeps_nobody_waiting(archive, prefix, monkeypatch):
    proven(step(archive("one"), prefix))
    monkeypatch.setattr(switch, "WAIT", 0)
    folder = os.open(prefix + "/lib/gpufleet", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        proven(step(archive("two"), prefix))
    finally:
        os.close(folder)


def test_a_child_does_not_hold_the_lock_of_its_parent(archive, prefix):
    """Such as one that reads the GPUs, and hangs in a driver."""
    first = step(archive("one"), prefix)
    first.switch.begin()
    ours, its = socket.socketpair()
    child = os.fork()
    if not child:
        its.send(b"runs")
        ours.close()
        its.recv(1)
        os._exit(0)
    its.close()
    try:
        assert ours.recv(4) == b"runs"
        assert not BackStep(Layout("ollama", prefix, LINKS)).needed()
        del first  # as the parent ends
        assert BackStep(Layout("ollama", prefix, LINKS)).needed()
    finally:
        ours.close()
        os.waitpid(child, 0)


def test_a_pipe_in_the_place_of_a_record_or_a_marker_is_not_waited_for(archive, prefix):
    release = step(archive(), prefix)
    os.makedirs(release.target)
    os.mkfifo(release.target + "/.sha256")
    os.mkfifo(release.switch.record)
    assert release.needed() and not release.unpacked()
    assert BackStep(Layout("ollama", prefix, LINKS)).needed()


def test_a_release_lasts_before_its_marker_says_that_it_is_whole(archive, prefix, monkeypatch):
    """After a power cut a marker must not stand for files that were never written."""
    written, order = [], []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor):
        written.append(os.readlink("/proc/self/fd/%d" % descriptor))
        fsync(descriptor)

    def renamed(old, new, **more):
        if str(new).endswith(release.name):
            order.extend(written)
        rename(old, new, **more)

    release = step(archive(), prefix)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    release.apply()
    part = "%s/.%s.part" % (release.switch.store, release.name)
    expected = {"", "/bin", "/bin/ollama", "/lib", "/lib/ollama", "/lib/ollama/cuda_v13", "/lib/ollama/llama-server"}
    assert {part + path for path in expected} <= set(order)
    assert release.switch.store in written[len(order) :], "and then its name"


def test_undo_after_half_an_apply(archive, prefix, monkeypatch):
    os.makedirs(prefix + "/bin")
    os.makedirs(prefix + "/lib")
    with open(prefix + "/bin/ollama", "w", encoding="utf-8") as file:
        file.write("vendor")
    before = tree(prefix)

    def full(path, to):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(switch.files, "point", full)
    release = step(archive(), prefix)
    with pytest.raises(OSError, match="No space"):
        release.apply()
    release.undo()
    assert tree(prefix) == before
