# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the modules that talk to a running Ollama find it."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of every module that talks to a server."""

    DOCUMENTATION = r"""
options:
  name:
    description: Unit of the server, with or without C(.service).
    type: str
    default: ollama
  host:
    description: Where the server listens, as C(ADDRESS:PORT). Left out, what the unit's process has in E(OLLAMA_HOST).
    type: str
"""
