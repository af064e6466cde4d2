# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDMA devices in made-up sysfs trees."""

from __future__ import annotations

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import rdma

UNUSED = "0000:0000:0000:0000:0000:0000:0000:0000"


def test_none(host):
    assert rdma.read(str(host.root)) == []
    (host.root / "sys/class/infiniband").mkdir(parents=True)
    assert rdma.read(str(host.root)) == []


def test_infiniband(host):
    hardware = host.pci("pci0000:17/0000:17:01.0/0000:1a:00.0", vendor="0x15b3", kind="0x020700", numa=1, cpus="32-63")
    host.rdma(
        "mlx5_0",
        hardware,
        netdevs=["ibs1"],
        node_type="1: CA",
        node_guid="0c42:a103:0065:1f2a",
        hca_type="MT4129",
        board_id="MT_0000000838",
        fw_ver="28.39.1002",
        ports__1__state="4: ACTIVE",
        ports__1__phys_state="5: LinkUp",
        ports__1__link_layer="InfiniBand",
        ports__1__rate="400 Gb/sec (4X NDR)",
        ports__1__lid="0x11",
        ports__1__gids__0="fe80:0000:0000:0000:0c42:a103:0065:1f2a",
    )
    assert rdma.read(str(host.root)) == [
        {
            "name": "mlx5_0",
            "node_type": "ca",
            "node_guid": "0c42:a103:0065:1f2a",
            "hca_type": "MT4129",
            "board_id": "MT_0000000838",
            "firmware_version": "28.39.1002",
            "pci_bus_id": "0000:1a:00.0",
            "netdevs": ["ibs1"],
            "numa_node": 1,
            "cpu_affinity": "32-63",
            "path": ["pci0000:17", "0000:17:01.0", "0000:1a:00.0"],
            "ports": [
                {
                    "port": 1,
                    "state": "ACTIVE",
                    "phys_state": "LinkUp",
                    "link_layer": "InfiniBand",
                    "rate_gbps": 400,
                    "lid": 17,
                    "netdev": None,
                    "roce_v2_gid_index": None,
                }
            ],
        }
    ]


def test_bond_of_two_ethernet_ports_beside_an_inactive_port(host):
    hardware = host.pci("pci0000:3a/0000:3a:00.0", vendor="0x15b3", kind="0x020000")
    host.rdma(
        "mlx5_bond_0",
        hardware,
        netdevs=["ens2f0np0", "ens2f1np1"],
        node_type="1: CA",
        ports__1__state="4: ACTIVE",
        ports__1__phys_state="5: LinkUp",
        ports__1__link_layer="Ethernet",
        ports__1__rate="200 Gb/sec (4X HDR)",
        ports__1__lid="0x0",
        ports__1__gids__0="fe80:0000:0000:0000:0e42:a1ff:fe65:1f2a",
        ports__1__gids__1="fe80:0000:0000:0000:0e42:a1ff:fe65:1f2a",
        ports__1__gids__2="0000:0000:0000:0000:0000:ffff:0a00:0001",
        ports__1__gids__3="0000:0000:0000:0000:0000:ffff:0a00:0001",
        ports__1__gids__4=UNUSED,
        ports__1__gid_attrs__types__0="IB/RoCE v1",
        ports__1__gid_attrs__types__1="RoCE v2",
        ports__1__gid_attrs__types__2="IB/RoCE v1",
        ports__1__gid_attrs__types__3="RoCE v2",
        ports__1__gid_attrs__ndevs__0="bond0",
        ports__2__state="1: DOWN",
        ports__2__phys_state="3: Disabled",
        ports__2__link_layer="Ethernet",
        ports__2__rate="2.5 Gb/sec (1X SDR)",
        ports__2__gids__0=UNUSED,
        ports__10__state="2: INIT",
    )
    (bond,) = rdma.read(str(host.root))
    assert bond["netdevs"] == ["bond0", "ens2f0np0", "ens2f1np1"]
    assert bond["numa_node"] is None
    assert [port["port"] for port in bond["ports"]] == [1, 2, 10]
    assert bond["ports"][0] == {
        "port": 1,
        "state": "ACTIVE",
        "phys_state": "LinkUp",
        "link_layer": "Ethernet",
        "rate_gbps": 200,
        "lid": None,
        "netdev": "bond0",
        "roce_v2_gid_index": 3,
    }
    assert bond["ports"][1]["state"] == "DOWN"
    assert bond["ports"][1]["phys_state"] == "Disabled"
    assert bond["ports"][1]["rate_gbps"] == 2.5
    assert bond["ports"][1]["roce_v2_gid_index"] is None
    assert bond["ports"][2] == {
        "port": 10,
        "state": "INIT",
        "phys_state": None,
        "link_layer": None,
        "rate_gbps": None,
        "lid": None,
        "netdev": None,
        "roce_v2_gid_index": None,
    }


def test_device_made_in_software_and_rubbish(host):
    host.rdma("rxe0", None, node_type="1: CA", ports__1__rate="fast", ports__1__state="")
    (device,) = rdma.read(str(host.root))
    assert device["pci_bus_id"] is None and device["path"] == [] and device["node_guid"] is None
    assert device["ports"][0]["rate_gbps"] is None and device["ports"][0]["state"] is None
