# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A strict umask of sudo or PAM does not reach what a convergence and its steps create, and is back afterwards."""

from __future__ import annotations

import os
from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, ServiceError
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge


class Step:
    """Makes a folder without a thought of the umask."""

    restarts = False

    def __init__(self, path: str, breaks: bool) -> None:
        self.path, self.breaks = path, breaks

    def needed(self) -> bool:
        return True

    def diff(self) -> Dict[str, str]:
        return {"before": "", "after": self.path}

    def apply(self) -> None:
        os.makedirs(self.path)
        if self.breaks:
            raise OSError(5, "Input/output error")

    def undo(self) -> None:
        pass


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_a_strict_umask(system: Any, umask: int, breaks: bool) -> None:
    system.boot()
    path = "%s/opt/made/by/a/step" % system.root
    former = os.umask(umask)
    try:
        change = Change(unit="ollama", environment={"A": "1"})
        if breaks:
            with pytest.raises(ServiceError):
                converge(change, steps=[Step(path, breaks)], system=system)
        else:
            converge(change, steps=[Step(path, breaks)], system=system)
    finally:
        after = os.umask(former)
    assert after == umask
    while path != str(system.root):
        assert os.stat(path).st_mode & 0o777 == 0o755
        path = os.path.dirname(path)
