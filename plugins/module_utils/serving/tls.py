# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the user of a service can use its certificate and key, and whether these belong together."""

from __future__ import annotations

from typing import Optional, Tuple

from ..toolbox.errors import Failed, Refused
from ..toolbox.users import as_user
from . import access


def check(certificate: Tuple[str, str], key: Tuple[str, str], user: str) -> None:
    """:param certificate: the option and its path; ``key``: the same.
    :raises Refused: a server could not start with these files.
    """
    for option, path in certificate, key:
        access.check_readable(option, path, user)
    try:
        wrong = as_user(access.ids(user), lambda: _wrong(certificate[1], key[1]), 20)
    except (OSError, Failed) as error:
        wrong = str(error)
    if wrong:
        raise Refused(
            "%s, %s: %s and %s are not a certificate and its unencrypted key in PEM format: %s"
            % (certificate[0], key[0], certificate[1], key[1], wrong)
        )


def _wrong(certificate: str, key: str) -> Optional[str]:
    import ssl

    def no_password() -> bytes:  # else OpenSSL would ask for one at the terminal
        raise ValueError("the key is encrypted")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except (ssl.SSLError, ValueError) as error:
        return str(error)
    return None
