# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The libraries of NVIDIA's package cuda-compat, which an environment may need next to an older driver."""

from __future__ import annotations

import os

LINK = "cuda-compat"
"""In the environment, to the folder of the libraries."""


def folder(venv: str) -> str:
    """Folder of the libraries that come before those of the driver; empty for an environment without any."""
    path = os.path.join(venv, LINK)
    return path if os.path.lexists(path) else ""


def library_path(first: str, declared: str) -> str:
    """``LD_LIBRARY_PATH`` with these libraries before the declared folders."""
    return ":".join(filter(None, (first, declared)))
