# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether Ollama is in its declared state; sends a release on the controller to hosts that need it."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from typing import Any, Dict, List, Mapping, Sequence

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.gpufleet.inference.plugins.modules import ollama_service
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction, on_controller
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.ollama_service"
    FUNCTION = RemoteFunction("ollama.service", "converge", ollama_service.argument_spec())

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        elsewhere = boolean(arguments.get("remote_src", False), strict=False)
        if elsewhere or arguments.get("state", "present") != "present":
            return arguments
        if arguments.get("version"):
            arguments["version"] = re.sub(r"\Av(?=\d)", "", str(arguments["version"]))  # as the release's page has it
        self.files = self._find(arguments)
        given = arguments.get("archive_checksum")
        if self.files and (not given or isinstance(given, dict)):
            arguments["archive_checksum"] = {**checksums(self.files), **(given or {})}
        return arguments

    def provide(self, needs: Sequence[str]) -> Dict[str, Any]:
        """Send the archives of the release: its own, and those of the add-ons."""
        sent = [self.transfer(place, os.path.basename(place)) if on_controller(place) else place for place in needs]
        self._fixup_perms2((self._connection._shell.tmpdir, *sent))
        return {"archive": sent[0], "addons": sent[1:], "remote_src": True}

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


def checksums(paths: List[str]) -> Dict[str, str]:
    """File name to checksum."""
    return {os.path.basename(path): "sha256:" + checksum(path) for path in paths}


def checksum(path: str) -> str:
    """SHA-256 of a file: from ``sha256sum.txt`` next to it, as a release has it, else of its content."""
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
