# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any value comes through a real systemd to /proc/PID/environ byte by byte, or is refused before it is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, List

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import on_host

COUNT = 2000
LETTERS = "\\\"'%$`\n\t\r #;=[]{}()<>|&*?~!:,-.0aAnrtxuU"
CODES = "\x00\x01\x07\x1b\x7f\x80é€😀\ufeff\ufdd0\uffff"
SPECIAL = st.text(st.sampled_from(LETTERS * 4 + CODES))
ANY = st.text(st.characters())  # surrogates and NUL included
FIXED = [
    "",
    " ",
    "\\",
    "a\\",
    "%",
    "100%",
    "%n %u %Z",
    '"',
    "'",
    "line\nline\r\n",
    "\t tab ",
    "# no comment",
    "$HOME ${HOME} `id`",
    "x" * 131000,
    "%" * 100000,
    "\\" * 100000,
    "\x7f" * 100000,
    "x" * 131072,
]


def expected_to_be_refused(value: str) -> bool:
    """What no process can be given, what is no text, and what Linux finds too long."""
    return (
        "\0" in value
        or any(0xD800 <= ord(c) <= 0xDFFF or 0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for c in value)
        or len(value.encode(errors="replace")) > 131000
    )


def test_every_value_arrives_or_is_refused(lab: Any) -> None:
    values: List[str] = list(FIXED)

    @settings(max_examples=COUNT, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of(SPECIAL, ANY))
    def collect(value: str) -> None:
        values.append(value)

    while len(values) < COUNT:
        collect()
    host = lab.reset("gpu1")
    found = on_host.run(lab, host, "roundtrip.py", values)
    assert found["wrong"] == [], [values[int(name[1:])] for name in found["wrong"]]
    assert found["left"] == []
    assert found["refused"] == [number for number, value in enumerate(values) if expected_to_be_refused(value)]
    assert found["carried"] == 2 * (len(values) - len(found["refused"])) and found["carried"] > COUNT
