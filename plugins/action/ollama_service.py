# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends a release of Ollama that lies on the controller, only to hosts that ask for it."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Dict, Optional

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

MODULE = "gpufleet.inference.ollama_service"


class ActionModule(ActionBase):
    """Runs the module; when it answers ``archive_needed``, sends the archive and runs it again."""

    TRANSFERS_FILES = False  # the folder for it is made only when the archive is sent: three calls less

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        archive = arguments.get("archive")
        local = None
        if archive and not boolean(arguments.get("remote_src", False), strict=False) and "://" not in archive:
            if self._task.async_val:
                raise AnsibleActionFail("archive: a file on the controller cannot be sent in the background (async)")
            local = os.path.realpath(self._find_needle("files", archive))
            if not arguments.get("archive_checksum"):
                arguments["archive_checksum"] = "sha256:" + checksum(local)
        result.update(self._call(arguments, task_vars))
        if local and result.get("archive_needed") and not result.get("failed"):
            remote = self._connection._shell.join_path(self._make_tmp_path(), os.path.basename(local))
            self._transfer_file(local, remote)
            self._fixup_perms2((self._connection._shell.tmpdir, remote))
            arguments.update(archive=remote, remote_src=True)
            result = self._call(arguments, task_vars)
        return result

    def _call(self, arguments: Dict[str, Any], task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        return self._execute_module(
            module_name=MODULE, module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val
        )


def checksum(path: str) -> str:
    """SHA-256 of a file: from ``sha256sum.txt`` beside it, as a release has it, else of its content."""
    folder, name = os.path.split(path)
    try:
        with open(os.path.join(folder, "sha256sum.txt"), encoding="utf-8") as listed:
            for line in listed:
                digest, _sep, file = line.strip().partition(" ")
                if os.path.basename(file.strip().lstrip("*")) == name and len(digest) == 64:
                    return digest.lower()
    except OSError:
        pass
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
