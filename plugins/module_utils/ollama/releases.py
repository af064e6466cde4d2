# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files make up a release of Ollama, and where they are. Pure.

A release is one archive for the host's architecture, with any number of add-ons laid over it. A mirror has the layout
of the official releases: MIRROR/vVERSION/ollama-linux-ARCHITECTURE[-ADDON].tar.zst, with sha256sum.txt next to them.
"""

from __future__ import annotations

import re
from typing import Any, List, Mapping, Optional, Tuple

from ..serving.sources import UNVERIFIED, Release, Source, file_name, is_url, parse_checksum, without_secrets
from ..toolbox.errors import Refused

MIRROR = "https://github.com/ollama/ollama/releases/download"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ZSTD_SINCE = (0, 14, 0)


def plan(
    version: Optional[str],
    mirror: Optional[str],
    archive: Optional[str],
    addons: List[str],
    checksum: Any,
    machine: str,
) -> Optional[Release]:
    """The release that a host's inventory asks for; None when it asks for none.

    :param checksum: of the only archive, or file name to checksum; UNVERIFIED waives it, for all or for one file.
    :param machine: the host's architecture, as uname says it.
    :raises Refused: there is no such release.
    """
    if version is not None and not re.match(r"\d+\.\d+\.\d+(-[0-9A-Za-z.]+)?\Z", version):
        raise Refused("version is %r; expected one such as 0.32.15" % version)
    if not (version or archive):
        if addons:
            raise Refused("addons are laid over a release: name it by version or archive")
        return None
    if machine not in ARCHITECTURES:
        raise Refused("Ollama has no release for %s; expected %s" % (machine, " or ".join(ARCHITECTURES)))
    architecture = ARCHITECTURES[machine]

    def official(addon: str) -> str:
        extension = "tar.zst" if _numbers(version or "") >= ZSTD_SINCE else "tgz"
        name = "ollama-linux-%s%s.%s" % (architecture, addon and "-" + addon, extension)
        return "%s/v%s/%s" % ((mirror or MIRROR).rstrip("/"), version, name)

    places = [archive or official("")]
    for addon in addons:
        by_name = is_addon_name(addon)
        if by_name and archive:
            raise Refused(
                "addons: %s is searched for next to a release of a mirror; with an archive, name its file" % addon
            )
        places.append(official(addon) if by_name else addon)
    for place in places:
        made_for = re.search(r"-linux-(amd64|arm64)\b", file_name(place))
        if made_for and made_for.group(1) != architecture:
            raise Refused("%s is for %s; this host is %s" % (without_secrets(place), made_for.group(1), machine))
    return Release(tuple(Source(place, _checksum(place, checksum, len(places) > 1)) for place in places))


def is_addon_name(addon: str) -> bool:
    """Whether an add-on is named by a word such as rocm or jetpack6, not by its file."""
    return re.match(r"[a-z0-9_]+\Z", addon) is not None


def _checksum(place: str, given: Any, several: bool) -> Optional[str]:
    """The checksum of one of the archives.

    :raises Refused: an archive that comes over the network has none.
    """
    name = file_name(place)
    if isinstance(given, Mapping):
        written = given.get(name)
    elif several and given and given != UNVERIFIED:
        raise Refused("archive_checksum is one for several archives; write one for each, as in {%s: sha256:…}" % name)
    else:
        written = given
    if not written and is_url(place):
        raise Refused(
            "%s needs archive_checksum, the SHA-256 of the file, which %s/sha256sum.txt lists; the word %s does without"
            % (without_secrets(place), without_secrets(place).rpartition("/")[0], UNVERIFIED)
        )
    return parse_checksum(str(written)) if written else None


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("-")[0]))
