# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a missing unit file, such as the template ``vllm@.service``, as a step; removes such a unit from the host."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence

from ..converge import install_record
from ..converge import run as convergence
from ..converge.account import UserStep
from ..converge.model import Change, Outcome, Step
from ..converge.override import DIRECTORY, Override
from ..systemd.manager import UNIT_PATH
from ..toolbox.fields import replace


def text(title: str, *settings: str) -> str:
    """The text of a template; what an instance runs, and as whom, is in its own override.

    :param title: of the engine; ``settings``: further lines of ``[Service]``.
    """
    return (
        "# Written by the Ansible collection gpufleet.inference where there was none. Each instance has an override of "
        "its own.\n[Unit]\nDescription=%s, instance %%i\nWants=network-online.target\nAfter=network-online.target\n\n"
        "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=5\n%s\n[Install]\nWantedBy=multi-user.target\n"
        % (title, "".join("%s\n" % line for line in settings))
    )


def steps(user: str, home: str, name: str, text: str, root: str = "") -> List[Step]:
    """What an instance needs on the host: its user, but for root, and the template ``name``."""
    template = TemplateStep(name, text, root)
    return [template] if user == "root" else [UserStep(user, home), template]


def remove(name: str, text: str, system: Any, check_mode: bool) -> List[str]:
    """Remove a unit file that TemplateStep wrote and nobody has changed; what is done, as a plan says it."""
    path = "%s/%s" % (DIRECTORY, name)
    if system.read(path) != text.encode("ascii"):
        return []
    if not check_mode:
        from ..toolbox import files

        files.remove(system.root + path)
        install_record.drop("units", system.root + path)
        system.reload()
    return ["remove %s" % path]


def leave(
    name: str, text: str, files: Sequence[str], system: Any, check_mode: bool, folders: Sequence[str] = ()
) -> Dict[str, Any]:
    """Stop and disable a unit of ours that serves no model, and remove what it has on the host.

    A host that has none of it is not even asked for the unit.

    :param text: of the unit file; a file that somebody has changed stays.
    :param folders: of this unit alone; they are removed with their content.
    :returns: the module's result.
    """
    change = Change(unit=name, state="absent", files=dict.fromkeys(files))
    left = [folder for folder in folders if os.path.lexists(system.root + folder)]
    ours = [*files, "%s/%s" % (DIRECTORY, name), Override(name, change).drop_in]
    if not left and all(system.read(path) is None for path in ours):
        return dict(Outcome().as_result(), msg="%s: not there" % name)
    if system.show(name).get("LoadState") == "loaded":
        change = replace(change, state="present", enabled=False, started=False)
    outcome = convergence.converge(change, check_mode=check_mode, system=system)
    removed = remove(name, text, system, check_mode)
    if not check_mode:
        from ..toolbox.files import remove_tree

        for folder in left:
            remove_tree(system.root + folder)
    outcome.planned += removed + ["remove %s" % folder for folder in left]
    outcome.changed = outcome.changed or bool(removed or left)
    return dict(outcome.as_result(), msg="%s: %s" % (name, "stopped and removed" if outcome.changed else "not there"))


class TemplateStep:
    """Writes a unit file only where systemd knows none of that name, and remembers it as installed.

    :param name: such as ``vllm@.service``.
    :param text: what an instance runs, and as whom, stands in its own override, not here.
    :param root: is put before every path (for tests).
    :param also: another name under which there may be one, such as that of the instance.
    """

    restarts = False
    writes_unit = True

    def __init__(self, name: str, text: str, root: str = "", also: str = "") -> None:
        self.path = "%s%s/%s" % (root, DIRECTORY, name)
        self.text = text
        self._places = ["%s%s/%s" % (root, folder, each) for folder in UNIT_PATH for each in (name, also or name)]
        self._wrote = False

    def needed(self) -> bool:
        return not any(os.path.lexists(place) for place in self._places)

    def diff(self) -> Dict[str, str]:
        return {"before": "", "after": "# %s\n%s" % (self.path, self.text)}

    def apply(self) -> None:
        from ..toolbox.files import write_whole

        content = self.text.encode("ascii")
        install_record.add("units", self.path)
        self._wrote = True
        write_whole(self.path, content)

    def undo(self) -> None:
        if self._wrote and os.path.lexists(self.path):
            os.unlink(self.path)
        install_record.drop("units", self.path)
