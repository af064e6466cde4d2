#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller asks a host, left there with a timer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: self_check
short_description: Have a host check regularly whether it is in its declared state
version_added: 0.2.0
description:
  - Leaves on a host what M(gpufleet.inference.host_check) asks it, with a systemd timer. Each time, the host checks
    itself as the controller would. Nothing is changed.
  - The result is a file for the textfile collector of node_exporter, and one line in the journal of
    C(gpufleet-self-check.service) whenever the verdict changes.
  - The host must be in its declared state. Where that is not so, or is not known before the roles run, the host gets
    no self check, an existing one is removed, and a warning says why.
  - The host cannot know that the inventory has changed since. The next run of the role replaces what it asks itself.
  - The check runs once before the module ends. If it fails, the previous state is restored.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all]
  check_mode:
    support: partial
    details: On a host that is not in its declared state, it is not known what the check would be.
  diff_mode:
    support: none
options:
  interval:
    description:
      - Time between two checks, such as V(5min) or V(1h), at least V(10s). An empty text removes the self check and
        its metrics.
    type: str
    default: ""
  textfile_folder:
    description:
      - Folder of the textfile collector, for C(gpufleet.prom). It is created if it is missing, and stays.
    type: path
    default: /var/lib/prometheus/node-exporter
  roles:
    description: The roles of this host, as for M(gpufleet.inference.host_check).
    type: list
    elements: str
    default: []
  required:
    description: The host must have a GPU.
    type: bool
    default: true
  pynvml:
    description: The GPUs must be read through NVML.
    type: bool
    default: true
  persistence:
    description: The GPUs must be in persistence mode.
    type: bool
    default: true
  id:
    description: Set by the action plugin, a digest of O(question).
    type: str
  question:
    description: Set by the action plugin, the files of the self check.
    type: str
notes:
  - The files are in C(/etc/gpufleet/self-check), which only root can enter. They hold the secrets of the services,
    which the check compares with those in use. Tokens for downloads are left out, unless a model is to follow its
    revision (O(gpufleet.inference.model_source#module:update)).
seealso:
  - module: gpufleet.inference.host_check
"""

EXAMPLES = r"""
- name: Check every five minutes
  gpufleet.inference.self_check:
    interval: 5min
    roles: [gpu_host, ollama]
  become: true
"""

RETURN = r"""
msg:
  description: How often the host checks itself.
  returned: always
  type: str
  sample: "self check: every 5min, metrics in /var/lib/prometheus/node-exporter"
reason:
  description: Why something was changed; empty if nothing was.
  returned: always
  type: str
  sample: its desired state is not that of the inventory
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.self_check.run import converge
    from ansible_collections.gpufleet.inference.plugins.module_utils.self_check.unit import ARGUMENTS

    run(ARGUMENTS, converge)


if __name__ == "__main__":
    main()
