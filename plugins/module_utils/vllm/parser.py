# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vLLM's parser will say of a configuration, where a table of its options makes that certain. Pure.

Asking the parser itself takes a dozen seconds of processor time, as it imports torch. The table has for each option
(``max-num-seqs``) ``bare``: whether it takes no value; ``several``: whether it takes more than one; ``choices``: the
words that it takes, or None; ``takes``: which of SAMPLES its type took.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping

Table = Mapping[str, Mapping[str, Any]]

SAMPLES: Dict[str, str] = {"text": "x-1.y/Z", "number": "1.5", "whole": "7"}
"""A type that took one takes all like it."""

_LIKE = {"text": r"[^{}-][^{}]*\Z", "number": r"[0-9]+(\.[0-9]+)?\Z", "whole": r"[0-9]+\Z"}


def is_option(told: Any) -> bool:
    """Whether this is an entry of such a table."""
    if not isinstance(told, dict) or set(told) != {"bare", "several", "takes", "choices"}:
        return False
    lists = [told["takes"], [] if told["choices"] is None else told["choices"]]
    flags = isinstance(told["bare"], bool) and isinstance(told["several"], bool)
    words = all(isinstance(one, list) and all(isinstance(word, str) for word in one) for one in lists)
    return flags and words and set(told["takes"]) <= set(SAMPLES)


def unknown(config: Mapping[str, Any], table: Table) -> List[str]:
    """Keys that the parser refuses: no option has that name, or one that begins so."""
    # vLLM itself turns `option.part` into JSON for the option
    return [key for key in sorted(config) if not any(name.startswith(key.partition(".")[0]) for name in table)]


def certain(config: Mapping[str, Any], table: Table) -> bool:
    """Whether the parser takes every value for certain; else it must be asked."""
    return all(key in table and _takes(table[key], value) for key, value in config.items())


def _takes(option: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, bool):
        return value and option["bare"]  # a false would be dropped without a word
    if option["bare"] or value is None or isinstance(value, Mapping):
        return False
    values = value if isinstance(value, list) else [value]
    if not values or (len(values) > 1 and not option["several"]):
        return False
    return all(isinstance(one, (str, int, float)) and _takes_word(option, str(one)) for one in values)


def _takes_word(option: Mapping[str, Any], word: str) -> bool:
    if option["choices"] is not None:
        return word in option["choices"]
    return any(re.match(_LIKE[kind], word) for kind in option["takes"])
