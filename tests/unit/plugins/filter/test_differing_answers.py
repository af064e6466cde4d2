# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose recorded answers differ from those of the other hosts."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.inference.plugins.filter.differing_answers import FilterModule

differing = FilterModule().filters()["differing_answers"]


def chat(*tokens, model="m", prompt="Hi", tolerance=0.1, unit="vllm@chat.service"):
    answer = [[text, logprob, {text: logprob}] for text, logprob in tokens]
    return {unit: {"model": model, "prompts": [prompt], "answers": [answer], "tolerance": tolerance}}


YES, NO = ("yes", -0.1), ("no", -2.0)


def test_what_most_hosts_answer_is_right():
    (said,) = differing({"gpu1": chat(NO), "gpu2": chat(YES), "gpu3": chat(("yes", -0.15)), "gpu4": {}})
    assert said == (
        "gpu1 vllm@chat: the answers of m differ from those on gpu2 vllm@chat, gpu3 vllm@chat: to 'Hi', token 1 is 'no' "
        "(log probability -2.00); recorded: 'yes' (log probability -0.10)"
    )


@pytest.mark.parametrize(
    "other",
    [
        chat(("yes", -0.19)),
        chat(("yes", -0.5), tolerance=0.5),
        chat(NO, model="n"),
        chat(NO, prompt="Hello"),
        chat(NO, unit="ollama.service"),
        chat(NO, unit="vllm@other.service", model="n"),
        {"vllm@chat.service": {"model": "m"}},
    ],
)
def test_what_agrees_or_is_not_comparable(other):
    assert differing({"gpu1": chat(YES), "gpu2": other}) == []


def test_other_instances_with_the_same_model_are_compared():
    assert len(differing({"gpu1": {**chat(YES), **chat(NO, unit="vllm@other.service")}})) == 1


def test_control_characters_stay_out_of_a_terminal():
    (said,) = differing({"gpu1": chat(YES), "gpu2": chat(("\x1b[2J\n", -0.1))})
    assert "\x1b" not in said and "\n" not in said


def test_anything_else_is_an_error():
    with pytest.raises(AnsibleFilterError, match="expected a dictionary of hosts"):
        differing({"gpu1": None})
