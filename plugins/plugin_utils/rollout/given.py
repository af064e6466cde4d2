# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person has given a rollout, by variables of the inventory or with ``-e``."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence

from . import wishes

DEFAULTS = {"rollout_soak": 60, "rollout_room_wait": 600}
"""Seconds."""


class Refused(Exception):
    """The step fails with this sentence."""


class Given:
    """The variables of one host, which are those of the run.

    :param template: returns the value of an expression.
    """

    def __init__(self, variables: Mapping[str, Any], template: Callable[[Any], Any]) -> None:
        self.variables, self.template = variables, template

    def value(self, name: str, default: Any = None) -> Any:
        return self.template(self.variables[name]) if name in self.variables else default

    def wish(self, name: str, default: Any, read: Callable[[Any], Any]) -> Any:
        """The value of a variable as ``read`` returns it.

        :raises Refused: it raises ValueError.
        """
        try:
            return read(self.value(name, default))
        except ValueError as error:
            raise Refused("%s: %s" % (name, error)) from None

    def seconds(self, name: str) -> float:
        return float(self.wish(name, DEFAULTS[name], wishes.seconds))

    def sources(self) -> List[Any]:
        """What the inventory was read from."""
        found = self.variables.get("ansible_inventory_sources") or []
        return [found] if isinstance(found, str) else list(found)

    def check(self, hosts: Sequence[str], extra: Mapping[str, Any]) -> None:
        """Refuse what would be ignored, or fail after a host was changed.

        :param hosts: those of the run.
        :param extra: the variables that were given with ``-e``.
        :raises Refused: with the variable, and what is expected.
        """
        if "rollout_state" in self.variables and "rollout_state" not in extra:
            raise Refused("rollout_state: give it with -e, because the plays cannot read it from the inventory")
        own: Dict[str, Any] = {}
        for host in hosts:
            variables = self.variables["hostvars"][host]
            found = {name: variables[name] for name in variables if name.startswith(wishes.PREFIX)}
            try:
                wishes.known(found, extra)
            except ValueError as error:
                raise Refused(str(error)) from None
            wanted = {name: found[name] for name in wishes.VARIABLES if name in found}
            own = own or {"host": host, "wanted": wanted}
            odd = next((name for name in wishes.VARIABLES if wanted.get(name) != own["wanted"].get(name)), "")
            if odd:
                raise Refused(
                    "%s: %s and %s differ in it; it is for the whole run: set it for all hosts alike, or with -e"
                    % (odd, own["host"], host)
                )
        for name in DEFAULTS:
            self.seconds(name)
