# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The source of a program that is handed to another Python, wherever this code itself was loaded from."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def source_of(program: ModuleType) -> str:
    """The text of a module below ``module_utils/programs``.

    It comes from a file, from the archive in which Ansible packs a module, or from the sources that state_check.py
    holds in memory. Importing the program is what puts it there. It imports the standard library alone, and does
    nothing unless it is run as a program.
    """
    loader: Any = program.__loader__
    text = loader.get_source(program.__name__)
    return text if isinstance(text, str) else text.decode("utf-8")  # Ansible's loader of collections gives bytes
