# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archives that make up a release of a program: where they are, and by what they are known. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Tuple

from ..toolbox.errors import Refused

UNVERIFIED = "unverified"
"""What an inventory writes in place of a checksum to do without one."""


class Source(NamedTuple):
    """One archive."""

    place: str
    """A URL or a path."""
    checksum: Optional[str]
    """Its SHA-256, UNVERIFIED, or None where none is given."""

    @property
    def name(self) -> str:
        return file_name(self.place)


def is_url(place: str) -> bool:
    return place.startswith(("https://", "http://"))


def without_login(place: str) -> str:
    """A path or URL without a name and password."""
    return re.sub(r"\A(https?://)[^/?#]*@", r"\1", place)


def without_secrets(place: str) -> str:
    """A path or URL as a message may show it: without a name and password, and without what may be a signature."""
    return re.sub(r"[?#].*", "", without_login(place), flags=re.DOTALL) if is_url(place) else place


def file_name(place: str) -> str:
    """The name of an archive's file, without what an URL has behind it."""
    return (re.split("[?#]", place)[0] if is_url(place) else place).rpartition("/")[2]


def parse_checksum(written: str) -> str:
    """The digest of ``sha256:HEX`` or ``HEX``, or UNVERIFIED.

    :raises Refused: it is none.
    """
    if written == UNVERIFIED:
        return written
    digest = written[len("sha256:") :] if written.startswith("sha256:") else written
    if not re.match(r"[0-9a-fA-F]{64}\Z", digest):
        raise Refused(
            "archive_checksum is %r; expected sha256: and 64 hex digits, or the word %s" % (written, UNVERIFIED)
        )
    return digest.lower()


class Release(NamedTuple):
    """A program in one version."""

    sources: Tuple[Source, ...]
    """The release itself, then its add-ons in the order in which they are laid over it."""

    @property
    def key(self) -> str:
        """64 hex digits that name these archives; of a single one its SHA-256."""
        known = []
        for source in self.sources:
            digest = source.checksum or ""
            if digest == UNVERIFIED:  # the same address is taken for the same content
                digest = _sha256(without_login(source.place))
            known.append(digest)
        return known[0] if len(known) == 1 else _sha256("\n".join(known))


def _sha256(text: str) -> str:
    import hashlib  # 3 ms; one archive with a checksum needs none

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
