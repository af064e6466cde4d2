# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends a directory of wheels that lies on the controller, only to hosts that ask for it."""

from __future__ import annotations

import os
import tarfile
import tempfile
from typing import Any, Callable, Dict, Mapping

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean


def call_with_wheels(
    action: Any, options: Mapping[str, Any], call: Callable[[Mapping[str, Any]], Dict[str, Any]]
) -> Dict[str, Any]:
    """Call the module; when it answers ``needs``, send them and call it again.

    :param action: the action plugin.
    :param options: its ``wheels`` and ``remote_src``, as the task gives them.
    :param call: called with what of the two is to be replaced; gives the module's result.
    """
    wheels = options.get("wheels")
    if not wheels or boolean(options.get("remote_src", False), strict=False):
        return call({})
    folder = action._find_needle("files", wheels)
    names = sorted(name for name in os.listdir(folder) if name.endswith(".whl")) if os.path.isdir(folder) else []
    odd = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if odd:
        raise AnsibleActionFail("wheels: %s is not a file" % os.path.join(folder, odd[0]))
    if not names:
        raise AnsibleActionFail("wheels: %s on the controller is no directory with wheels in it" % folder)
    result = call({})
    if not result.get("needs") or result.get("failed"):
        return result
    if action._task.async_val:
        raise AnsibleActionFail("wheels: files on the controller cannot be sent in the background (async)")
    local = C.DEFAULT_LOCAL_TMP  # type: ignore[attr-defined]
    with tempfile.NamedTemporaryFile(dir=local, suffix=".tar") as packed:
        with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:  # a link would lead nowhere there
            for name in names:
                tar.add(os.path.join(folder, name), name, filter=_plain)
        packed.flush()
        remote = action._connection._shell.join_path(action._make_tmp_path(), "wheels.tar")
        action._transfer_file(packed.name, remote)
    action._fixup_perms2((action._connection._shell.tmpdir, remote))
    return call({"wheels": remote, "remote_src": True})


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the owner and mode on the controller, which mean nothing on the host."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
