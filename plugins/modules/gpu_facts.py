#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of GPUs: NVML, sysfs and procfs as ansible_facts.gpu."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_facts
short_description: Gather facts about NVIDIA GPUs and RDMA devices
version_added: 0.1.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Reports which GPUs a host has, whether each is fit for work, how they are linked, which processes and which systemd
    units hold their memory, and which RDMA devices are near them.
  - Reads NVML through C(pynvml) when that can be imported, else runs C(nvidia-smi), else reads procfs and sysfs alone.
    RV(ansible_facts.gpu.source) reports which it was.
  - Every value that this GPU, driver or source does not give is null, and its reason stands in
    RV(ansible_facts.gpu.devices[].unavailable).
  - A problem with the driver or a GPU is a fact, not a failure, unless O(required=true). It is named in
    RV(ansible_facts.gpu.fault) and shown as a warning. A driver that hangs costs O(timeout) seconds.
  - A host without GPUs has RV(ansible_facts.gpu.count) V(0).
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.attributes.facts
options:
  timeout:
    description:
      - Maximum seconds for reading everything.
      - A child process does the reading. It is killed when the time is over; what it has read by then is used.
    type: float
    default: 10
  required:
    description:
      - Fail when the host has no GPU, or when RV(ansible_facts.gpu.fault) is not null.
    type: bool
    default: false
  expected_count:
    description:
      - How many GPUs the host has by the inventory. If fewer are found, RV(ansible_facts.gpu.findings) has the check
        V(gpu_missing), and there is a warning. Such a GPU is not even on the PCI bus, so nothing else names it.
      - V(0) expects any number.
    type: int
    default: 0
  venv:
    description:
      - A virtual environment in which C(pynvml) is installed, by the package C(nvidia-ml-py).
      - It is searched before the Python that runs this module. Without C(pynvml) in either, C(nvidia-smi) is run.
      - Only root, and the user that the module runs as, may be able to change it, as its code runs with their rights.
        Folders on the C(PATH) that others can change are not searched for C(nvidia-smi).
      - Left out, C(/opt/gpufleet/venv) is searched when it is there, where the role C(gpu_host) installs C(pynvml).
    type: path
seealso:
  - module: gpufleet.inference.ollama_service
  - module: gpufleet.inference.systemd_override
"""

EXAMPLES = r"""
---
- name: Gather facts of the GPUs
  gpufleet.inference.gpu_facts:

- name: Show the GPUs that are not fit for work, and why
  ansible.builtin.debug:
    msg: "GPU {{ item.index }}: {{ item.health.reasons | join('; ') }}"
  loop: "{{ ansible_facts.gpu.devices | rejectattr('health.ok') }}"
  loop_control:
    label: "{{ item.uuid }}"

- name: Gather facts with the binding of a virtual environment, and stop on a host without GPUs or with a fault
  gpufleet.inference.gpu_facts:
    venv: /opt/gpufleet/venv
    required: true

- name: Show which systemd units hold memory of the GPUs
  ansible.builtin.debug:
    msg: "{{ ansible_facts.gpu.devices | map(attribute='processes') | flatten | map(attribute='unit') | unique }}"
"""

RETURN = r"""
ansible_facts:
  description: Facts that are put into the host's C(ansible_facts).
  returned: success
  type: dict
  contains:
    gpu:
      description: The GPUs and what belongs to them.
      returned: success
      type: dict
      contains:
        source:
          description: Where the facts come from, V(nvml), V(nvidia-smi) or V(procfs).
          returned: success
          type: str
          sample: nvml
        count:
          description: How many GPUs the host has.
          returned: success
          type: int
          sample: 4
        fault:
          description: What is wrong with the host's GPUs as a whole, null when nothing is.
          returned: success
          type: dict
          contains:
            code:
              description:
                - V(driver_mismatch), V(driver_not_loaded), V(library_missing), V(driver_hang), V(gpu_lost) or
                  V(nvml_error).
              returned: success
              type: str
              sample: driver_mismatch
            text:
              description: What was found.
              returned: success
              type: str
              sample: 'the loaded kernel module is version 580.126.20, NVML''s library version 580.159.04'
            remedy:
              description: What to do.
              returned: success
              type: str
              sample: reboot
        driver:
          description: The driver.
          returned: success
          type: dict
          contains:
            version:
              description: Version of the driver.
              returned: success
              type: str
              sample: '580.159.04'
            library_version:
              description: Version of NVML's library on disk.
              returned: success
              type: str
              sample: '580.159.04'
            nvml_version:
              description: Version of NVML.
              returned: success
              type: str
              sample: '13.580.159.04'
            cuda_version:
              description: Highest CUDA version that the driver serves.
              returned: success
              type: str
              sample: '13.0'
            branch:
              description: Branch of the driver.
              returned: success
              type: str
              sample: r582_49
            loaded:
              description: Whether the kernel module is loaded.
              returned: success
              type: bool
              sample: true
            open_kernel_module:
              description: Whether it is the open one.
              returned: success
              type: bool
              sample: true
            confidential_compute:
              description: Whether confidential computing is on.
              returned: success
              type: bool
              sample: false
        devices:
          description: The GPUs in the order of their numbers.
          returned: success
          type: list
          elements: dict
          contains:
            index:
              description: Its number, as NVML counts. It may differ after a reboot; the UUID stays.
              returned: success
              type: int
              sample: 0
            uuid:
              description: Its UUID, which no other GPU has.
              returned: success
              type: str
              sample: GPU-00000001-0000-4000-8000-000000000001
            name:
              description: Product name.
              returned: success
              type: str
              sample: NVIDIA H200
            pci_bus_id:
              description: PCI bus id as sysfs writes it.
              returned: success
              type: str
              sample: '0000:00:06.0'
            pci_device_id:
              description: PCI vendor and device.
              returned: success
              type: str
              sample: '10de:2335'
            minor:
              description: Number of its device node.
              returned: success
              type: int
              sample: 0
            device_node:
              description: Its device node.
              returned: success
              type: str
              sample: /dev/nvidia0
            serial:
              description: Serial number of the board.
              returned: success
              type: str
              sample: '1650000000001'
            board_part_number:
              description: Part number of the board.
              returned: success
              type: str
              sample: '692-2G520-0282-001'
            vbios_version:
              description: Version of the video BIOS.
              returned: success
              type: str
              sample: '96.00.CF.00.0C'
            gsp_firmware_version:
              description: Version of the firmware of its system processor.
              returned: success
              type: str
              sample: '580.159.04'
            brand:
              description: Product line.
              returned: success
              type: str
              sample: NVIDIA
            architecture:
              description: Architecture.
              returned: success
              type: str
              sample: Hopper
            compute_capability:
              description: CUDA compute capability.
              returned: success
              type: str
              sample: '9.0'
            module_id:
              description: Number of its slot on a baseboard.
              returned: success
              type: int
              sample: 2
            virtualization_mode:
              description: V(none), V(pass-through), V(vgpu), V(host_vgpu) or V(host_vsga).
              returned: success
              type: str
              sample: pass-through
            memory:
              description:
                - Its memory. Total is the sum of used, free and reserved, where the driver reports what it reserves;
                  where it does not, that is part of used.
              returned: success
              type: dict
              contains:
                total_bytes:
                  description: Size in bytes.
                  returned: success
                  type: int
                  sample: 150754820096
                used_bytes:
                  description: Bytes in use.
                  returned: success
                  type: int
                  sample: 0
                free_bytes:
                  description: Bytes free.
                  returned: success
                  type: int
                  sample: 150109880320
                reserved_bytes:
                  description: Bytes that the driver keeps for itself.
                  returned: success
                  type: int
                  sample: 644939776
            bar1:
              description: The window through which the CPU reaches its memory.
              returned: success
              type: dict
              contains:
                total_bytes:
                  description: Size in bytes.
                  returned: success
                  type: int
                  sample: 274877906944
                used_bytes:
                  description: Bytes in use.
                  returned: success
                  type: int
                  sample: 1703936
                free_bytes:
                  description: Bytes free.
                  returned: success
                  type: int
                  sample: 274876203008
            ecc:
              description: Error correction of its memory.
              returned: success
              type: dict
              contains:
                enabled:
                  description: Whether it is on.
                  returned: success
                  type: bool
                  sample: true
                sram_threshold_exceeded:
                  description: Whether the memory on the chip had more uncorrectable errors than allowed.
                  returned: success
                  type: bool
                  sample: false
                pending:
                  description: Whether it is on after the next reset.
                  returned: success
                  type: bool
                  sample: true
                volatile:
                  description: Errors since the driver was loaded.
                  returned: success
                  type: dict
                  contains:
                    corrected:
                      description: Corrected errors.
                      returned: success
                      type: int
                      sample: 0
                    uncorrected:
                      description: Errors that could not be corrected.
                      returned: success
                      type: int
                      sample: 0
                aggregate:
                  description: Errors in the life of the board.
                  returned: success
                  type: dict
                  contains:
                    corrected:
                      description: Corrected errors.
                      returned: success
                      type: int
                      sample: 0
                    uncorrected:
                      description: Errors that could not be corrected.
                      returned: success
                      type: int
                      sample: 0
            remapped_rows:
              description: Rows of memory replaced by spare ones, on Ampere and later.
              returned: success
              type: dict
              contains:
                corrected:
                  description: Because of corrected errors.
                  returned: success
                  type: int
                  sample: 0
                uncorrected:
                  description: Because of errors that could not be corrected.
                  returned: success
                  type: int
                  sample: 0
                pending:
                  description: Whether a reset is needed for it.
                  returned: success
                  type: bool
                  sample: false
                failure:
                  description: Whether a row could not be replaced.
                  returned: success
                  type: bool
                  sample: false
                spare_banks:
                  description: Banks of memory by how many of their spare rows are left.
                  returned: success
                  type: dict
                  contains:
                    full:
                      description: All.
                      returned: success
                      type: int
                      sample: 3072
                    high:
                      description: Most.
                      returned: success
                      type: int
                      sample: 0
                    partial:
                      description: Some.
                      returned: success
                      type: int
                      sample: 0
                    low:
                      description: Few.
                      returned: success
                      type: int
                      sample: 0
                    none:
                      description: None.
                      returned: success
                      type: int
                      sample: 0
            retired_pages:
              description: Pages of memory taken out of use, before Ampere.
              returned: success
              type: dict
              contains:
                single_bit:
                  description: Because of repeated corrected errors.
                  returned: success
                  type: int
                  sample: 0
                double_bit:
                  description: Because of errors that could not be corrected.
                  returned: success
                  type: int
                  sample: 0
                pending:
                  description: Whether a reset is needed for it.
                  returned: success
                  type: bool
                  sample: false
            repair:
              description: Repairs of the chip that a reset would carry out.
              returned: success
              type: dict
              contains:
                channel_pending:
                  description: Of a memory channel.
                  returned: success
                  type: bool
                  sample: false
                tpc_pending:
                  description: Of a processing cluster.
                  returned: success
                  type: bool
                  sample: false
            unrepairable_memory:
              description: Whether errors of its memory cannot be repaired any more.
              returned: success
              type: bool
              sample: false
            inforom_corrupt:
              description:
                - Whether its infoROM, which holds its record of bad memory, is corrupt.
                - Only M(gpufleet.inference.doctor) reads it, as it takes long.
              returned: success
              type: bool
              sample: false
            recovery_action:
              description: What the driver asks for, V(none), V(reset), V(reboot), V(drain_p2p) or V(drain_and_reset).
              returned: success
              type: str
              sample: 'none'
            mig:
              description: Whether it is cut into instances.
              returned: success
              type: dict
              contains:
                enabled:
                  description: Whether it is.
                  returned: success
                  type: bool
                  sample: false
                pending:
                  description: Whether it is after the next reset.
                  returned: success
                  type: bool
                  sample: false
                max_instances:
                  description: How many instances it can have.
                  returned: success
                  type: int
                  sample: 0
            power:
              description: Electric power.
              returned: success
              type: dict
              contains:
                usage_watts:
                  description: Draw in watts.
                  returned: success
                  type: float
                  sample: 78.866
                limit_watts:
                  description: Limit set by the operator in watts.
                  returned: success
                  type: float
                  sample: 700.0
                enforced_limit_watts:
                  description: Limit in force in watts.
                  returned: success
                  type: float
                  sample: 700.0
                default_limit_watts:
                  description: Limit as delivered in watts.
                  returned: success
                  type: float
                  sample: 700.0
                min_limit_watts:
                  description: Lowest limit that can be set in watts.
                  returned: success
                  type: float
                  sample: 200.0
                max_limit_watts:
                  description: Highest limit that can be set in watts.
                  returned: success
                  type: float
                  sample: 700.0
                energy_joules:
                  description: Energy used since the driver was loaded in joules.
                  returned: success
                  type: float
                  sample: 43993.5
            clocks:
              description: Clocks.
              returned: success
              type: dict
              contains:
                graphics_mhz:
                  description: Graphics clock in MHz.
                  returned: success
                  type: int
                  sample: 345
                sm_mhz:
                  description: Clock of the processors in MHz.
                  returned: success
                  type: int
                  sample: 345
                memory_mhz:
                  description: Memory clock in MHz.
                  returned: success
                  type: int
                  sample: 3201
                video_mhz:
                  description: Video clock in MHz.
                  returned: success
                  type: int
                  sample: 765
                max_graphics_mhz:
                  description: Highest graphics clock in MHz.
                  returned: success
                  type: int
                  sample: 1980
                max_sm_mhz:
                  description: Highest clock of the processors in MHz.
                  returned: success
                  type: int
                  sample: 1980
                max_memory_mhz:
                  description: Highest memory clock in MHz.
                  returned: success
                  type: int
                  sample: 3201
                max_video_mhz:
                  description: Highest video clock in MHz.
                  returned: success
                  type: int
                  sample: 1545
            clocks_event_reasons:
              description: What holds the clocks where they are.
              returned: success
              type: list
              elements: str
              sample: [gpu_idle]
            utilization:
              description: Share of the last sample period.
              returned: success
              type: dict
              contains:
                gpu_percent:
                  description: In which a kernel ran, in percent.
                  returned: success
                  type: int
                  sample: 0
                memory_percent:
                  description: In which memory was read or written, in percent.
                  returned: success
                  type: int
                  sample: 0
            temperature:
              description: Temperatures.
              returned: success
              type: dict
              contains:
                gpu_celsius:
                  description: Of the chip in degrees Celsius.
                  returned: success
                  type: int
                  sample: 35
                memory_celsius:
                  description: Of the memory in degrees Celsius.
                  returned: success
                  type: int
                  sample: 36
                margin_celsius:
                  description: How far the chip is from slowing down, in degrees Celsius.
                  returned: success
                  type: int
                  sample: 52
                shutdown_celsius:
                  description: At which it shuts down, in degrees Celsius.
                  returned: success
                  type: int
                  sample: 95
                slowdown_celsius:
                  description: At which it slows down, in degrees Celsius.
                  returned: success
                  type: int
                  sample: 89
                memory_max_celsius:
                  description: Highest for the memory in degrees Celsius.
                  returned: success
                  type: int
                  sample: 95
                gpu_max_celsius:
                  description: Highest for the chip in degrees Celsius.
                  returned: success
                  type: int
                  sample: 87
            fan_speed_percent:
              description: Speed of its fan in percent of the highest.
              returned: success
              type: int
              sample: 30
            persistence_mode:
              description: Whether the driver keeps it ready while nobody uses it.
              returned: success
              type: bool
              sample: true
            compute_mode:
              description: V(default), V(exclusive_process), V(exclusive_thread) or V(prohibited).
              returned: success
              type: str
              sample: default
            performance_state:
              description: V(P0), the highest, to V(P15).
              returned: success
              type: str
              sample: P0
            display_active:
              description: Whether it drives a display.
              returned: success
              type: bool
              sample: false
            pcie:
              description: Its PCI Express link. Idle cards lower the generation.
              returned: success
              type: dict
              contains:
                generation:
                  description: Generation in use.
                  returned: success
                  type: int
                  sample: 5
                width:
                  description: Lanes in use.
                  returned: success
                  type: int
                  sample: 16
                max_generation:
                  description: Highest generation of card and slot.
                  returned: success
                  type: int
                  sample: 5
                max_width:
                  description: Most lanes of card and slot.
                  returned: success
                  type: int
                  sample: 16
                replay_count:
                  description: Packets sent again.
                  returned: success
                  type: int
                  sample: 0
                uncorrectable_errors:
                  description: Uncorrectable errors since boot (AER), as the kernel counts them.
                  returned: success
                  type: int
                  sample: 0
                acs_redirects:
                  description:
                    - The PCI bridges above it that send what goes to other devices through the CPU (ACS).
                    - Only M(gpufleet.inference.doctor) reads it, as it takes long.
                  returned: success
                  type: list
                  elements: str
                  sample: []
            nvlink:
              description: Its NVLinks.
              returned: success
              type: dict
              contains:
                link_count:
                  description: How many it has.
                  returned: success
                  type: int
                  sample: 18
                active_count:
                  description: How many are up.
                  returned: success
                  type: int
                  sample: 18
                recovery_errors:
                  description: How often links had to recover from errors.
                  returned: success
                  type: int
                  sample: 0
            slowdown:
              description:
                - For how long the hardware has held the clocks down since the driver was loaded.
                - Only M(gpufleet.inference.doctor) reads it, as it takes long.
              returned: success
              type: dict
              contains:
                thermal_seconds:
                  description: Because of heat.
                  returned: success
                  type: float
                  sample: 0.0
                power_brake_seconds:
                  description: Because of the power supply.
                  returned: success
                  type: float
                  sample: 0.0
            fabric:
              description: The NVLink fabric it belongs to.
              returned: success
              type: dict
              contains:
                state:
                  description: V(not_started), V(in_progress) or V(completed).
                  returned: success
                  type: str
                  sample: completed
                status:
                  description: V(success), or what went wrong.
                  returned: success
                  type: str
                  sample: success
                clique_id:
                  description: Number of its clique.
                  returned: success
                  type: int
                  sample: 0
                problems:
                  description:
                    - What its health mask reports, such as V(degraded_bandwidth), V(route_recovery),
                      V(route_unhealthy), V(access_timeout_recovery), V(too_few_nvlinks) or V(manager_disconnected).
                      Empty if it is healthy.
                    - From C(nvidia-smi), its summary of the health.
                  returned: success
                  type: list
                  elements: str
                  sample: []
                cluster_uuid:
                  description: UUID of its cluster.
                  returned: success
                  type: str
                  sample: '00000000-0000-0000-0000-000000000000'
            numa_node:
              description: NUMA node that it is nearest to.
              returned: success
              type: int
              sample: 0
            cpu_affinity:
              description: CPUs that it is nearest to.
              returned: success
              type: str
              sample: '0-31'
            processes:
              description: Processes that use it.
              returned: success
              type: list
              elements: dict
              contains:
                pid:
                  description: Process id.
                  returned: success
                  type: int
                  sample: 7151
                name:
                  description: Name of the process, without options.
                  returned: success
                  type: str
                  sample: /usr/local/lib/ollama/llama-server
                type:
                  description: V(compute), V(graphics) or V(compute+graphics).
                  returned: success
                  type: str
                  sample: compute
                used_bytes:
                  description: GPU memory that it holds in bytes.
                  returned: success
                  type: int
                  sample: 44990201856
                unit:
                  description:
                    - The systemd unit that it belongs to, null when it is in none or in another PID namespace.
                  returned: success
                  type: str
                  sample: ollama.service
            health:
              description: Whether it is fit for work.
              returned: success
              type: dict
              contains:
                ok:
                  description: Whether nothing is known against using it.
                  returned: success
                  type: bool
                  sample: true
                fit:
                  description: Whether nothing is known against using the GPU, apart from clocks that are held down.
                  returned: success
                  type: bool
                  sample: true
                lost:
                  description: Whether it does not answer.
                  returned: success
                  type: bool
                  sample: false
                reasons:
                  description: What is known against using it.
                  returned: success
                  type: list
                  elements: str
                  sample: ['remapping of memory rows is pending: reset the GPU']
            unavailable:
              description:
                - Why values are null, by their dotted paths. V(unsupported) when GPU or driver have no such datum, else
                  the text of the error.
              returned: success
              type: dict
              sample:
                fan_speed_percent: unsupported
        findings:
          description:
            - Everything that was found to be wrong or unusual, for people and for monitoring. What makes a GPU unfit or
              slow is also in RV(ansible_facts.gpu.devices[].health).
            - It is empty for a host in good health. The sources are NVML's values, the other GPUs of the same name on
              this host, and the Xid errors in the kernel's log since boot, as far back as C(/dev/kmsg) reaches; only
              root can read it.
          returned: success
          type: list
          elements: dict
          contains:
            gpu:
              description: Index of the GPU. Null for the host as a whole, and for a GPU that is not on the PCI bus any
                more.
              returned: success
              type: int
              sample: 3
            check:
              description: Name of the check, such as V(remap_pending), V(pcie_narrow), V(unlike_twins) or V(xid_79), or
                the RV(ansible_facts.gpu.fault.code) of the host. Every view shows this name.
              returned: success
              type: str
              sample: xid_119
            effect:
              description: V(unfit), V(slow), or V(note) for what does not keep the GPU from working.
              returned: success
              type: str
              sample: note
            action:
              description:
                - What to do. V(reset) or V(replace) the GPU, V(reboot) the host, V(restart) the program that used it,
                  V(look) into it, or V(none).
              returned: success
              type: str
              sample: reset
            text:
              description: What was found.
              returned: success
              type: str
              sample: "Xid 119, the GPU's system processor did not answer: once, 14 min ago"
            line:
              description: The GPU, the name of the check, and what was found.
              returned: success
              type: str
              sample: "GPU 3: xid_119: Xid 119, the GPU's system processor did not answer: once, 14 min ago"
            remedy:
              description: What to do, in words.
              returned: success
              type: str
              sample: reset the GPU
        topology:
          description:
            - How near the GPUs are to each other, in the words of C(nvidia-smi topo -m). One row a GPU. Null where
              unknown; without C(pynvml) NVLinks do not show.
          returned: success
          type: list
          elements: list
          sample: [['X', 'NV18'], ['NV18', 'X']]
        peer_to_peer:
          description:
            - Whether GPUs may read each other's memory, in the words of C(nvidia-smi topo -p2p r). One row a GPU. Null
              where unknown.
          returned: success
          type: list
          elements: list
          sample: [['X', 'OK'], ['OK', 'X']]
        rdma:
          description: The RDMA devices.
          returned: success
          type: list
          elements: dict
          contains:
            name:
              description: Name.
              returned: success
              type: str
              sample: mlx5_0
            node_type:
              description: V(ca) for a channel adapter, V(rnic) for iWARP.
              returned: success
              type: str
              sample: ca
            node_guid:
              description: GUID.
              returned: success
              type: str
              sample: '0c42:a103:0065:1f2a'
            hca_type:
              description: Model.
              returned: success
              type: str
              sample: MT4129
            board_id:
              description: Board.
              returned: success
              type: str
              sample: MT_0000000838
            firmware_version:
              description: Version of the firmware.
              returned: success
              type: str
              sample: '28.39.1002'
            pci_bus_id:
              description: PCI bus id, null for devices made in software.
              returned: success
              type: str
              sample: '0000:1a:00.0'
            numa_node:
              description: NUMA node that it is nearest to.
              returned: success
              type: int
              sample: 0
            cpu_affinity:
              description: CPUs that it is nearest to.
              returned: success
              type: str
              sample: '0-31'
            netdevs:
              description: Its network interfaces.
              returned: success
              type: list
              elements: str
              sample: [ens1f0np0]
            gpu_distances:
              description:
                - How near it is to each GPU, in the order of RV(ansible_facts.gpu.devices). Words as in
                  RV(ansible_facts.gpu.topology).
              returned: success
              type: list
              elements: str
              sample: [PIX, SYS]
            ports:
              description: Its ports.
              returned: success
              type: list
              elements: dict
              contains:
                port:
                  description: Number.
                  returned: success
                  type: int
                  sample: 1
                state:
                  description: V(ACTIVE), V(DOWN), V(INIT) or V(ARMED).
                  returned: success
                  type: str
                  sample: ACTIVE
                phys_state:
                  description: V(LinkUp), V(Disabled) or V(Polling), for example.
                  returned: success
                  type: str
                  sample: LinkUp
                link_layer:
                  description: V(InfiniBand) or V(Ethernet).
                  returned: success
                  type: str
                  sample: InfiniBand
                rate_gbps:
                  description: Rate in Gb/s.
                  returned: success
                  type: float
                  sample: 400
                lid:
                  description: Local id, null on Ethernet.
                  returned: success
                  type: int
                  sample: 17
                netdev:
                  description: Network interface of its first GID.
                  returned: success
                  type: str
                  sample: ens1f0np0
                roce_v2_gid_index:
                  description: First GID of RoCE v2 and IPv4, null where there is none.
                  returned: success
                  type: int
                  sample: 3
        mig_devices:
          description: The MIG instances of all GPUs.
          returned: success
          type: list
          elements: dict
          contains:
            uuid:
              description: Its UUID, which no other instance has.
              returned: success
              type: str
              sample: MIG-00000001-0000-5000-8000-000000000001
            name:
              description: Product name.
              returned: success
              type: str
              sample: NVIDIA A100-SXM4-80GB MIG 3g.40gb
            gpu_uuid:
              description: The GPU that it is a part of.
              returned: success
              type: str
              sample: GPU-00000001-0000-4000-8000-000000000001
            gpu_instance_id:
              description: Number of the GPU instance.
              returned: success
              type: int
              sample: 1
            compute_instance_id:
              description: Number of the compute instance.
              returned: success
              type: int
              sample: 0
            memory:
              description: Its memory.
              returned: success
              type: dict
              contains:
                total_bytes:
                  description: Size in bytes.
                  returned: success
                  type: int
                  sample: 42949672960
                used_bytes:
                  description: Bytes in use.
                  returned: success
                  type: int
                  sample: 0
                free_bytes:
                  description: Bytes free.
                  returned: success
                  type: int
                  sample: 42949672960
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        timeout=dict(type="float", default=10),
        required=dict(type="bool", default=False),
        expected_count=dict(type="int", default=0),
        venv=dict(type="path"),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts

    run(argument_spec(), facts.report)


if __name__ == "__main__":
    main()
