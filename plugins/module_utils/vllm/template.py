# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit of which every instance is one: ``vllm@.service``, as a step for the engine."""

from __future__ import annotations

import os
from typing import Dict

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import DIRECTORY
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import UNIT_PATH

NAME = "vllm@.service"

# What an instance runs, and as whom, stands in its own override. A front end whose engine died ends with status 0.
TEXT = """\
# Written by the Ansible collection gpufleet.inference where there was none. Each instance has an override of its own.
[Unit]
Description=vLLM, instance %i
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/bin/false
Restart=always
RestartSec=5
LimitNOFILE=1048576
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
"""


class TemplateStep:
    """Writes the template only where systemd knows none of that name."""

    restarts = False

    def __init__(self, root: str = "") -> None:
        self.path = "%s%s/%s" % (root, DIRECTORY, NAME)
        self._root = root
        self._wrote = False

    def needed(self) -> bool:
        return not any(os.path.lexists("%s%s/%s" % (self._root, folder, NAME)) for folder in UNIT_PATH)

    def diff(self) -> Dict[str, str]:
        return {"before": "", "after": "# %s\n%s" % (self.path, TEXT)}

    def apply(self) -> None:
        from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.files import write_whole

        write_whole(self.path, TEXT.encode("ascii"))
        self._wrote = True

    def undo(self) -> None:
        if self._wrote and os.path.exists(self.path):
            os.unlink(self.path)
