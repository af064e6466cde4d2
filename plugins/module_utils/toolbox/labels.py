# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels of SELinux on what was written."""

from __future__ import annotations

import os
import tempfile

from .command import status_of
from .errors import Failed

KERNEL = "/sys/fs/selinux/enforce"
"""There where SELinux is on, enforcing or permissive."""
RESTORECON = "/usr/sbin/restorecon"
LIMIT = 600
"""Seconds that it may take for a folder."""


def restore(folder: str) -> None:
    """Give everything in a folder the labels of the host's policy; does nothing where SELinux is off.

    A new file has the label of its folder. With that of a library, systemd does not start a program as its own domain.

    :raises Failed: the labels could not be set.
    """
    if not os.path.exists(KERNEL) or not os.path.exists(RESTORECON):
        return
    with tempfile.TemporaryFile() as out:
        status = status_of([RESTORECON, "-R", folder], LIMIT, environment={"LC_ALL": "C"}, output=out)
        if status == 0:
            return
        out.seek(max(0, os.fstat(out.fileno()).st_size - 500))
        said = out.read().decode(errors="replace").strip() or "exit %s" % status
    wrong = "it did not end within %d s" % LIMIT if status is None else said
    raise Failed("restorecon cannot label %s: %s" % (folder, wrong))
