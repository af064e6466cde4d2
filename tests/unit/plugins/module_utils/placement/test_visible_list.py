# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hand-written CUDA_VISIBLE_DEVICES may be."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.placement.choice import visible_list
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused


@pytest.mark.parametrize(
    "value, reason",
    [
        ("", "set but empty"),
        (" ", "set but empty"),
        ("-1", "hides every GPU"),
        ("0,-1,1", "hides every GPU from '-1' on"),
        ("0,0", "names a GPU twice"),
        ("0, 0", "names a GPU twice"),
        ("1,GPU-00000001-0000-4000-8000-000000000001", "mixes indexes and UUIDs"),
        ("foo", "neither an index nor a GPU's UUID"),
        ("0,,1", "neither an index"),
        ("1x", "neither an index"),
    ],
)
def test_a_value_that_hides_gpus_is_refused(value, reason):
    with pytest.raises(Refused, match=reason):
        visible_list(value)


def test_visible_list():
    assert visible_list("0,1, 3") == ["0", "1", "3"]
    assert visible_list(0) == ["0"]
