#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor
short_description: Collect what helps to find out what is wrong with a host
version_added: 0.2.0
description:
  - Writes one archive for each host to the controller. It contains the GPU facts, the files, properties and last log
    lines of every service of this collection, the listeners, the versions, the driver's lines of the kernel log, and
    the output of C(nvidia-smi -q). C(support.txt) has what a vendor asks for, such as serial numbers.
  - Checks the host for known problems, each with a fix in one line.
  - Secrets are removed on the host. These are the values of secret variables, credentials and keys of the services, the
    content of unit files that not everybody may read, and everything that looks like a key or a password.
  - Nothing is changed on the host.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  folder:
    description: Folder on the controller for the archive, which only its user may read. It is created if it is missing.
    type: path
    default: .
  timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10
  expected_count:
    description: How many GPUs the host has by the inventory. V(0) expects any number.
    type: int
    default: 0
notes:
  - Run it as root (C(become)).
"""

EXAMPLES = r"""
- name: Collect what is known of this host
  gpufleet.inference.doctor:
    folder: /tmp/bundles
  become: true
  register: doctor_result
"""

RETURN = r"""
msg:
  description: How many known problems were found.
  returned: always
  type: str
  sample: 2 known problems found
path:
  description: The archive on the controller.
  returned: success
  type: str
  sample: ./doctor-gpu1-2026-11-30T080000Z.tar.gz
pains:
  description: The known problems that were found.
  returned: success
  type: list
  elements: dict
  contains:
    pain:
      description: Name of the problem.
      type: str
      sample: not_loaded
    text:
      description: What was found.
      type: str
    fix:
      description: What to do.
      type: str
lines:
  description: The same as text.
  returned: success
  type: list
  elements: str
units:
  description: The services of this collection.
  returned: success
  type: list
  elements: str
time:
  description: When the host was read, in UTC.
  returned: success
  type: str
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.doctor import collect
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        folder=dict(type="path", default="."),
        timeout=dict(type="float", default=10.0),
        expected_count=dict(type="int", default=0),
    )


def main():
    run(argument_spec(), collect.report)


if __name__ == "__main__":
    main()
