# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's page: one HTML file that needs no network, from data. Pure, apart from reading its own template.

Hosts write the texts in the data. They stand in a JSON block that no text can end, and ``page.js`` only ever shows
them as text. The page's policy lets the browser run nothing but that script, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from string import Template
from typing import Any, Mapping

PARTS = Path(__file__).parent
_ESCAPES = {ord(character): "\\u%04x" % ord(character) for character in "<>&\x7f\u2028\u2029"}


def render(data: Mapping[str, Any]) -> str:
    """The page.

    :param data: ``read_at`` (seconds since 1970), ``hosts`` (see ``collect.host``) and ``rollouts`` (see
        ``collect.rollout``), the newest first.
    """
    style, script = (_part("page.css"), _part("page.js"))
    policy = "default-src 'none'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'"
    return Template(_part("page.html")).substitute(
        policy=policy % (_digest(style), _digest(script)), style=style, script=script, data=block(data)
    )


def block(data: Mapping[str, Any]) -> str:
    """Data as JSON that is inert in HTML."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names the one text it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
