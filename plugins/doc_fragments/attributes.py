# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes of this collection's modules: action groups, check mode, diff mode, idempotence, platform, facts."""

from __future__ import annotations


class ModuleDocFragment:
    """`attributes` for every module, `attributes.info` for those that only read, `attributes.facts` for facts."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description: Takes defaults for a whole group of modules, by C(group/NAME) in C(module_defaults).
    support: full
    membership: [gpufleet.inference.all]
  check_mode:
    description: Can run in check mode and then reports whether something would change, without changing it.
  diff_mode:
    description: Reports what has changed, or would change in check mode, when diff mode is on.
  idempotent:
    description: Run again with the same options, outside of check mode, it changes nothing and reports no change.
    support: full
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
