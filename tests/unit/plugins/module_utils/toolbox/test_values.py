# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import addresses, values
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("0", 0),
        ("7", 7),
        (7, 7),
        ("1073741824", 1 << 30),
        ("9007199254740993", (1 << 53) + 1),
        ("2GiB", 2 << 30),
        ("2Gi", 2 << 30),
        ("2gib", 2 << 30),
        ("2G", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("512M", 512 * 10**6),
        ("500MB", 500 * 10**6),
        ("512MiB", 512 << 20),
        ("1.5K", 1500),
        ("1.5 GB", 1500 * 10**6),
        ("1.5KiB", 1536),
        ("3TiB", 3 << 40),
        (" 2GiB ", 2 << 30),
    ],
)
def test_sizes(written: Any, size: int) -> None:
    assert values.size(written, "free_space_margin") == size


@pytest.mark.parametrize("written", ["", "much", "-1", "2 gigs", "1.5", "1e9", "GiB", "2PB", "2GiBB", True, None])
def test_not_a_size(written: Any) -> None:
    with pytest.raises(Refused, match="^free_space_margin is .*; expected bytes, or a size such as 2GiB or 500MB"):
        values.size(written, "free_space_margin")


@pytest.mark.parametrize(("size", "text"), [(1 << 28, "0.2 GiB"), ((1 << 28) - 1, "256.0 MiB"), (3 << 29, "1.5 GiB")])
def test_a_size_for_a_person(size: int, text: str) -> None:
    assert values.gib(size) == text


@pytest.mark.parametrize(
    ("host", "loopback", "reached"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("127.1.2.3", True, "127.1.2.3"),
        ("::1", True, "::1"),
        ("localhost", True, "localhost"),
        ("", False, "127.0.0.1"),
        ("0.0.0.0", False, "127.0.0.1"),
        ("::", False, "::1"),
        ("192.0.2.1", False, "192.0.2.1"),
        ("localhost.example.com", False, "localhost.example.com"),
    ],
)
def test_addresses(host: str, loopback: bool, reached: str) -> None:
    assert (addresses.is_loopback(host), addresses.reachable(host)) == (loopback, reached)


@pytest.mark.parametrize(("host", "text"), [("192.0.2.1", "192.0.2.1:80"), ("::1", "[::1]:80"), ("a", "a:80")])
def test_an_address_in_a_url(host: str, text: str) -> None:
    assert addresses.host_port(host, 80) == text
