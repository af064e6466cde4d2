# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit's settings leave of the device nodes that its service needs, by systemd's rules."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.placement import sandbox
from ansible_collections.gpufleet.inference.plugins.module_utils.placement.sandbox import Node
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import render
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge

NODES = [
    Node("/dev/nvidia2", "/dev/char/195:2", ("nvidia", "nvidia-frontend")),
    Node("/dev/nvidia-uvm", "", ("nvidia-uvm",)),
]
BOTH = "DeviceAllow=/dev/nvidia2 rw\nDeviceAllow=/dev/nvidia-uvm rw\n"


def hides(*drop_ins):
    files = [("/%d.conf" % number, ("[Service]\n" + text).encode()) for number, text in enumerate(drop_ins)]
    return sandbox.hides(merge(files), NODES)


HIDDEN = [
    (["PrivateDevices=yes"], "PrivateDevices=yes in /0.conf:2 keeps /dev/nvidia2, /dev/nvidia-uvm from it"),
    (["PrivateDevices=no", "PrivateDevices=On"], "PrivateDevices=On in /1.conf:2"),
    (["DevicePolicy=closed"], "DevicePolicy=closed in /0.conf:2 keeps /dev/nvidia2, /dev/nvidia-uvm"),
    (["DevicePolicy=strict\n" + BOTH, "DeviceAllow="], "DevicePolicy=strict in /0.conf:2"),
    (["DeviceAllow=/dev/nvidia2 rw"], "DeviceAllow=/dev/nvidia2 rw in /0.conf:2 keeps /dev/nvidia-uvm from it"),
    (["DeviceAllow=/dev/nvidia2 r\nDeviceAllow=char-nvidia-uvm"], "keeps /dev/nvidia2 from it"),
    (["DeviceAllow=/dev/nvidia3 rw\nDeviceAllow=char-nvidia-uvm* rw"], "keeps /dev/nvidia2 from it"),
    (["InaccessiblePaths=/srv -/dev/nvidia-uvm"], "keeps /dev/nvidia-uvm from it"),
]
SEEN = [
    [],
    ["PrivateDevices=yes", "PrivateDevices=no"],
    ["DevicePolicy=auto"],
    ["DevicePolicy=closed\n" + BOTH],
    ["DeviceAllow=/dev/null\nDeviceAllow=\nDevicePolicy=closed\nDevicePolicy=auto"],
    ["DeviceAllow=/dev/char/195:2 rwm\nDeviceAllow=char-nvidia-uvm"],
    ["DeviceAllow=char-nvidia rw\nDeviceAllow=char-nvidia-uvm rw"],
    ["DeviceAllow=char-nvidia* rw"],
    ["DeviceAllow=/dev/sda", BOTH],
    ["PrivateDevices=yes\nDevicePolicy=strict", "\n".join(["PrivateDevices=no", BOTH])],
    ["InaccessiblePaths=/dev/sda"],
]


@pytest.mark.parametrize("drop_ins, words", HIDDEN)
def test_what_hides_a_node_is_named_with_its_place(drop_ins, words):
    assert words in hides(*drop_ins)


@pytest.mark.parametrize("drop_ins", SEEN)
def test_what_leaves_the_nodes(drop_ins):
    assert hides(*drop_ins) is None


def drop_in(service):
    render.check_settings({"Service": service})
    return render.drop_in("a.service", {}, {"Service": service}).partition("[Service]\n")[2]


def test_the_profile_hides_no_node_and_frees_what_others_had_hidden():
    profile = drop_in(sandbox.profile(["/srv/models"]))
    assert hides(profile) is None
    assert hides("PrivateDevices=yes", profile) is None
    assert "ReadWritePaths=-/srv/models\n" in profile
    for bad in ("PrivateUsers", "MemoryDenyWriteExecute", "ProcSubset", "PrivateNetwork"):
        assert bad not in profile


def test_only_the_nodes_that_are_named():
    text = drop_in(sandbox.only(NODES))
    assert hides("DeviceAllow=/dev/nvidia0 rw", text) is None
    assert hides(drop_in(sandbox.only(NODES[:1]))) is not None
    merged = merge(
        [("/0.conf", b"[Service]\nDeviceAllow=/dev/nvidia0 rw\n"), ("/1.conf", b"[Service]\n" + text.encode())]
    )
    allowed = [line.value for line in merged.in_force("Service", "DeviceAllow")]
    assert allowed == ["/dev/nvidia2 rw", "/dev/nvidia-uvm rw"]


def test_what_opens_more_is_named_with_its_place():
    files = [("/1.conf", b"[Service]\n" + drop_in(sandbox.only(NODES)).encode())]
    assert sandbox.opens(merge(files), NODES) is None
    files.append(("/2.conf", b"[Service]\nDeviceAllow=char-nvidia rw\n"))
    assert sandbox.opens(merge(files), NODES) == (
        "DeviceAllow=char-nvidia rw in /2.conf:2 lets it open more than its GPUs"
    )
