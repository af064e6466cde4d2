# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may reach a service, and what must have been declared for that."""

from __future__ import annotations

import socket

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Fault
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import exposure
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Listen
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused


def refused(address, allowed=False, **more):
    warnings = []
    try:
        exposure.check(Listen(address, 80, **more), "use the model", allowed, warnings.append)
    except Refused as error:
        return str(error), warnings
    return None, warnings


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_its_own_host_alone(address):
    assert refused(address) == (None, [])


@pytest.mark.parametrize("address", ["0.0.0.0", "", "::", "10.0.0.5", "gpu1.example", "localhost.example"])
def test_an_address_that_others_reach(address):
    why, warnings = refused(address, shown="as written")
    assert why.startswith("host: as written is reachable from other hosts")
    assert "could use the model" in why and not warnings
    assert refused(address, authenticated=True) == refused(address, allowed=True) == (None, [])


def test_an_address_of_a_foreign_file_is_warned_of():
    why, (warning,) = refused("0.0.0.0", declared=False)
    assert why is None
    assert warning.startswith("the address of the unit, which is not declared: 0.0.0.0 is reachable")


def test_clients_alone():
    found = exposure.settings(Listen("10.0.0.5", 80), ["10.0.1.0/28", "10.0.0.9", "2001:db8::1"])
    assert found == {
        "IPAddressDeny": ["any"],
        "IPAddressAllow": ["127.0.0.1 ::1 10.0.0.5 10.0.0.9/32 10.0.1.0/28 2001:db8::1/128"],
    }


@pytest.mark.parametrize("address", ["0.0.0.0", "", "::", "2001:db8::5", "gpu1.example"])
def test_clients_need_an_address_on_which_they_can_be_verified(address):
    with pytest.raises(Refused, match="clients: the service listens on .*; expected one IPv4 address"):
        exposure.settings(Listen(address, 80), ["10.0.0.9"])


@pytest.mark.parametrize("client", ["gw1", "10.0.0.9/8", "10.0.0.0/33", ""])
def test_what_is_no_client(client):
    with pytest.raises(Refused, match="clients: .*expected IP addresses or networks"):
        exposure.settings(Listen("10.0.0.5", 80), [client])


def test_a_service_that_others_reach_is_not_proven():
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = Listen("127.0.0.1", server.getsockname()[1])
        with pytest.raises(
            Fault, match="only 10.0.0.9 may connect to 127.0.0.1, but a connection from 127.0.0.2"
        ) as fault:
            exposure.closed(listen, ["10.0.0.9"])(None)
        assert fault.value.verdict.name == "exposed"
    exposure.closed(listen, ["10.0.0.9"])(None)
