# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection's modules say of themselves: check mode, diff mode, platform, facts."""

from __future__ import annotations


class ModuleDocFragment:
    """`attributes` for every module, `attributes.info` for those that only read, `attributes.facts` for facts."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and then reports whether something would change, without changing it.
  diff_mode:
    description: Reports what has changed, or would change in check mode, when diff mode is on.
  platform:
    description: The operating systems on which it runs.
    platforms: linux
    support: full
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This action does not change anything.
  diff_mode:
    support: N/A
    details:
      - This action does not change anything.
"""

    FACTS = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This action does not change anything.
  diff_mode:
    support: N/A
    details:
      - This action does not change anything.
  facts:
    description: Puts values into C(ansible_facts) of the host.
    support: full
"""
