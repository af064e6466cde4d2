# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module without its work."""

from __future__ import annotations

from typing import Any, Callable, Dict

import pytest


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`bring = replaced(ROOM, NAME)` takes the place of a function: it calls `bring.does`, or raises `bring.raises`."""

    def of(room: Any, name: str = "converge") -> Any:
        def bring(*words: Any) -> Dict[str, Any]:
            if bring.raises:
                raise bring.raises
            return bring.does(*words)

        bring.does, bring.raises = lambda params, check_mode, warn: {"changed": False, "msg": "ok"}, None
        monkeypatch.setattr(room, name, bring)
        return bring

    return of
