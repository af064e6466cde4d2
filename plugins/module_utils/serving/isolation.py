# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a service to itself: no GPU but its own (``isolate``), no folder but its own (``sandbox``)."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ..gpu import nodes as gpu_nodes
from ..placement import sandbox
from ..systemd.unit import Unit
from ..toolbox.errors import Refused
from .model import Declared


class Isolation:
    """The settings for one service, and what of the unit as it will be stands against them.

    :param options: the service's, of which ``isolate`` and ``sandbox`` are looked at.
    :param devices: the GPUs that it uses.
    :param there: whether the host has GPUs at all.
    :param title: of the engine, for messages.
    :raises Refused: the nodes of its GPUs are not known.
    """

    def __init__(self, options: Mapping[str, Any], devices: Sequence[Dict[str, Any]], there: bool, title: str) -> None:
        self.isolate, self.sandbox, self.there, self.title = options["isolate"], options["sandbox"], there, title
        try:
            self.nodes = [sandbox.Node(*node) for node in gpu_nodes.nodes(devices)]
        except ValueError as error:
            if self.isolate:
                raise Refused("isolate: %s" % error) from None
            self.nodes = []
        self.useful = [*self.nodes, *(sandbox.Node(*node) for node in gpu_nodes.USEFUL)]

    def settings(self, unit: str, declared: Declared) -> Dict[str, List[str]]:
        """Keys of ``[Service]``.

        :raises Refused: the sandbox would hide a folder that the service needs.
        """
        found: Dict[str, List[str]] = {}
        if self.sandbox:
            for path in [*declared.writable, *declared.readable]:
                real = os.path.realpath(path)
                hidden = [folder for folder in sandbox.HIDDEN if (real + "/").startswith(folder + "/")]
                if hidden:
                    raise Refused(
                        "sandbox: %s needs %s%s, but the sandbox hides %s from it; move it elsewhere"
                        % (unit, path, "" if real == path else " (%s)" % real, hidden[0])
                    )
            found.update(sandbox.profile(declared.writable), **declared.sandbox)
        if self.isolate:
            found.update(sandbox.only(self.useful))
        return found

    def check(self) -> Callable[[Unit], Optional[str]]:
        """What the convergence asks about the unit as it will be, drop-ins of others included."""

        def check(merged: Unit) -> Optional[str]:
            hidden = sandbox.hides(merged, self.nodes) if self.there else None
            if hidden:
                return "%s, so that %s would serve on the CPU or not at all; remove it there" % (hidden, self.title)
            opened = sandbox.opens(merged, self.useful) if self.isolate else None
            return opened and "isolate: %s; remove it there" % opened

        return check
