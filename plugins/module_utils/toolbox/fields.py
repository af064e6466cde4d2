# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of the standard library's ``dataclasses`` as is used on hosts: mutable classes of fields with defaults.

A host in its declared state creates these classes at each check. ``dataclasses`` imports ``inspect`` and compiles four
methods for each class, which takes a tenth of the CPU time of a check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple

__all__ = ("dataclass", "field", "replace")

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:

    class _Factory(NamedTuple):
        create: Callable[[], Any]

    def field(default_factory: Callable[[], Any]) -> Any:
        return _Factory(default_factory)

    def dataclass(cls: type) -> type:
        names = list(cls.__annotations__)
        defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
        required = set(names).difference(defaults)

        def __init__(self: Any, *args: Any, **given: Any) -> None:
            values = dict(zip(names, args), **given)
            if len(values) != len(args) + len(given) or not required <= set(values) <= set(names):
                raise TypeError("%s%r: expected the fields %s" % (cls.__name__, (args, given), ", ".join(names)))
            for name, default in defaults.items():
                if name not in values:
                    values[name] = default.create() if isinstance(default, _Factory) else default
            self.__dict__.update(values)

        cls.__init__ = __init__
        cls.__eq__ = lambda self, other: type(self) is type(other) and vars(self) == vars(other)
        cls.__hash__ = None
        cls.__repr__ = lambda self: "%s(%s)" % (cls.__name__, ", ".join("%s=%r" % item for item in vars(self).items()))
        return cls

    def replace(instance: Any, **changes: Any) -> Any:
        return type(instance)(**{**vars(instance), **changes})
