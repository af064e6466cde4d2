# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin sends an archive to hosts that ask for it, and to no other."""

from __future__ import annotations

import hashlib
import os

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.gpufleet.inference.plugins.action import ollama_service

CONTENT = b"release"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "ollama.tgz"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def act(sending):
    return sending(ollama_service)


def test_a_host_that_is_as_declared_is_sent_nothing(act, archive):
    act.answer = {"changed": False, "msg": "ok"}
    assert act({"archive": str(archive)}, []) == {"changed": False, "msg": "ok"}
    assert act.asked == [{"archive": str(archive), "archive_checksum": {"ollama.tgz": "sha256:" + DIGEST}}]
    assert act.calls == act.sent == []


def test_without_an_archive_it_is_one_call(act):
    assert act({"keep_alive": "5m"}, [{"changed": False}]) == {"changed": False}
    assert act.calls == [{"keep_alive": "5m"}]
    assert act.sent == []


def test_a_host_that_has_the_release_gets_nothing(act, archive):
    act({"archive": str(archive)}, [{"changed": False}])
    assert act.calls == [{"archive": str(archive), "archive_checksum": {"ollama.tgz": "sha256:" + DIGEST}}]
    assert act.sent == []


def test_a_host_that_asks_gets_it_and_is_called_again(act, archive):
    result = act({"archive": str(archive), "keep_alive": "5m"}, [{"needs": [str(archive)]}, {"changed": True}])
    assert result == {"changed": True}
    assert act.sent == [(str(archive), "/tmp/a/ollama.tgz")]
    assert act.calls[1] == {
        "archive": "/tmp/a/ollama.tgz",
        "addons": [],
        "archive_checksum": {"ollama.tgz": "sha256:" + DIGEST},
        "remote_src": True,
        "keep_alive": "5m",
    }


@pytest.mark.parametrize(
    "needed",
    [
        ["/etc/shadow"],
        ["{archive}", "{archive}/../id_rsa"],
        ["{link}"],
        ["\x1b[2J"],
        [7],
        "/etc/shadow",
        {"a": 1},
        [None],
    ],
)
def test_a_host_does_not_choose_among_the_files_of_the_controller(act, archive, needed):
    link = archive.parent / "link"
    link.symlink_to("/etc/passwd")
    (archive.parent / "id_rsa").write_text("secret")
    if isinstance(needed, list):
        needed = [one.format(archive=archive, link=link) if isinstance(one, str) else one for one in needed]
    with pytest.raises(AnsibleActionFail, match="the host asks for .* nothing was sent") as caught:
        act({"archive": str(archive)}, [{"needs": needed}])
    assert act.sent == [] and "\x1b" not in str(caught.value)


def test_a_failure_is_not_followed_by_a_transfer(act, archive):
    result = act({"archive": str(archive)}, [{"failed": True, "needs": [str(archive)]}])
    assert result["failed"]
    assert act.sent == []


@pytest.mark.parametrize(
    "arguments", [{"archive": "/on/the/host.tgz", "remote_src": "yes"}, {"archive": "https://a.example/ollama.tgz"}]
)
def test_what_the_host_gets_itself_is_not_looked_for_here(act, arguments):
    act(arguments, [{"changed": False}])
    assert act.calls == [arguments]


def test_a_given_checksum_is_kept(act, archive):
    act({"archive": str(archive), "archive_checksum": "sha256:" + "ab" * 32}, [{}])
    assert act.calls[0]["archive_checksum"] == "sha256:" + "ab" * 32


def test_not_in_the_background(act, archive):
    with pytest.raises(AnsibleActionFail, match="ollama.tgz on the controller cannot be sent in the background.*async"):
        act({"archive": str(archive)}, [], background=60)
    assert act.asked == act.calls == []


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror/v0.32.15"
    folder.mkdir(parents=True)
    for name in ("amd64", "arm64", "amd64-rocm"):
        (folder / ("ollama-linux-%s.tar.zst" % name)).write_text(name)
    return folder


def test_of_a_mirror_on_the_controller_only_what_the_host_needs_is_sent(act, mirror):
    base, rocm = (str(mirror / ("ollama-linux-%s.tar.zst" % name)) for name in ("amd64", "amd64-rocm"))
    given = {"version": "0.32.15", "mirror": str(mirror.parent), "addons": ["rocm"]}
    act(given, [{"needs": [base, rocm]}, {"changed": True}])
    assert len(act.calls[0]["archive_checksum"]) == 3
    assert act.calls[0]["addons"] == ["rocm"]
    assert act.sent == [(base, "/tmp/a/ollama-linux-amd64.tar.zst"), (rocm, "/tmp/a/ollama-linux-amd64-rocm.tar.zst")]
    assert act.calls[1]["archive"] == act.sent[0][1]
    assert act.calls[1]["addons"] == [act.sent[1][1]]
    assert act.calls[1]["version"] == "0.32.15"


def test_a_version_as_the_page_of_the_release_has_it(act, mirror):
    act({"version": "v0.32.15", "mirror": str(mirror.parent)}, [{}])
    assert act.calls[0]["version"] == "0.32.15" and len(act.calls[0]["archive_checksum"]) == 3
    act({"version": "v0.32.15"}, [{}])
    assert act.calls[0]["version"] == "0.32.15"


def test_a_folder_or_a_pipe_beside_the_archives_is_not_read(act, mirror):
    (mirror / "ollama-linux-amd64").mkdir()
    os.mkfifo(mirror / "ollama-linux-pipe")
    act({"version": "0.32.15", "mirror": str(mirror.parent)}, [{}])
    assert len(act.calls[0]["archive_checksum"]) == 3


def test_a_mirror_without_that_version(act, mirror):
    with pytest.raises(AnsibleActionFail, match=r"there is no .*/v0.32.16/ollama-linux-\* on the controller"):
        act({"version": "0.32.16", "mirror": str(mirror.parent)}, [])


def test_an_add_on_on_the_controller_over_a_release_of_the_network(act, archive):
    url = "https://a.example/ollama-linux-amd64.tgz"
    given = {"archive": url, "addons": [str(archive)], "archive_checksum": {"ollama-linux-amd64.tgz": "ab" * 32}}
    act(given, [{"needs": [url, str(archive)]}, {"changed": True}])
    assert set(act.calls[0]["archive_checksum"]) == {"ollama-linux-amd64.tgz", "ollama.tgz"}
    assert act.sent == [(str(archive), "/tmp/a/ollama.tgz")]
    assert act.calls[1]["archive"] == url


def test_a_mirror_on_the_network_is_left_to_the_host(act):
    given = {"version": "0.32.15", "mirror": "https://mirror.example/ollama", "archive_checksum": "unverified"}
    act(given, [{"changed": True}])
    assert act.calls == [given]


@pytest.mark.parametrize("line", ["%s  ollama.tgz", "%s *./ollama.tgz", "\n%s  ./ollama.tgz\n"])
def test_the_releases_own_list_of_checksums_is_read(archive, line):
    listed = "cd" * 32
    (archive.parent / "sha256sum.txt").write_text("%s  other.tgz\n" % ("ef" * 32) + line % listed)
    assert ollama_service.checksum(str(archive)) == listed


def test_a_file_that_is_not_listed_is_hashed(archive):
    lines = ("%s  other.tgz\nnonsense\n" % ("ef" * 32), "%s  ollama.tgz\n" % ("no" * 32))
    (archive.parent / "sha256sum.txt").write_text("".join(lines))
    assert ollama_service.checksum(str(archive)) == DIGEST


def test_a_link_leads_to_the_list_beside_its_file(act, archive, tmp_path):
    (archive.parent / "sha256sum.txt").write_text("%s  ollama.tgz\n" % ("cd" * 32))
    (tmp_path / "links").mkdir()
    (tmp_path / "links/archive").symlink_to(archive)
    act({"archive": str(tmp_path / "links/archive")}, [{}])
    assert act.calls[0]["archive_checksum"] == {"ollama.tgz": "sha256:" + "cd" * 32}
    assert act.calls[0]["archive"] == str(archive), "its name tells the architecture"
