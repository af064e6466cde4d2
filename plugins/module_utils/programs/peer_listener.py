# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TOKEN SECONDS PORT...: listens on the ports for a while, and sends the token and the time to whoever connects.

By this the other hosts of a torchrun job check that they reach this one.
"""

from __future__ import annotations

import select
import socket
import sys
import time


def main(token, seconds, ports):
    until = time.monotonic() + seconds
    listeners = []
    for port in ports:
        try:
            one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            place = "::"
        except OSError:  # a host without IPv6
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            place = "0.0.0.0"
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((place, port))
        one.listen(128)
        one.setblocking(False)
        listeners.append(one)
    while time.monotonic() < until:
        ready, _write, _error = select.select(listeners, [], [], max(0, until - time.monotonic()))
        for one in ready:
            answer(one, token)


def answer(listener, token):
    """Say it to whoever has come, read nothing, wait for nobody: a stranger costs no more than this."""
    try:
        connection, _peer = listener.accept()
    except OSError:  # gone before it was accepted
        return
    try:
        connection.setblocking(False)
        connection.send(b"%s %.6f\n" % (token.encode("ascii"), time.time()))  # fits any send buffer
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # whoever asked has gone
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), [int(port) for port in sys.argv[3:]])
