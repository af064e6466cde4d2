# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sys
import time
import unicodedata

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import near, one_line, printable


def test_no_character_that_a_terminal_obeys_is_left() -> None:
    shown = printable("".join(chr(code) for code in range(sys.maxunicode + 1) if code != 0x1B))
    left = {char for char in shown if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    assert left == {"\n", "\t"}
    assert not {unicodedata.bidirectional(char) for char in shown} & {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI"}


def test_what_tells_a_reader_something_stays() -> None:
    assert printable("größe · 50 %\t日本 🎉\r\nnext") == "größe · 50 %\t日本 🎉\nnext"
    assert printable("\x1b[1;31mred\x1b[0m \x9b2Jx \x1bc \x1b]0;title\x07") == "red x ?c ?]0;title?"
    assert printable("10 %\r20 %\r") == "10 %\n20 %\n"


def test_one_line() -> None:
    assert one_line("a\n b\r\nc\x1b[2K" + "d" * 999, 10) == "a b cddddd"


def test_it_takes_no_time() -> None:
    began = time.process_time()
    for text in ("\x1b[" * 500000, "\x1b[" + "0" * 1000000, "\x1b[0;" * 250000, "\x9b " * 500000):
        printable(text)
    assert time.process_time() - began < 20


def test_the_nearest_name() -> None:
    assert near("ctx-sizes", ["port", "ctx-size"]) == "; did you mean ctx-size?"
    assert near("ctx-sizes", {"port": 1}) == ""
