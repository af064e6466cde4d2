# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of Ollama's models, and of the user that owns them, is removed when a service is uninstalled.

Models stay, and with them their user, unless their removal is declared.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence

from ..converge import install_record
from ..serving import uninstall as neutral
from . import install, records
from . import store as stores


class Models:
    """The models of a service, as ``serving.uninstall`` asks about them.

    :param places: stores of the service; those that stayed before are added.
    :param user: whom the unit runs as.
    """

    def __init__(self, places: Sequence[str], user: str, remove: bool) -> None:
        self.places, self.user, self.remove = places, user, remove
        self.holdings: List[stores.Holding] = []
        self.goes_on = False

    def __call__(self, goes_on: bool) -> neutral.Data:
        self.goes_on = goes_on
        paths = dict.fromkeys([*self.places, *install_record.remembered("stores")])
        self.holdings = [stores.holding(path) for path in paths]
        kept = [one for one in self.holdings if one.files and not self.remove]
        user = self.user if self.user in install_record.remembered("users") and not (goes_on or kept) else ""
        tops = [os.path.join(one.path, top) for one in self.holdings for top in stores.TOPS if one.files]
        homes = [path for path in install_record.remembered("homes") if path == install.HOME]
        return neutral.Data(
            removed=[*(path for path in tops if self.remove and os.path.lexists(path)), *(homes if user else [])],
            user=user,
            records=[records.FOLDER] if self.remove and os.path.isdir(records.FOLDER) else [],
            places=[one.path for one in self.holdings],
            kept="; ".join("its models stay in %s (%s)" % (one.path, one) for one in kept),
        )

    def remember(self) -> None:
        """Where models stay, for a later run that is to remove them."""
        for one in [] if self.goes_on else self.holdings:
            change = install_record.add if stores.holding(one.path).files else install_record.drop
            change("stores", one.path)


def uninstall(
    unit: str, prefix: str, remove_models: bool, user: str, places: Sequence[str], check_mode: bool, system: Any
) -> Dict[str, Any]:
    """Remove what was installed for a unit, once ``serving.uninstall.check`` has let it pass.

    :param user: whom the unit runs as.
    :param places: where models are.
    :returns: the module's result.
    :raises ServiceError: the previous state is restored, or a rest cannot be removed.
    """
    models = Models(places, user, remove_models)
    result = neutral.uninstall(unit, install.layout(prefix), models, check_mode, system)
    if not check_mode:
        models.remember()
    return result
