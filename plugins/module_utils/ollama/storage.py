# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user and the store of a service: which they are, whether that user may use it, and whether models are moved."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..converge import account
from ..converge.model import Step, StepError
from ..converge.override import DROP_IN
from ..serving import access
from ..serving.foreign import foreign
from ..serving.model import Service
from ..toolbox.errors import Refused
from . import store as stores

USER = "ollama"
"""Upstream's user, with which a service is installed."""


def without_ours(system: Any, unit: str) -> Tuple[str, Dict[str, str]]:
    """User and variables of a unit without our override; what upstream's unit has where there is none yet."""
    found = foreign(system, unit)
    return found.user or USER, found.environment


def in_force(system: Any, unit: str) -> Tuple[str, Optional[str]]:
    """User and store of a unit as it is, our override included; upstream's where there is none."""
    found = foreign(system, unit, ours=True)
    user = found.user or USER
    return user, found.environment.get("OLLAMA_MODELS") or stores.default_store(user)


def check(user: str, store: Optional[str], steps: Sequence[Step]) -> None:
    """:raises Refused: the service's user may not use its store; the message says what helps."""
    creates = next((step for step in steps if isinstance(step, account.UserStep)), None)
    why = stores.refused(store, user, to_be_made=creates is not None) if store else None
    if why and creates and store:
        why = _prepared(user, store, steps, why)
    if why and creates and not account.exists(user) and access.OTHER_FOLDER not in why:
        why += ", after %s, as there is no such user yet" % " ".join(creates.command)
    if why:
        raise Refused("models_dir: %s" % why)


def _prepared(user: str, store: str, steps: Sequence[Step], why: str) -> Optional[str]:
    """What keeps a user of our own from a store that root has prepared; one of root alone is given to it."""
    directory = next((step for step in steps if isinstance(step, account.DirectoryStep)), None)
    if directory is None or (account.exists(user) and user not in account.install_record.remembered("users")):
        return why
    if stores.refused(store, user, to_be_made=True, parents_only=True) or directory.give(stores.TOPS):
        return why
    return None


def moving(service: Service, system: Any, user: str, store: Optional[str]) -> List[Any]:
    """The steps that move the models where the store in force is not the one that will be.

    :raises Refused: models would be out of sight, or cannot be moved.
    """
    unit = service.unit
    ours = any(os.path.basename(path) == DROP_IN for path, _content in system.load([unit]))
    # an instance that is new had no store before
    previous = None if service.name and not ours else in_force(system, unit)[1]
    return _moved(previous, store, service.options["models_dir_change"], user, unit)


def abandoning(unit: str, system: Any) -> List[Any]:
    """The steps that clean up after a killed move of a service that leaves.

    :raises Refused: its models cannot be inspected.
    """
    if not stores.move_unfinished(unit):
        return []
    user, others = without_ours(system, unit)
    store = others.get("OLLAMA_MODELS") or stores.default_store(user)
    return _moved(in_force(system, unit)[1], store, "leave", user, unit)


def _moved(previous: Optional[str], store: Optional[str], change: str, user: str, unit: str) -> List[Any]:
    if previous == store and not stores.move_unfinished(unit):
        return []
    from . import moving as moves

    try:
        return list(moves.plan(previous, store, change, user, unit))
    except StepError as error:
        raise Refused(str(error)) from None
