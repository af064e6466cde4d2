# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables that nothing reads."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import variables


@pytest.mark.parametrize(
    "name, meant",
    [
        ("GLOO_IB_DISABLE", "NCCL_IB_DISABLE (Gloo uses TCP alone)"),
        ("NCCL_IB_DISABLED", "NCCL_IB_DISABLE"),
        ("NCCL_SOCKET_IF_NAME", "NCCL_SOCKET_IFNAME"),
        ("NCCL_IB_GID_IDX", "NCCL_IB_GID_INDEX"),
        ("NCCL_MIN_CHANNELS", "NCCL_MIN_NCHANNELS"),
        ("NCCL_TIMEOUT", "the argument timeout of init_process_group"),
        ("TORCH_NCCL_HEARTBEAT_TIMEOUT", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"),
    ],
)
def test_what_was_meant(name, meant):
    assert variables.meant(name) == meant


@pytest.mark.parametrize(
    "name",
    [
        *("NCCL_IB_HCA", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "NCCL_ALGO", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"),
        *("GLOO_SOCKET_IFNAME", "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"),
        *("NCCL_IBEXT_DISABLE", "NCCL_SHARP_DISABLE", "NCCL_FASTRAK_CTRL_DEV", "NCCL_TUNER_CONFIG_PATH"),  # plugins
        *("OMP_NUM_THREADS", "TORCH_FR_BUFFER_SIZE"),
    ],
)
def test_what_is_read_or_may_be(name):
    assert variables.meant(name) is None


def test_no_name_of_the_table_is_said_not_to_be_read():
    assert not set(variables.MEANT) & {"NCCL_" + name for name in variables.OF_NCCL.split()}
