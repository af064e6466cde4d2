# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a host that offers its models to others."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules that seed."""

    DOCUMENTATION = r"""
options:
  state:
    description: Whether models are offered.
    type: str
    choices: [started, stopped]
    default: started
  token:
    description:
      - What peers have to ask for, 32 hexadecimal digits in small letters, new for each run. Required with
        O(state=started).
    type: str
  peers:
    description:
      - Names or addresses of hosts that will ask. The IPv4 address by which this host reaches the first of them that it
        finds is the one that it listens at. With O(state=started) either this or O(address) is needed.
    type: list
    elements: str
  address:
    description: IPv4 address of this host to listen at. Left out, it is found by O(peers).
    type: str
  idle_timeout:
    description: Seconds without a request after which it ends by itself.
    type: int
    default: 600
"""
