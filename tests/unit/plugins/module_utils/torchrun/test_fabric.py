# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interface, which RDMA ports, which variables."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import rdma
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import fabric

UP = ("4: ACTIVE", "5: LinkUp")
NDR = (*UP, "InfiniBand", "400 Gb/sec (4X NDR)")
ROCE = (*UP, "Ethernet", "200 Gb/sec (4X HDR)")
SLOW = (*UP, "Ethernet", "25 Gb/sec (1X EDR)")
DOWN = ("1: DOWN", "3: Disabled", "InfiniBand", "400 Gb/sec (4X NDR)")
POLLING = ("4: ACTIVE", "2: Polling", "InfiniBand", "400 Gb/sec (4X NDR)")


def names(ports):
    return ["%s:%d" % (port["device"], port["port"]) for port in ports]


# --- interfaces


def test_the_network_that_is_not_routed_between_hosts_is_left_alone(node, interface, reach):
    facts = {
        "a": node("a", interface("eth0", "10.1.0.1/24", speed=1000), interface("eth1", "10.9.0.1/24", speed=100000)),
        "b": node("b", interface("ens1f1np1", "10.1.0.2/24"), interface("ens2", "10.9.0.2/24", speed=100000)),
    }
    no = [(one, address, "data", "no answer within 2 s") for one, address in (("a", "10.9.0.2"), ("b", "10.9.0.1"))]
    chosen = fabric.choose(facts, reach(facts, no))
    assert [(one["interface"], one["address"]) for one in chosen.values()] == [
        ("eth0", "10.1.0.1"),
        ("ens1f1np1", "10.1.0.2"),
    ]
    # with both networks joined the faster one is taken
    chosen = fabric.choose(facts, reach(facts))
    assert [one["interface"] for one in chosen.values()] == ["eth1", "ens2"]
    # and a network by name is taken whatever its speed
    chosen = fabric.choose(facts, reach(facts), "10.1.0.0/24")
    assert [one["interface"] for one in chosen.values()] == ["eth0", "ens1f1np1"]


@pytest.mark.parametrize("bridge", ["docker0", "podman0", "br-1f0c"])
def test_a_bridge_that_every_host_has_with_one_address_is_no_network(node, interface, bridge):
    facts = {
        "a": node("a", interface(bridge, "10.88.0.1/16", speed=10000), interface("eth0", "10.1.0.1/24", speed=1000)),
        "b": node("b", interface(bridge, "10.88.0.1/16", speed=10000), interface("eth0", "10.1.0.2/24", speed=1000)),
    }
    assert [one["interface"] for one in fabric.choose(facts).values()] == ["eth0", "eth0"]
    facts = {host: node(host, interface(bridge, "10.88.0.1/16")) for host in "ab"}
    with pytest.raises(Refused, match=r"a is not reached by all: 10.88.0.1 \(%s\) is an address of b, too" % bridge):
        fabric.choose(facts)


def test_hosts_of_different_subnets_need_a_proof(node, interface, reach):
    facts = {"a": node("a", interface("eth0", "10.1.0.1/24")), "b": node("b", interface("eth7", "10.2.0.1/24"))}
    with pytest.raises(Refused, match="share no subnet.*a has eth0 10.1.0.1; b has eth7 10.2.0.1"):
        fabric.choose(facts)
    assert [one["address"] for one in fabric.choose(facts, reach(facts)).values()] == ["10.1.0.1", "10.2.0.1"]


def test_who_is_not_reached_is_told_with_what_was_tried(node, interface, reach):
    facts = {"a": node("a", interface("eth0", "10.1.0.1/24")), "b": node("b", interface("eth0", "10.1.0.2/24"))}
    with pytest.raises(Refused, match=r"^b is not reached by all: a does not reach 10.1.0.2 \(eth0\): refused$"):
        fabric.choose(facts, reach(facts, [("a", "10.1.0.2", "data", "refused")]))


@pytest.mark.parametrize("address", ["fe80::1/64", "169.254.7.1/16"])
def test_link_local_and_downed_interfaces_do_not_count(node, interface, address):
    facts = {"a": node("a", interface("eth0", address), interface("eth1", "10.1.0.1/24", up=False))}
    assert fabric.candidates(facts["a"]) == []
    with pytest.raises(Refused, match="a has no address on an interface that is up"):
        fabric.choose(facts)


# --- RDMA


def test_a_bond_beside_inactive_ports_and_a_slow_one(node, sysfs):
    sysfs.device("mlx5_bond_0", ROCE)
    sysfs.device("mlx5_1", DOWN, POLLING)
    sysfs.device("mlx5_2", SLOW)
    found = node("a", rdma=rdma.read(str(sysfs.root)))
    assert names(fabric.rdma_ports(found)) == ["mlx5_2:1", "mlx5_bond_0:1"]
    assert names(fabric.choose_rdma({"a": found})["a"]) == ["mlx5_bond_0:1"]


def test_infiniband_and_roce_are_not_mixed(node, sysfs, interface):
    for number in range(4):
        sysfs.device("mlx5_%d" % number, NDR)
    sysfs.device("mlx5_10", ROCE)
    found = node("a", interface("eth0", "10.1.0.1/24"), rdma=rdma.read(str(sysfs.root)))
    chosen = fabric.choose_rdma({"a": found, "b": found})["a"]
    assert names(chosen) == ["mlx5_0:1", "mlx5_1:1", "mlx5_2:1", "mlx5_3:1"]
    address = fabric.choose({"a": found})["a"]
    value, reason = fabric.environment(found, address, chosen, "2.29.7")["NCCL_IB_HCA"]
    assert value == "=mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1"  # exact: mlx5_1 alone would be mlx5_10, too
    assert reason == "InfiniBand of 400 Gb/s; left out: mlx5_10:1 (Ethernet, 200 Gb/s)"


def test_a_layer_that_one_host_lacks_is_of_no_use(node, sysfs):
    sysfs.device("mlx5_0", NDR)
    sysfs.device("mlx5_1", ROCE)
    both = rdma.read(str(sysfs.root))
    roce_only = [device for device in both if device["name"] == "mlx5_1"]
    chosen = fabric.choose_rdma({"a": node("a", rdma=both), "b": node("b", rdma=roce_only)})
    assert {host: names(ports) for host, ports in chosen.items()} == {"a": ["mlx5_1:1"], "b": ["mlx5_1:1"]}
    assert fabric.choose_rdma({"a": node("a", rdma=both), "b": node("b")}) == {"a": [], "b": []}


def test_near_gpus_are_told():
    assert fabric._near(["SYS", "PIX", "PXB", "NODE"]) == [1, 2]
    assert fabric._near(["SYS", "NODE"]) == [1]
    assert fabric._near([]) == []


# --- variables


def names_and_values(told):
    return {name: value for name, (value, _why) in told.items()}


def test_nothing_is_told_that_nccl_and_gloo_find_themselves(node, interface, sysfs):
    sysfs.device("mlx5_0", NDR)
    found = node("a", interface("eth0", "10.1.0.1/24"), rdma=rdma.read(str(sysfs.root)))
    chosen = fabric.choose_rdma({"a": found})["a"]
    told = fabric.environment(found, fabric.choose({"a": found})["a"], chosen, "2.29.7")
    assert names_and_values(told) == {"NCCL_SOCKET_IFNAME": "=eth0"}


def test_what_they_would_get_wrong_is_told(node, interface, sysfs):
    sysfs.device("mlx5_0", DOWN)
    cards = interface("eth0", "10.1.0.1/24"), interface("eth1", "10.9.0.1/24")
    found = node("a", *cards, names=["127.0.1.1"], rdma=rdma.read(str(sysfs.root)))
    told = fabric.environment(found, fabric.choose({"a": found}, network="10.1.0.0/24")["a"], [], None)
    assert names_and_values(told) == {
        "NCCL_SOCKET_IFNAME": "=eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_IB_DISABLE": "1",
    }
    assert told["GLOO_SOCKET_IFNAME"][1] == "Gloo looks up the host's own name: a resolves to 127.0.1.1 here"


@pytest.mark.parametrize(
    "name, addresses, up",
    [
        ("docker0", ["172.17.0.1/16", "fe80::42/64"], True),
        ("podman0", ["10.88.0.1/16"], False),  # an older NCCL uses an interface without a carrier, too
        ("veth1a2b3c", ["fe80::8c1f/64"], True),
        ("ib0", ["fe80::506b:4b03:b5:1/64"], True),  # NCCL looks for ib* first
    ],
)
def test_interfaces_of_containers_do_not_matter(node, interface, name, addresses, up):
    card = interface("eth0", "10.1.0.1/24", "fe80::1/64")
    alone, beside = node("a", card), node("a", card, interface(name, *addresses, up=up))
    told = fabric.environment(beside, fabric.choose({"a": beside}, network="10.1.0.0/24")["a"], [], None)
    assert told["NCCL_SOCKET_IFNAME"][0] == "=eth0"
    assert told == fabric.environment(alone, fabric.choose({"a": alone})["a"], [], None)  # reasons are part of a file


def test_without_an_rdma_device_there_is_none_to_disable(node, interface):
    found = node("a", interface("eth0", "10.1.0.1/24"))
    assert "NCCL_IB_DISABLE" not in fabric.environment(found, fabric.choose({"a": found})["a"], [], None)


def test_ipv6(node, interface):
    found = node("a", interface("eth0", "2001:db8::1/64"))
    told = fabric.environment(found, fabric.choose({"a": found})["a"], [], None)
    assert told["NCCL_SOCKET_FAMILY"][0] == "AF_INET6"


def test_the_gid_is_told_to_an_old_nccl_only(node, interface, sysfs):
    gids = [("IB/RoCE v1", "fe80:0000:0000:0000:0000:0000:0000:0001")]
    gids += [
        ("RoCE v2", "fe80:0000:0000:0000:0000:0000:0000:0001"),
        ("RoCE v2", "0000:0000:0000:0000:0000:ffff:0a01:0001"),
    ]
    sysfs.device("mlx5_0", (*ROCE, *gids))
    found = node("a", interface("eth0", "10.1.0.1/24"), rdma=rdma.read(str(sysfs.root)))
    chosen, address = fabric.choose_rdma({"a": found})["a"], fabric.choose({"a": found})["a"]
    assert fabric.environment(found, address, chosen, "2.20.5")["NCCL_IB_GID_INDEX"][0] == "2"
    assert "NCCL_IB_GID_INDEX" not in fabric.environment(found, address, chosen, "2.21.5")
