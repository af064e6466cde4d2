# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Poisoned archives: whatever they hold, nothing outside of the folder is written, linked, read or changed."""

from __future__ import annotations

import io
import os
import stat
import tarfile

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import unpack
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

FILE, FOLDER, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def member(name, what=b"", kind=FILE, mode=0o644, **more):
    """One member: the content of a file, or where a link leads."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = kind, mode, 1234, 1234
    if isinstance(what, str):
        entry.linkname, what = what, b""
    entry.size = len(what)
    for key, value in more.items():
        setattr(entry, key, value)
    return entry, what


def packed(members, behind=b""):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    stream.write(behind)
    stream.seek(0)
    return stream


class Host:
    """A folder to unpack into, with files of root beside it that must stay as they are."""

    def __init__(self, top):
        self.top = top
        self.folder = top / "lib/gpufleet/.ollama-x.part"
        self.folder.mkdir(parents=True)
        self.secret = top / "secret"
        self.secret.write_bytes(b"of root")
        self.secret.chmod(0o600)
        self.outside = self._outside()

    def _outside(self):
        found = {}
        for where, folders, names in os.walk(self.top):
            if where == str(self.folder):
                folders.clear()
                continue
            for name in names:
                path = os.path.join(where, name)
                status = os.lstat(path)
                with open(path, "rb") as file:
                    found[path] = (file.read(), status.st_mode, status.st_nlink, status.st_uid)
            found[where] = sorted(folders)
        return found

    def unpack(self, *members, behind=b""):
        try:
            unpack.unpack(packed(members, behind), str(self.folder))
        finally:
            assert self._outside() == self.outside, "something outside was touched"

    def read(self, path):
        return (self.folder / path).read_bytes()


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "host")


def deep(count):
    return "/".join(["d"] * count)


POISON = {
    "a link to a link to above (p9)": [
        member("d/e", kind=FOLDER),
        member("d/e/s", "../..", LINK),
        member("d/e/s/t", "../../..", LINK),
        member("t/evil", b"x"),
    ],
    "a link above, then a file through it": [member("up", "..", LINK), member("up/evil", b"x")],
    "an absolute link, then a file through it": [member("etc", "/etc", LINK), member("etc/cron.d/evil", b"x")],
    "a link that leads above only from where it is": [
        member("a/b", kind=FOLDER),
        member("s", "a/b", LINK),
        member("s/up", "../../..", LINK),
    ],
    "a link whose way becomes another one later": [
        member("a/b", kind=FOLDER),
        member("a/b/way", "s/../../..", LINK),
        member("a/b/s", "../..", LINK),
    ],
    "a link whose way has become another one, followed": [
        member("a/b", kind=FOLDER),
        member("a/b/way", "s/../../..", LINK),
        member("a/b/s", "../..", LINK),
        member("a/b/way/evil", b"x"),
    ],
    "dots in a name": [member("../evil", b"x")],
    "dots that come back": [member("a/../../host/evil", b"x")],
    "an absolute name": [member("/evil", b"x")],
    "an absolute folder": [member("/evil", kind=FOLDER)],
    "a name without a name": [member("./", b"x")],
    "a line break": [member("a\nb", b"x")],
    "NUL in a name": [member("a", b"x", pax_headers={"path": "a\0b"})],
    "a line break in a link": [member("a", "b\nc", LINK)],
    "NUL in a link": [member("a", "b", LINK, pax_headers={"linkpath": "b\0/etc"})],
    "a second name for a file outside": [member("hard", "../../../secret", HARD)],
    "a second name by an absolute name": [member("hard", "/etc/passwd", HARD)],
    "a second name through a link": [member("up", "../lib", LINK), member("hard", "up/secret", HARD)],
    "a second name for a link": [member("s", "nothing", LINK), member("hard", "s", HARD)],
    "a second name for nothing": [member("hard", "nothing", HARD)],
    "a second name for itself": [member("a", b"x"), member("a", "a", HARD)],
    "a device": [member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a disk": [member("sda", kind=tarfile.BLKTYPE, devmajor=8, devminor=0)],
    "a named pipe": [member("pipe", kind=tarfile.FIFOTYPE)],
    "something unknown": [member("what", kind=b"Z")],
    "set-uid": [member("bin/su", b"x", mode=0o4755)],
    "set-gid": [member("bin/sg", b"x", mode=0o2755)],
    "a file and a folder": [member("a", b"x"), member("a/b", b"x")],
    "a folder and a file": [member("a/b", b"x"), member("a", b"x")],
    "a folder and a link": [member("a/b", b"x"), member("a", "b", LINK)],
    "links in a circle": [member("a", "b", LINK), member("b", "a", LINK), member("a/c", b"x")],
    "too deep": [member(deep(100) + "/x", b"x")],
    "sparse": [
        member(
            "s",
            b"1\n0\n1\n" + b"\0" * 507,
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
        )
    ],
    "a header of 3 MiB": [member("a", b"x", pax_headers={"comment": "x" * (3 << 20)})],
    "a link with a name of 3 MiB": [member("a", "x/" * (3 << 19), LINK)],
}


@pytest.mark.parametrize("poison", POISON)
def test_poison(host, poison):
    with pytest.raises(Failed, match="^holds "):
        host.unpack(member("bin/ollama", b"#!", mode=0o755), *POISON[poison])


def test_a_sparse_file_as_gnu_tar_has_it(host):
    stream = packed([member("s", b"x")])
    raw = bytearray(stream.getvalue())
    raw[156:157] = b"S"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    with pytest.raises(Failed, match="sparse"):
        unpack.unpack(io.BytesIO(bytes(raw)), str(host.folder))


def test_a_sparse_map_without_an_end_does_not_fill_the_memory(host):
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    with pytest.raises(Failed, match="header"):
        host.unpack(member("s", b"9999999\n" + b"0\n" * (3 << 19), pax_headers=headers))


def test_what_follows_the_end_is_not_read_for_ever(host):
    with pytest.raises(Failed, match="behind its end"):
        host.unpack(member("a", b"x"), behind=b"\0" * (3 << 20))


def test_more_than_there_is_room_for(host, monkeypatch):
    """A bomb: the size that the header claims is compared with the free space before a byte is written."""

    entry = tarfile.TarInfo("a")
    entry.size = 1 << 62
    claims = io.BytesIO(entry.tobuf(tarfile.GNU_FORMAT))
    monkeypatch.setattr(unpack, "BYTES", 1 << 63)
    with pytest.raises(OSError, match="No space left on device: a has 4611686018427387904 bytes, "):
        unpack.unpack(claims, str(host.folder))
    assert os.listdir(host.folder) == []


def test_too_many_and_too_much(host, monkeypatch):
    monkeypatch.setattr(unpack, "MEMBERS", 3)
    with pytest.raises(Failed, match="more than 3 files"):
        host.unpack(*[member("a%d" % number, b"x") for number in range(4)])
    monkeypatch.setattr(unpack, "BYTES", 5)
    with pytest.raises(Failed, match="or 5 bytes"):
        host.unpack(member("a", b"xxx"), member("b", b"xxx"))


def test_a_file_replaces_an_earlier_link_and_is_not_written_through_it(host):
    host.unpack(member("a", b"first"), member("s", "a", LINK), member("s", b"second"))
    assert host.read("a") == b"first" and host.read("s") == b"second"
    assert not (host.folder / "s").is_symlink()


def test_a_file_replaces_an_earlier_second_name(host):
    host.unpack(member("a", b"first"), member("h", "a", HARD), member("h", b"second"))
    assert host.read("a") == b"first" and host.read("h") == b"second"


def test_what_lies_there_already_is_replaced(host):
    """An add-on is laid over a release; a link that an earlier archive brought is not written through either."""
    host.unpack(member("lib/a", b"first"), member("lib/s", "a", LINK))
    host.unpack(member("./lib/a", b"second", mode=0o755), member("lib/s", b"third"))
    assert host.read("lib/a") == b"second" and host.read("lib/s") == b"third"


def test_links_inside_work_as_they_do_upstream(host):
    host.unpack(
        member("lib/ollama/libcublas.so.12.8.4.1", b"cublas", mode=0o755),
        member("lib/ollama/libcublas.so.12", "libcublas.so.12.8.4.1", LINK),
        member("lib/ollama/cuda_v12", kind=FOLDER, mode=0o2700),
        member("lib/ollama/cuda_v12/libcublas.so.12", "../libcublas.so.12", LINK),
        member("lib/ollama/cuda", "cuda_v12", LINK),
        member("lib/ollama/cuda/through", b"a link to a folder inside"),
        member("lib/ollama/cuda", kind=FOLDER),
        member("lib/ollama/same", "lib/ollama/cuda/through", HARD),
        member("lib/ollama/later", "not/yet/there", LINK),
    )
    assert host.read("lib/ollama/cuda_v12/libcublas.so.12") == b"cublas"
    assert host.read("lib/ollama/cuda_v12/through") == host.read("lib/ollama/same")
    assert (host.folder / "lib/ollama/cuda").is_symlink()


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_modes_and_owners_are_ours(host, umask):
    former = os.umask(umask)
    try:
        host.unpack(
            member("bin/ollama", b"x", mode=0o700),
            member("lib/a", b"x", mode=0o666),
            member("lib/d", kind=FOLDER, mode=0o1777),
            member("made/on/the/way", b"x", mode=0),
        )
    finally:
        os.umask(former)
    modes = {}
    for where, _folders, names in os.walk(host.folder):
        for path in [where, *(os.path.join(where, name) for name in names)]:
            status = os.lstat(path)
            assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
            modes[os.path.relpath(path, host.folder)] = stat.S_IMODE(status.st_mode)
    modes.pop(".")
    assert modes.pop("bin/ollama") == 0o755
    assert {modes.pop(name) for name in ("lib/a", "made/on/the/way")} == {0o644}
    assert set(modes.values()) == {0o755}


def test_descriptors_are_closed(host):
    before = len(os.listdir("/proc/self/fd"))
    for poison in POISON.values():
        with pytest.raises(Failed):
            host.unpack(*poison)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("cut", [100, 600, 1100])
def test_a_damaged_archive(host, cut):
    whole = packed([member("a", b"x" * 600)]).getvalue()
    with pytest.raises((tarfile.TarError, EOFError)):
        unpack.unpack(io.BytesIO(whole[:cut]), str(host.folder))
