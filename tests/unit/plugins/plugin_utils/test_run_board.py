# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of the board: what each host does, folded where hosts have no room."""

from __future__ import annotations

from typing import Dict

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.inference.plugins.plugin_utils.run_board import Board


def board(hosts: Dict[str, str]) -> Board:
    """One whose hosts have said what is given; without a word they still work."""
    made = Board("Serve")
    for name, said in hosts.items():
        made.starts(name, "Configure Ollama", "10:00:00")
        if said:
            made.ends(name, said.lstrip("!"), failed=said.startswith("!"))
    return made


def test_one_line_for_each_host_in_natural_order() -> None:
    assert board({"gpu10": "", "gpu2": "ok · 4× H200", "gpu1": "!gpu_lost"}).lines(80, 10) == [
        "Serve · Configure Ollama · 1 of 3 hosts at work",
        "  gpu1   failed   gpu_lost",
        "  gpu2   waiting  ok · 4× H200",
        "  gpu10  running  Configure Ollama  since 10:00:00",
    ]


def test_hosts_that_do_the_same_share_a_line_where_there_are_too_many() -> None:
    hosts = {"gpu%d" % number: "ok" if number > 30 else "" for number in range(1, 51)}
    assert board({**hosts, "gpu7": "!gpu_lost"}).lines(80, 6) == [
        "Serve · Configure Ollama · 29 of 50 hosts at work",
        "  gpu7           failed   gpu_lost",
        "  gpu[1-6,8-30]  running  Configure Ollama  since 10:00:00",
        "  gpu[31-50]     waiting  ok",
    ]


def test_the_rest_is_counted_where_even_groups_are_too_many() -> None:
    lines = board({"gpu%d" % number: "ok %d" % number for number in range(1, 51)}).lines(80, 4)
    assert len(lines) == 4 and lines[-1].split() == ["and", "48", "more", "hosts"]


def test_a_task_without_a_message_leaves_what_the_host_did() -> None:
    made = board({"gpu1": ""})
    made.ends("gpu1")
    assert made.lines(80, 4)[1] == "  gpu1  waiting  Configure Ollama"


@given(
    st.dictionaries(st.text(min_size=1), st.text(), min_size=1, max_size=9),
    st.integers(min_value=2, max_value=120),
    st.integers(min_value=2, max_value=12),
)
def test_no_host_can_break_the_board(hosts: Dict[str, str], width: int, height: int) -> None:
    lines = board(hosts).lines(width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert "\033" not in "".join(lines) and not any("\n" in line for line in lines)
