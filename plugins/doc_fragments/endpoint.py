# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that all modules for an OpenAI-compatible endpoint share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description: The endpoint, such as V(http://127.0.0.1:8000). A C(/v1) at the end may be left out.
    type: str
    required: true
  api_key:
    description: Key to send as a bearer token. It appears in no command line and no result.
    type: str
  validate_certs:
    description: Whether the certificate of an C(https) endpoint must be valid.
    type: bool
    default: true
  ca_path:
    description: File of the certificate authorities to trust. If unset, those of the host.
    type: path
"""
