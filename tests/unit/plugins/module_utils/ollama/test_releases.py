# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which archives a host needs for what its inventory asks for."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.releases import plan
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.sources import (
    UNVERIFIED,
    file_name,
    parse_checksum,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

OFFICIAL = "https://github.com/ollama/ollama/releases/download/"


def planned(version=None, mirror=None, archive=None, addons=(), checksum=UNVERIFIED, machine="x86_64"):
    return plan(version, mirror, archive, list(addons), checksum, machine)


@pytest.mark.parametrize(
    "version, machine, file",
    [
        ("0.32.15", "x86_64", "v0.32.15/ollama-linux-amd64.tar.zst"),
        ("0.32.15", "aarch64", "v0.32.15/ollama-linux-arm64.tar.zst"),
        ("0.33.0-rc2", "x86_64", "v0.33.0-rc2/ollama-linux-amd64.tar.zst"),
        ("0.14.0", "x86_64", "v0.14.0/ollama-linux-amd64.tar.zst"),
        ("0.13.5", "x86_64", "v0.13.5/ollama-linux-amd64.tgz"),
        ("0.9.12", "aarch64", "v0.9.12/ollama-linux-arm64.tgz"),
    ],
)
def test_the_official_release(version, machine, file):
    (source,) = planned(version, machine=machine).sources
    assert source.place == OFFICIAL + file


def test_add_ons_lie_beside_the_release():
    places = [source.place for source in planned("0.32.15", "/m/", addons=["jetpack6"], machine="aarch64").sources]
    assert places == ["/m/v0.32.15/ollama-linux-arm64.tar.zst", "/m/v0.32.15/ollama-linux-arm64-jetpack6.tar.zst"]


def test_nothing_is_asked_for():
    assert planned() is None


def test_an_archive_comes_before_the_mirror():
    assert planned("0.32.15", archive="/a.tgz").sources[0].place == "/a.tgz"


@pytest.mark.parametrize(
    "given, words",
    [
        ({"version": "v0.32.15"}, "expected one such as 0.32.15"),
        ({"version": "0.32"}, "expected one such as"),
        ({"version": "0.32.15/../x"}, "expected one such as"),
        ({"addons": ["rocm"]}, "name it by version or archive"),
        ({"archive": "/a.tgz", "addons": ["rocm"]}, "with an archive, name its file"),
        ({"version": "0.32.15", "machine": "riscv64"}, "Ollama has no release for riscv64; expected x86_64 or aarch64"),
        ({"archive": "/x/ollama-linux-arm64.tar.zst"}, "is for arm64; this host is x86_64"),
        ({"version": "0.32.15", "addons": ["/x/ollama-linux-arm64-jetpack6.tgz"]}, "is for arm64; this host is x86_64"),
        ({"version": "0.32.15", "checksum": None}, "the word unverified does without"),
        (
            {"version": "0.32.15", "checksum": {"ollama-linux-arm64.tar.zst": "ab" * 32}},
            "amd64.tar.zst needs archive_checksum",
        ),
        ({"version": "0.32.15", "addons": ["rocm"], "checksum": "ab" * 32}, "one for several archives"),
        ({"version": "0.32.15", "checksum": "none"}, "64 hex digits, or the word unverified"),
    ],
)
def test_what_is_no_release(given, words):
    with pytest.raises(Refused, match=words):
        planned(**given)


def test_checksums_by_name():
    sums = {"ollama-linux-amd64.tar.zst": "sha256:" + "AB" * 32, "ollama-linux-amd64-rocm.tar.zst": UNVERIFIED}
    release = planned("0.32.15", addons=["rocm"], checksum=sums)
    assert [source.checksum for source in release.sources] == ["ab" * 32, UNVERIFIED]


def test_a_release_is_known_by_all_of_its_archives():
    keys = {
        planned("0.32.15", checksum="ab" * 32).key,
        planned("0.32.15").key,
        planned("0.32.14").key,
        planned("0.32.15", addons=["rocm"]).key,
        planned("0.32.15", addons=["rocm", "mlx"]).key,
        planned("0.32.15", addons=["mlx", "rocm"]).key,
    }
    assert len(keys) == 6
    assert "ab" * 32 in keys, "the digest of the only archive"
    assert all(len(key) == 64 for key in keys)


def test_a_file_on_the_controller_may_come_without_a_checksum():
    assert planned(archive="/a.tgz", checksum=None).sources[0].checksum is None


@pytest.mark.parametrize(
    "place, name",
    [
        ("https://ollama.com/download/ollama-linux-amd64.tgz?version=0.9.0", "ollama-linux-amd64.tgz"),
        ("/srv/ollama-linux-amd64.tgz", "ollama-linux-amd64.tgz"),
        ("a.tgz", "a.tgz"),
    ],
)
def test_names_of_files(place, name):
    assert file_name(place) == name


@pytest.mark.parametrize("written", ["sha256:" + "aB" * 32, "ab" * 32])
def test_checksums(written):
    assert parse_checksum(written) == "ab" * 32


@pytest.mark.parametrize("written", ["", "sha256:", "md5:" + "ab" * 16, "sha256:" + "zz" * 32, "ab" * 31])
def test_what_is_no_checksum(written):
    with pytest.raises(Refused, match="64 hex digits"):
        parse_checksum(written)
