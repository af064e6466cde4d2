# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels of SELinux on what was written."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from .errors import Failed

KERNEL = "/sys/fs/selinux/enforce"
"""There where SELinux is on, enforcing or permissive."""
RESTORECON = "/usr/sbin/restorecon"


def restore(folder: str) -> None:
    """Give everything in a folder the labels of the host's policy; does nothing where SELinux is off.

    A new file has the label of its folder. With that of a library, systemd does not start a program as its own domain.

    :raises Failed: the labels could not be set.
    """
    if not os.path.exists(KERNEL) or not os.path.exists(RESTORECON):
        return
    streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([RESTORECON, "-R", folder], check=False, **streams)
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()
        raise Failed("restorecon cannot label %s: %s" % (folder, said[-500:] or "exit %d" % done.returncode))
