# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The device nodes of GPUs are named by minor number, which is not always the index."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import nodes


def test_nodes_are_named_by_minor_number():
    found = nodes.nodes([{"index": 0, "minor": 3, "unavailable": {}}])
    assert [(path, alias) for path, alias, _groups in found] == [
        ("/dev/nvidia3", "/dev/char/195:3"),
        ("/dev/nvidiactl", "/dev/char/195:255"),
        ("/dev/nvidia-uvm", ""),
    ]


def test_a_gpu_without_a_known_minor_number():
    with pytest.raises(ValueError, match="the minor number of GPU 1 is not known \\(no procfs\\)"):
        nodes.nodes([{"index": 1, "minor": None, "unavailable": {"minor": "no procfs"}}])
