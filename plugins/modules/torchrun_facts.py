#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan for a job over several hosts needs to know of each of them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: torchrun_facts
short_description: Gather what a distributed PyTorch job needs to know about its hosts, and test which reach each other
version_added: 0.1.0
description:
  - Without O(peers), gathers network interfaces, names, PyTorch, GPUs and RDMA devices of the host into
    C(ansible_facts.torchrun), and leaves a listener behind for O(listen) seconds that its peers may try.
  - With O(peers), tries every address of every peer and puts the results into C(ansible_facts.torchrun_reach). Run
    it so in a second task, when all hosts listen.
  - The lookup P(gpufleet.inference.torchrun_plan#lookup) makes the plan of a job from both.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.attributes.facts
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.torchrun]
notes:
  - Run it as root (C(become)).
  - The listener is a transient unit, C(gpufleet-torchrun-listen.service), on O(master_port) and a free port. It answers
    with a token and the time, and nothing else. It reads nothing, waits for nobody, and has no capabilities. It is gone
    after O(listen) seconds, or when a job starts on the host.
requirements:
  - systemd and iproute2
options:
  venv:
    description: Folder of the Python environment whose PyTorch version is reported. By default PyTorch is not reported.
    type: path
  script:
    description:
      - Script of the job. Its digest is reported, and the digests of the Python files below O(working_directory), 500
        at most, so that the plan sees which host has others.
    type: str
  working_directory:
    description: Where the job runs. The folder of O(script) by default.
    type: path
  user:
    description: The user that the job runs as. The files are read with the rights of this user.
    type: str
    default: root
  master_port:
    description: The port of the rendezvous, listened on and tried in addition to a free one.
    type: int
    default: 29500
  listen:
    description: Seconds for which the listener stays. V(0) leaves none behind.
    type: int
    default: 120
  peers:
    description:
      - Names of the hosts to try. Each must have run this module without O(peers) in this play.
      - Those without such facts, and the host itself, are left out.
    type: list
    elements: raw
  timeout:
    description: Seconds for each attempt to reach a peer.
    type: float
    default: 2.0
  facts_timeout:
    description: Seconds within which the GPUs must answer. A driver that hangs counts as no GPU.
    type: float
    default: 10.0
seealso:
  - module: gpufleet.inference.torchrun_job
  - module: gpufleet.inference.gpu_facts
  - plugin: gpufleet.inference.torchrun_plan
    plugin_type: lookup
"""

EXAMPLES = r"""
---
- name: Gather
  gpufleet.inference.torchrun_facts:
    venv: /opt/torch
  become: true

- name: Try who reaches whom
  gpufleet.inference.torchrun_facts:
    peers: "{{ groups['torchrun'] }}"
  become: true

- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.inference.torchrun_plan', groups['torchrun']).text.splitlines() }}"
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    torchrun:
      description: Of the host itself. Gathered from C(ip address), sysfs, the resolver, NVML and the files of O(venv).
      returned: without O(peers)
      type: dict
      sample:
        hostname: gpu-a
        interfaces:
          - {name: eth0, up: true, loopback: false, mtu: 1500, speed_mbps: 25000,
             addresses: [{address: 192.0.2.10, prefix: 24}]}
        own_names: {gpu-a: [127.0.1.1]}
        venv: /opt/torch
        torch: {version: 2.13.0+cu130, cuda: "13.0", nccl: 2.29.7, conda: false, compat: ""}
        torch_missing: null
        code: {path: /srv/train/train.py, digest: 9c56cc51b374, folder: /srv/train, files: {train.py: 9c56cc51b374}}
        gpus: {count: 1, fault: null, nvlink: false, devices: [{index: 0, uuid: GPU-6e9bd5b2, processes: []}]}
        rdma: []
        listener: {token: 9b0f, port: 41234, busy: {}}
    torchrun_reach:
      description:
        - Per peer and address whether a free port (C(data)) and the port of the rendezvous answered, with the reason
          when not, and how many seconds the peer's clock is ahead.
      returned: with O(peers)
      type: dict
      sample:
        gpu-b: {192.0.2.11: {data: {ok: true, why: ""}, rendezvous: {ok: false, why: no answer within 2 s},
                             clock_offset_s: 0.004}}
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        venv=dict(type="path"),
        script=dict(type="str"),
        working_directory=dict(type="path"),
        user=dict(type="str", default="root"),
        master_port=dict(type="int", default=29500),
        listen=dict(type="int", default=120),
        peers=dict(type="list", elements="raw"),
        timeout=dict(type="float", default=2.0),
        facts_timeout=dict(type="float", default=10.0),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import network

    run(argument_spec(), network.report)


if __name__ == "__main__":
    main()
