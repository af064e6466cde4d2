# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends a release of Ollama that lies on the controller, only to hosts that ask for it."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line
from ansible_collections.gpufleet.inference.plugins.modules import ollama_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.ask import Asking, Work


class ActionModule(Asking):
    """Sends the module to a host that is not as declared; when it answers ``needs``, the archives as well."""

    MODULE = "gpufleet.inference.ollama_service"
    WORK = Work("ollama.service", "bring", ollama_service.argument_spec())

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result = super(Asking, self).run(tmp, task_vars)
        arguments = dict(self._task.args)
        elsewhere = boolean(arguments.get("remote_src", False), strict=False)
        local = [] if elsewhere or arguments.get("state", "present") != "present" else self._find(arguments)
        if local and self._task.async_val:
            raise AnsibleActionFail("archive: a file on the controller cannot be sent in the background (async)")
        given = arguments.get("archive_checksum")
        if local and (not given or isinstance(given, dict)):
            arguments["archive_checksum"] = {**checksums(local), **(given or {})}
        result.update(self.ask(arguments, task_vars) or self.send(arguments, task_vars))
        needed = result.get("needs")
        if local and needed and not result.get("failed"):
            refuse_others(needed, local)
            sent = [self._send(place) if on_controller(place) else place for place in needed]
            self._fixup_perms2((self._connection._shell.tmpdir, *sent))
            arguments.update(archive=sent[0], addons=sent[1:], remote_src=True)
            result = self.send(arguments, task_vars)
        return result

    def _find(self, arguments: Dict[str, Any]) -> List[str]:
        """The files on the controller that may be asked for; ``arguments`` get their true paths."""
        found = []

        def look(place: str) -> str:
            found.append(os.path.realpath(self._find_needle("files", place)))
            return found[-1]

        archive, addons, mirror = (arguments.get(name) for name in ("archive", "addons", "mirror"))
        if archive and on_controller(archive):
            arguments["archive"] = look(archive)
        if isinstance(addons, list):
            arguments["addons"] = [look(addon) if "/" in addon and on_controller(addon) else addon for addon in addons]
        if mirror and on_controller(mirror) and not archive:
            arguments["mirror"] = os.path.abspath(os.path.expanduser(mirror))
            folder = "%s/v%s" % (arguments["mirror"], arguments.get("version"))
            files = sorted(filter(os.path.isfile, glob.glob(glob.escape(folder) + "/ollama-linux-*")))
            if not files:
                raise AnsibleActionFail(
                    "mirror: there is no %s/ollama-linux-* on the controller; expected the layout of the releases,"
                    " MIRROR/vVERSION/ollama-linux-amd64.tar.zst" % folder
                )
            found += files
        return found

    def _send(self, local: str) -> str:
        remote = self._connection._shell.join_path(self._make_folder(), os.path.basename(local))
        self._transfer_file(local, remote)
        return remote

    def _make_folder(self) -> str:
        return self._connection._shell.tmpdir or self._make_tmp_path()


def refuse_others(needed: Any, local: List[str]) -> None:
    """A host is sent archives of the task and nothing else: it must not choose among the files of the controller."""
    ours = {os.path.realpath(path) for path in local}
    asked = needed if isinstance(needed, list) else [needed]
    for place in asked:
        if not isinstance(place, str) or (on_controller(place) and os.path.realpath(place) not in ours):
            raise AnsibleActionFail(
                "archive: the host asks for %s, which is none of the files of this task (%s): nothing was sent; look "
                "whether somebody else has taken it over" % (one_line(str(place)), ", ".join(local))
            )


def on_controller(place: str) -> bool:
    return "://" not in place


def checksums(paths: List[str]) -> Dict[str, str]:
    """File name to checksum."""
    return {os.path.basename(path): "sha256:" + checksum(path) for path in paths}


def checksum(path: str) -> str:
    """SHA-256 of a file: from ``sha256sum.txt`` beside it, as a release has it, else of its content."""
    folder, name = os.path.split(path)
    try:
        with open(os.path.join(folder, "sha256sum.txt"), encoding="utf-8") as listed:
            for line in listed:
                digest, _sep, file = line.strip().partition(" ")
                if os.path.basename(file.strip().lstrip("*")) == name and re.match(r"[0-9a-fA-F]{64}\Z", digest):
                    return digest.lower()
    except OSError:
        pass
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
