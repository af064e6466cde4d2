# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what a host has collected as an archive on the controller."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
from typing import Any, Dict, List, Mapping, Optional

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line, printable

NAME = re.compile(r"(?:(?:units|logs|versions)/)?[A-Za-z0-9_][A-Za-z0-9_@.:-]{0,200}\Z")
"""What a host may call a file of its archive."""


class ActionModule(ActionBase):
    """Entry point for Ansible."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        found = self._execute_module(module_args=self._task.args, task_vars=task_vars)
        if found.get("failed") or found.get("unreachable"):
            return dict(result, **found)
        host = str((task_vars or {}).get("inventory_hostname"))
        files, pains = dict(found.pop("files", {})), list(found.get("pains", ()))
        text = lines(host, found.get("msg"), pains)
        files["summary.txt"] = "\n".join([*text, ""])
        try:
            path = write(os.path.expanduser(str(self._task.args.get("folder", "."))), host, files)
        except OSError as error:
            return dict(result, failed=True, msg="folder: the archive cannot be written: %s" % error)
        return dict(result, **found, path=path, lines=[*text, "archive: %s" % path])


def lines(host: str, said: Any, pains: List[Any]) -> List[str]:
    """The summary: each problem, and its fix on the next line."""
    text = ["%s: %s" % (host, one_line(str(said)))]
    for pain in pains:
        text += ["  %s: %s" % (one_line(str(pain["pain"])), one_line(str(pain["text"]), 600))]
        text += ["    fix: %s" % one_line(str(pain["fix"]))]
    return text


def write(folder: str, host: str, files: Mapping[str, str]) -> str:
    """Write the archive, whole, for its user alone; its path.

    :raises OSError: it cannot be written.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    now = time.time()
    stem = "doctor-%s-%s" % (re.sub(r"[^\w.-]", "_", host), time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime(now)))
    path = os.path.join(folder, stem + ".tar.gz")
    private = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(private, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            content = printable(str(text)).encode("utf-8", "replace")
            if NAME.match(str(name)):
                member = tarfile.TarInfo("%s/%s" % (stem, name))
                member.size, member.mode, member.mtime = len(content), 0o600, int(now)
                archive.addfile(member, io.BytesIO(content))
    os.replace(path + ".new", path)
    return path
