# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a service: its wish and the facts in, the devices and CUDA_VISIBLE_DEVICES out."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.placement import choice
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

UNIT = "vllm@chat.service"


@pytest.fixture
def place(fakes):
    """`place(wanted, **more)` on a host with four H200s."""

    def place(wanted, environment=None, isolate=False, counts=False, facts=None):
        options = {"visible_devices": wanted, "environment": environment or {}, "isolate": isolate}
        return choice.place(options, facts or fakes.facts(), UNIT, counts)

    return place


@pytest.mark.parametrize(
    ("wanted", "isolate", "counts", "visible"),
    [
        ("all", False, False, "0,1,2,3"),
        ("all", False, True, "0,1,2,3"),
        ([2, 3], False, False, "2,3"),
        ([2, 3], True, False, "GPU-2,GPU-3"),
        ([2, 3], True, True, "0,1"),
        (["GPU-2"], False, False, "GPU-2"),
        (["GPU-2"], False, True, "2"),
        (["GPU-2"], True, True, "0"),
    ],
)
def test_how_cuda_is_told(place, wanted, isolate, counts, visible):
    """Numbers count what the process can open; an engine that takes nothing else gets numbers in any case."""
    placed = place(wanted, isolate=isolate, counts=counts)
    assert placed.visible == visible and len(placed.devices) == len(visible.split(","))


def test_none_and_nothing_declared(place, fakes):
    assert place("none") == choice.Placed([], None, cpu=True)
    assert place(None) == choice.Placed([], None)
    lost = fakes.facts()
    lost["fault"] = {"code": "driver_hangs", "text": "no answer", "remedy": "restart the host"}
    with pytest.raises(Refused, match="driver_hangs: no answer; restart the host"):
        place(None, facts=lost)
    assert place([0], facts=lost).visible, "a GPU that answers may be chosen"


@pytest.mark.parametrize(
    ("wanted", "more", "words"),
    [
        ("none", {"isolate": True}, "isolate requires GPUs, but visible_devices is none"),
        (None, {"isolate": True}, "isolate requires visible_devices"),
        ([9], {}, "visible_devices: There is no GPU 9"),
        ([0], {"environment": {"CUDA_VISIBLE_DEVICES": "1"}}, "already given by visible_devices"),
        (None, {"environment": {"CUDA_VISIBLE_DEVICES": "0"}, "isolate": True}, "are indexes, which count otherwise"),
        (None, {"environment": {"CUDA_VISIBLE_DEVICES": "9"}}, "CUDA_VISIBLE_DEVICES: There is no GPU 9"),
    ],
)
def test_what_cannot_be_had(place, wanted, more, words):
    with pytest.raises(Refused) as refused:
        place(wanted, **more)
    assert words in str(refused.value)


def test_a_variable_written_by_hand_is_left_as_it_is(place):
    placed = place(None, {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert placed.visible == "3,1" and [device["index"] for device in placed.devices] == [3, 1]
    assert place(None, {"CUDA_VISIBLE_DEVICES": "GPU-1"}, isolate=True).visible == "GPU-1"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "set but empty"),
        ("-1", "hides every GPU from '-1' on"),
        ("0,1,x", "neither an index nor a GPU's UUID"),
        ("0,0", "names a GPU twice"),
        ("0,GPU-1", "mixes indexes and UUIDs"),
    ],
)
def test_lists_with_which_cuda_shows_fewer_gpus(value, words):
    with pytest.raises(Refused, match=words):
        choice.visible_list(value)
