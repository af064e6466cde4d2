# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: ranks, rendezvous, findings."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import plan


@pytest.fixture
def three(node, interface):
    return {"gpu%d" % n: node("gpu%d" % n, interface("eth0", "10.1.0.%d/24" % n)) for n in (1, 2, 3)}


def codes(made, level=None):
    return [one["code"] for one in made["findings"] if level in (None, one["level"])]


def test_ranks_in_the_order_of_the_inventory(three, reach):
    made = plan.make(three, reach(three), nproc_per_node=2)
    assert [(one["rank"], one["host"], one["local_rank"]) for one in made["ranks"]] == [
        (0, "gpu1", 0), (1, "gpu1", 1), (2, "gpu2", 0), (3, "gpu2", 1), (4, "gpu3", 0), (5, "gpu3", 1),
    ]  # fmt: skip
    assert all(one["rank"] == one["node_rank"] * 2 + one["local_rank"] for one in made["ranks"])
    assert (made["rendezvous"], made["master_addr"], made["master_port"]) == ("static", "10.1.0.1", 29500)
    assert (made["nnodes"], made["world_size"], made["errors"]) == (3, 6, [])


def test_some_of_the_gpus(node, interface, reach):
    facts = {n: node(n, interface("eth0", "10.1.0.%d/24" % i), gpus=8) for i, n in enumerate("ab", 1)}
    made = plan.make(facts, reach(facts), gpus=[4, 6])
    assert (made["world_size"], made["findings"]) == (4, [])
    told = made["nodes"]["b"]["environment"]
    assert (told["CUDA_VISIBLE_DEVICES"], told["CUDA_DEVICE_ORDER"]) == ("4,6", "PCI_BUS_ID")
    assert told["NCCL_SOCKET_IFNAME"] == "=eth0"
    assert codes(plan.make(facts, reach(facts), gpus=[4, 6], nproc_per_node=1)) == ["idle_gpus", "idle_gpus"]
    assert "CUDA_VISIBLE_DEVICES" not in plan.make(facts, reach(facts))["nodes"]["b"]["environment"]


def test_a_job_that_uses_no_gpu(node):
    made = plan.make({"a": node("a", gpus=8)}, gpus=[], nproc_per_node=3)
    assert (made["world_size"], made["findings"], made["nodes"]["a"]["gpus"]) == (3, [], [])
    assert made["nodes"]["a"]["environment"]["CUDA_VISIBLE_DEVICES"] == ""


def test_whoever_computes_on_the_jobs_gpus_is_named(node):
    def holder(unit):
        return {"pid": 7, "name": "python3", "unit": unit, "used_bytes": 4 << 30}

    facts = {"a": node("a", gpus=2)}
    facts["a"]["gpus"]["devices"][1]["processes"] = [holder("torchrun@train.service"), holder("vllm@chat.service")]
    assert plan.make(facts, job="train", gpus=[0], nproc_per_node=1)["findings"] == []
    (found,) = plan.make(facts, job="train")["findings"]
    assert (found["level"], found["code"], found["host"]) == ("warning", "gpu_in_use", "a")
    assert found["text"].startswith(
        "PID 7 (python3, vllm@chat.service) holds 4.0 GiB on GPU 1, which the job uses, too"
    )


@pytest.mark.parametrize("wanted", [[8], [-1], [1, 1]])
def test_gpus_that_are_not_there(node, wanted):
    made = plan.make({"a": node("a", gpus=8)}, gpus=wanted)
    assert made["errors"] == ["gpus: %s: expected different indexes of the 8 GPUs of a, from 0 on" % wanted]


def test_a_conda_environment_is_known_to_its_programs(node):
    host = node("a")
    assert "CONDA_PREFIX" not in plan.make({"a": host})["nodes"]["a"]["environment"]
    host["torch"]["conda"] = True
    assert plan.make({"a": host})["nodes"]["a"]["environment"]["CONDA_PREFIX"] == "/opt/torch"


def test_the_libraries_of_cuda_compat(node):
    host = node("a")
    assert "LD_LIBRARY_PATH" not in plan.make({"a": host})["nodes"]["a"]["environment"]
    host["torch"]["compat"] = "/opt/torch/cuda-compat"
    assert plan.make({"a": host})["nodes"]["a"]["environment"]["LD_LIBRARY_PATH"] == "/opt/torch/cuda-compat"


def test_another_master_is_first(three, reach):
    made = plan.make(three, reach(three), master="gpu3")
    assert [one["host"] for one in made["ranks"]] == ["gpu3", "gpu1", "gpu2"]
    assert made["master_addr"] == "10.1.0.3"


def test_one_process_for_each_gpu_also_where_hosts_differ(node, interface):
    facts = {
        "a": node("a", interface("eth0", "10.1.0.1/24"), gpus=4),
        "b": node("b", interface("eth0", "10.1.0.2/24"), gpus=2),
    }
    made = plan.make(facts)
    assert [(host, one["first_rank"], one["nproc_per_node"]) for host, one in made["nodes"].items()] == [
        ("a", 0, 4),
        ("b", 4, 2),
    ]


def test_one_host_needs_no_network(node):
    made = plan.make({"a": node("a", gpus=4)})
    assert (made["rendezvous"], made["world_size"], made["nodes"]["a"]["environment"]) == ("standalone", 4, {})
    assert made["findings"] == []


@pytest.mark.parametrize(
    "options, kind",
    [({}, "static"), ({"min_nodes": 2}, "c10d"), ({"max_restarts": 1}, "c10d"), ({"rendezvous": "c10d"}, "c10d")],
)
def test_the_rendezvous_that_can_do_what_is_asked_for(three, reach, options, kind):
    assert plan.make(three, reach(three), **options)["rendezvous"] == kind


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rendezvous": "static", "min_nodes": 2}, "static needs all 3 hosts, but min_nodes is 2: use c10d"),
        ({"rendezvous": "static", "max_restarts": 1}, "max_restarts is 1: use c10d"),
        ({"rendezvous": "standalone"}, "standalone is for one host, but there are 3"),
        ({"rendezvous": "etcd"}, "expected one of static, c10d, standalone"),
        ({"min_nodes": 4}, "min_nodes: 4 of 3 hosts: expected 1 to 3"),
        ({"master": "gpu9"}, "gpu9 is none of the hosts gpu1, gpu2, gpu3"),
    ],
)
def test_what_cannot_be(three, reach, options, message):
    with pytest.raises(Refused, match=message):
        plan.make(three, reach(three), **options)


def test_no_hosts():
    with pytest.raises(Refused, match="there is no host to plan for"):
        plan.make({})


def test_c10d_orders_hosts_by_the_text_of_their_addresses(node, interface, reach):
    facts = {"a": node("a", interface("eth0", "10.1.0.9/24")), "b": node("b", interface("eth0", "10.1.0.10/24"))}
    made = plan.make(facts, reach(facts), rendezvous="c10d")
    assert {host: one["node_rank"] for host, one in made["nodes"].items()} == {"a": 1, "b": 0}
    assert made["master_addr"] == "10.1.0.9"  # the rendezvous stays where it was asked for


# --- findings


def test_a_host_without_facts(three, reach):
    made = plan.make({**three, "gpu2": None}, reach(three))
    assert codes(made, "error") == ["no_facts"]
    assert made["errors"][0].startswith("gpu2 has no facts from this run: it was not reached")
    # an elastic job does without it, unless it is the master
    assert plan.make({**three, "gpu2": None}, reach(three), min_nodes=2)["errors"] == []
    assert codes(plan.make({**three, "gpu1": None}, reach(three), min_nodes=2), "error") == ["no_facts"]


def test_group_size(three, reach):
    made = plan.make(three, reach(three), nnodes=4)
    assert made["errors"] == ["the group has 3 hosts (gpu1, gpu2, gpu3), nnodes is 4: correct one of the two"]


def test_a_name_that_leads_to_loopback(node, interface, reach):
    facts = {"a": node("a", interface("eth0", "10.1.0.1/24"), names=["127.0.1.1"])}
    facts["b"] = node("b", interface("eth0", "10.1.0.2/24"))
    made = plan.make(facts, reach(facts))
    assert codes(made) == ["loopback_name"] and made["errors"] == []
    assert made["nodes"]["a"]["environment"]["GLOO_SOCKET_IFNAME"] == "eth0"


def test_a_master_address_where_each_finds_only_itself(three, reach):
    for address in ("127.0.0.1", "localhost"):
        assert codes(plan.make(three, reach(three), master_addr=address), "error") == ["loopback_master"]
    assert plan.make(three, reach(three), master_addr="head.example")["errors"] == []


def test_versions_that_differ(node, interface, reach):
    facts = {
        "a": node("a", interface("eth0", "10.1.0.1/24")),
        "b": node("b", interface("eth0", "10.1.0.2/24"), torch="2.12.0", nccl="2.28.9"),
        "c": node("c", interface("eth0", "10.1.0.3/24"), torch=None),
    }
    made = plan.make(facts, reach(facts))
    assert codes(made, "error") == ["no_torch", "torch_differs", "nccl_differs"]
    assert "2.12.0 on b; 2.13.0 on a" in made["errors"][1]


def test_processes_and_gpus(node):
    # no error: Gloo runs on the CPU
    assert codes(plan.make({"a": node("a", gpus=4)}, nproc_per_node=5), "warning") == ["too_many_processes"]
    assert plan.make({"a": node("a", gpus=4)}, nproc_per_node=5)["errors"] == []
    assert codes(plan.make({"a": node("a", gpus=4)}, nproc_per_node=2)) == ["idle_gpus"]
    assert codes(plan.make({"a": node("a", gpus=0)}, nproc_per_node=2)) == []


def test_a_port_that_is_taken(three, reach, node, interface):
    for holder, found in (
        ("nginx, process 7 of nginx.service", ["port_taken"]),
        ("python, torchrun@train.service", []),
    ):
        three["gpu1"] = node("gpu1", interface("eth0", "10.1.0.1/24"), busy={"29500": holder})
        assert codes(plan.make(three, reach(three), job="train"), "error") == found
    # on another host than the master nobody minds
    three["gpu2"]["listener"]["busy"] = {"29500": "nginx"}
    assert codes(plan.make(three, reach(three), job="train"), "error") == []


def test_a_firewall_before_the_rendezvous(three, reach):
    tried = reach(three, [("gpu3", "10.1.0.1", "rendezvous", "no answer within 2 s")])
    made = plan.make(three, tried)
    assert made["errors"] == [
        "gpu3 does not reach the rendezvous 10.1.0.1:29500 on gpu1: no answer within 2 s; other ports there answer: a"
        " firewall between them, or on gpu1, stops this one"
    ]
    assert made["matrix"] == [
        "port 29500  gpu1  gpu2  gpu3",
        "gpu1        -     ok    ok",
        "gpu2        ok    -     ok",
        "gpu3        no    ok    -",
        "data port  gpu1  gpu2  gpu3",
        "gpu1       -     ok    ok",
        "gpu2       ok    -     ok",
        "gpu3       ok    ok    -",
    ]


def test_a_host_that_nobody_reaches(three, reach):
    no = [(one, "10.1.0.3", kind, "no route to host") for one in ("gpu1", "gpu2") for kind in ("data", "rendezvous")]
    made = plan.make(three, reach(three, no))
    assert codes(made, "error") == ["no_network"]
    assert "gpu1 does not reach 10.1.0.3 (eth0): no route to host" in made["errors"][0]
    assert made["matrix"][1:3] == ["gpu1        -     ok    no", "gpu2        ok    -     no"]


def test_an_elastic_job_does_without_a_host_that_is_not_reached(three, reach):
    no = [(one, "10.1.0.3", kind, "no route to host") for one in ("gpu1", "gpu2") for kind in ("data", "rendezvous")]
    made = plan.make(three, reach(three, no), min_nodes=2)
    assert (made["errors"], codes(made), list(made["nodes"])) == ([], ["no_network"], ["gpu1", "gpu2"])
    assert "gpu1 and gpu3 cannot reach each other; the job runs without" in made["findings"][0]["text"]
    assert codes(plan.make(three, reach(three, no), min_nodes=3), "error") == ["no_network"]


@pytest.mark.parametrize(
    "offset, kind, level",
    [(0.4, "c10d", None), (3, "c10d", "warning"), (-30, "c10d", "error"), (30, "static", "warning")],
)
def test_clocks(three, reach, offset, kind, level):
    made = plan.make(three, reach(three, offset=offset), rendezvous=kind)
    assert codes(made, level) == ([] if level is None else ["clock_skew"])
    assert level is None or ("ahead of" if offset > 0 else "behind") in made["findings"][0]["text"]


@pytest.mark.parametrize(("kind", "own"), [("c10d", "1"), ("static", None)])
def test_every_round_of_c10d_has_a_store_of_its_own(three, reach, kind, own):
    nodes = plan.make(three, reach(three), rendezvous=kind)["nodes"].values()
    assert [node["environment"].get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") for node in nodes] == [own] * 3


def test_frames_of_different_size(node, interface, reach):
    facts = {
        "a": node("a", interface("eth0", "10.1.0.1/24", mtu=9000)),
        "b": node("b", interface("eth0", "10.1.0.2/24")),
    }
    made = plan.make(facts, reach(facts))
    assert codes(made) == ["mtu_differs"] and "1500 on b; 9000 on a" in made["findings"][0]["text"]


def test_that_nobody_has_tried_is_told(three):
    assert codes(plan.make(three)) == ["not_tried"]


def test_the_page(three, reach):
    assert plan.make(three, reach(three), nproc_per_node=2, min_nodes=2)["text"] == (
        "2 to 3 hosts, 6 processes, rendezvous c10d at 10.1.0.1:29500\n"
        "HOST  NODE  RANKS  ADDRESS   INTERFACE  RDMA\n"
        "gpu1  0     0-1    10.1.0.1  eth0       -\n"
        "gpu2  1     2-3    10.1.0.2  eth0       -\n"
        "gpu3  2     4-5    10.1.0.3  eth0       -\n"
        + "".join(
            "gpu%d: NCCL_SOCKET_IFNAME==eth0  # eth0 (10.1.0.%d) is where the other hosts reach this one; NCCL would use "
            "each interface, a container's too\n"
            "gpu%d: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # after a failure hosts would read addresses of the previous "
            "round\n" % (n, n, n)
            for n in (1, 2, 3)
        )
    )


def told(script, **files):
    return {"path": "/srv/train.py", "digest": script, "folder": "/srv", "files": files}


@pytest.mark.parametrize(
    "third, level, text",
    [
        (told("aaa", model="m1"), None, None),
        (told(None, model="m1"), None, None),
        (None, None, None),
        (
            told("bbb", model="m2"),
            "error",
            "the script /srv/train.py differs among the hosts: SHA-256 aaa on gpu1, gpu2; bbb on gpu3; bring the same one to"
            " all of them",
        ),
        (
            told("aaa", model="m2", other="o"),
            "warning",
            "model in /srv differs among the hosts: SHA-256 m1 on gpu1, gpu2; m2 on gpu3, and so do 1 more files; bring the"
            " same folder to all of them",
        ),
        (
            told("aaa"),
            "warning",
            "model in /srv differs among the hosts: SHA-256 m1 on gpu1, gpu2; none on gpu3; bring the same folder to all of"
            " them",
        ),
    ],
)
def test_a_host_with_another_script_or_folder_is_named(three, reach, third, level, text):
    for host, code in zip(three, (told("aaa", model="m1"), told("aaa", model="m1"), third)):
        three[host]["code"] = code
    found = [one for one in plan.make(three, reach(three))["findings"] if "SHA-256" in one["text"]]
    assert [(one["level"], one["host"], one["text"]) for one in found] == ([(level, "gpu3", text)] if level else [])
