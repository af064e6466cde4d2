# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether an environment is in its declared state; sends wheels on the controller to hosts that need them."""

from __future__ import annotations

import os
import tarfile
import tempfile
from typing import Any, Dict, List, Mapping, Sequence

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.gpufleet.inference.plugins.modules import python_environment
from ansible_collections.gpufleet.inference.plugins.plugin_utils.check_first import CheckFirstAction
from ansible_collections.gpufleet.inference.plugins.plugin_utils.question import RemoteFunction


class ActionModule(CheckFirstAction):
    MODULE = "gpufleet.inference.python_environment"
    FUNCTION = RemoteFunction("python_env.step", "converge", python_environment.argument_spec())

    def prepare(self, arguments: Dict[str, Any], variables: Mapping[str, Any]) -> Dict[str, Any]:
        wheels = arguments.get("wheels")
        if not wheels or boolean(arguments.get("remote_src", False), strict=False):
            return arguments
        folder = os.path.realpath(self._find_needle("files", wheels))
        wheels_in(folder)
        self.files = [folder]
        return dict(arguments, wheels=folder)

    def provide(self, needs: Sequence[str]) -> Dict[str, Any]:
        """Send the folder of wheels as one file."""
        folder = self.files[0]
        local = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]
        with tempfile.NamedTemporaryFile(dir=local, suffix=".tar") as packed:
            with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:  # a link would lead nowhere there
                for name in wheels_in(folder):
                    tar.add(os.path.join(folder, name), name, filter=anonymous)
            packed.flush()
            remote = self.transfer(packed.name, "wheels.tar")
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return {"wheels": remote, "remote_src": True}


def wheels_in(folder: str) -> List[str]:
    """The names of the wheels in a folder on the controller.

    :raises AnsibleActionFail: there are none.
    """
    names = sorted(name for name in os.listdir(folder) if name.endswith(".whl")) if os.path.isdir(folder) else []
    odd = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if odd:
        raise AnsibleActionFail("wheels: %s is not a file" % os.path.join(folder, odd[0]))
    if not names:
        raise AnsibleActionFail("wheels: %s on the controller is not a directory with wheels in it" % folder)
    return names


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the owner and mode on the controller, which mean nothing on the host."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
