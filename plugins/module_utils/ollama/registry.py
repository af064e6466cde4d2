# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a registry reports about a model before anything is pulled: the digest, and the layers with their sizes.

Asked without a login, as Ollama's own registry allows; through the proxy of the server that would pull.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Dict, Mapping, NamedTuple

from ..toolbox.errors import Failed
from . import names

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_LARGEST = 4 << 20


class Manifest(NamedTuple):
    digest: str
    """64 hex digits, as /api/tags has it for a model that was pulled."""
    layers: Dict[str, int]
    """Bytes by digest, the configuration among them."""


def manifest_url(name: str) -> str:
    """Where the registry keeps the manifest of a model."""
    path, _sep, tag = names.full(name).rpartition(":")
    host, _slash, repository = path.partition("/")
    scheme = "http" if name.startswith("http://") else "https"
    return "%s://%s/v2/%s/manifests/%s" % (scheme, host, repository, tag)


def manifest(name: str, *, insecure: bool, environ: Mapping[str, str], timeout: float = 10.0) -> Manifest:
    """Ask the registry.

    :param insecure: do not check its certificate.
    :param environ: of the server: its ``HTTPS_PROXY`` and ``HTTP_PROXY`` are used.
    :raises Failed: nothing usable came within ``timeout`` seconds.
    """
    import ssl  # 40 ms, so only here
    import urllib.request

    url = manifest_url(name)
    proxies = {
        scheme: environ.get(variable) or environ.get(variable.lower()) or ""
        for scheme, variable in (("https", "HTTPS_PROXY"), ("http", "HTTP_PROXY"))
    }
    local = re.match(r"https?://(localhost|127\.|\[?::1)", url)
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({} if local else {key: proxy for key, proxy in proxies.items() if proxy}),
        urllib.request.HTTPSHandler(context=context),
    )
    try:
        request = urllib.request.Request(url, headers={"Accept": _MANIFEST})
        with opener.open(request, timeout=timeout) as answer:
            content = answer.read(_LARGEST)
        document: Any = json.loads(content.decode("utf-8"))
        parts = [document["config"]] + document["layers"]
        layers = {str(part["digest"]): int(part["size"]) for part in parts}
    except (OSError, ValueError, KeyError, TypeError) as error:  # URLError and HTTPError are OSErrors
        raise Failed("%s: %s" % (url, error)) from None
    return Manifest(hashlib.sha256(content).hexdigest(), layers)
