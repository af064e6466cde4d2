# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit has without our override."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving.foreign import Foreign, foreign

UNIT = "/etc/systemd/system/x.service"
OURS = "/etc/systemd/system/x.service.d/zz-gpufleet.conf"
THEIRS = "/etc/systemd/system/x.service.d/override.conf"


class FakeSystem:
    def __init__(self, **files):
        self.files = files

    def load(self, names):
        return [(path, text.encode()) for path, text in self.files.items()]

    def specifiers(self, unit):
        return {"i": "chat"}

    def environment_files(self, pattern):
        return [("/e", b"FROM_FILE=1\n")] if pattern == "/e" else []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, Foreign("", {}, [])),
        ({UNIT: ""}, Foreign("", {}, [])),
        ({OURS: "[Service]\nUser=x\n"}, Foreign("", {}, [])),
        ({UNIT: "[Service]\nExecStart=/bin/false\n"}, Foreign("root", {}, [])),
        (
            {UNIT: "[Service]\nUser=u\nExecStart=-@/x/y --name %i 'a b'\nEnvironment=A=1 B=\nEnvironmentFile=/e\n"},
            Foreign("u", {"A": "1", "FROM_FILE": "1"}, ["/x/y", "--name", "chat", "a b"]),
        ),
        (
            {
                UNIT: "[Service]\nExecStart=/x\nEnvironment=A=1\n",
                THEIRS: "[Service]\nEnvironment=A=2\n",
                OURS: "[Service]\nExecStart=\nExecStart=/z\nEnvironment=A=3\nUser=z\n",
            },
            Foreign("root", {"A": "2"}, ["/x"]),
        ),
    ],
)
def test_others_files_alone_count(files, found):
    assert foreign(FakeSystem(**files), "x.service") == found


def test_with_our_override_it_is_what_is_in_force():
    files = {UNIT: "[Service]\nExecStart=/x\nUser=u\nEnvironment=A=1\n", OURS: "[Service]\nEnvironment=A=3\nUser=z\n"}
    assert foreign(FakeSystem(**files), "x.service", ours=True) == Foreign("z", {"A": "3"}, ["/x"])
