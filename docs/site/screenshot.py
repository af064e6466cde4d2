# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
r"""Run a command of a shell in a terminal, and draw what it printed as an SVG.

screenshot.py FILE.svg COMMAND

docs/run.svg: after `make demo` and `tests/lab/ollama/faults.py gpu3 worker out-of-memory`,

    docs/site/screenshot.py docs/run.svg 'ansible-playbook -i inventories/lab site.yml \
        -e ollama_prove_model=m70b -e ollama_keep_alive=30m | tail -n 5'
"""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from pathlib import Path
from typing import List

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

WIDTH = 118
#: Without the font that rich would have each reader's browser fetch from another server.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n|<!-- Generated.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def printed(command: str) -> str:
    """What a command prints to a terminal of WIDTH columns, with its colours; shown meanwhile, too."""
    shown: List[bytes] = []

    def read(terminal: int) -> bytes:
        shown.append(os.read(terminal, 65536))
        return shown[-1]

    os.environ.update(COLUMNS=str(WIDTH), ANSIBLE_FORCE_COLOR="1")
    pty.spawn(["sh", "-c", command], read)
    return b"".join(shown).decode("utf-8").replace("\r\n", "\n")


def main(path: Path, command: str) -> None:
    screen = Console(record=True, width=WIDTH, file=io.StringIO())
    screen.print(Text.from_ansi("$ %s\n%s\n" % (command, printed(command).strip())))
    drawing = screen.export_svg(title="", code_format=FORMAT, unique_id=path.stem)
    path.write_text(re.sub(r"[ \t]+$", "", drawing, flags=re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
