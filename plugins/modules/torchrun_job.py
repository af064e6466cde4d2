#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's part of a torchrun job as a systemd unit."""

from __future__ import annotations

DOCUMENTATION = r"""
module: torchrun_job
short_description: Run a distributed PyTorch job as systemd units, and report how it ended
version_added: 0.1.0
description:
  - Writes the host's part of a job, C(/etc/gpufleet/torchrun/NAME.env) and C(torchrun@NAME.service), starts and stops
    it, waits for its end, and reports which process failed first and why.
  - Everything that differs among the hosts comes from O(plan). Give all hosts of a job to one task, so that they start
    together; the rendezvous waits for the last one.
  - A job whose definition has changed on any host has changed on all of them, as all have the same plan. It is then
    stopped and started again as a whole. What only one host declares differently is seen there alone; RV(stale) reports
    it with O(state=present), and O(restart) of the next task restarts all, which is what the role C(torchrun) does.
  - The job claims its GPUs while it runs. It is refused where a service, or another job, has claimed one of them, and
    they are refused while it runs. The claim ends with the job, however it ends.
  - What can be known beforehand (a port that is taken, a host that is not reached, a missing script) is refused before
    a running process is touched. A job that has failed is left as it is, with its logs.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.torchrun]
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Secrets are never part of the difference.
  idempotent:
    support: partial
    details: With O(restart=true) the job is started again on each run.
notes:
  - Run it as root (C(become)).
  - With more hosts than forks, wait in a task of its own (O(state=joined), O(state=finished)) after one that starts
    (O(state=started)), or those that wait keep others from starting.
  - The journal of the unit has torchrun's own output. The output of the processes is in O(log_dir), a folder for each
    run, with C(attempt_N/LOCAL_RANK/stdout.log), C(stderr.log) and C(error.json).
requirements:
  - systemd 247 or later
  - PyTorch 2.0 or later in O(venv)
options:
  name:
    description: Name of the job, letters, digits, C(.), C(_) and C(-). Its unit is C(torchrun@NAME.service).
    type: str
    required: true
  state:
    description:
      - V(present) writes the files and leaves the processes alone.
      - V(started) also runs it, unless this very job has already ended well.
      - V(joined) waits until all hosts have met and the processes run on this one, or have ended well.
      - V(finished) waits until it has ended well on this host. Neither starts anything, as a host that starts alone
        what has failed is of no use to the others.
      - V(stopped) stops it, V(absent) also removes its files, the plain script included. Logs stay.
    type: str
    choices: [present, started, joined, finished, stopped, absent]
    default: started
  plan:
    description:
      - What the lookup P(gpufleet.inference.torchrun_plan#lookup) gives.
      - Required unless O(state) is V(stopped) or V(absent).
    type: dict
  venv:
    description: Folder of the Python environment with PyTorch.
    type: path
    default: /opt/torch
  script:
    description: Absolute path of the script on the host. One of O(script), O(module) and O(content) is required.
    type: str
  module:
    description: Name of the Python module to run, as with C(python -m).
    type: str
  content:
    description: Text of the script itself.
    type: str
  arguments:
    description: Arguments of the script or module, taken literally.
    type: list
    elements: str
    default: []
  working_directory:
    description: Where it runs. The folder of O(script) by default, otherwise C(/).
    type: path
  stop_timeout:
    description:
      - Seconds that the processes have to end, for instance to write a checkpoint, before they are killed.
      - PyTorch before 2.12 kills them after 30 seconds, whatever is declared here.
    type: int
    default: 30
  user:
    description:
      - The user it runs as.
      - The module warns when a job of V(root) is about to run a script or an environment that others can change, or
        to run in such a folder.
    type: str
    default: root
  environment:
    description:
      - Further variables, taken literally. They win over those of the plan, except that E(LD_LIBRARY_PATH) comes after
        the libraries of cuda-compat. What may be a secret is rejected; see O(secret_environment).
    type: dict
    default: {}
  secret_environment:
    description:
      - Variables that nobody but root and the job itself may read. They are kept in
        C(/etc/gpufleet/torchrun/NAME.secrets), which only root can read, and are never shown or logged.
    type: dict
    default: {}
  limits:
    description: Resource limits in the words of C(systemd.exec(5)), without C(Limit), such as V(memlock) or V(nofile).
    type: dict
    default: {memlock: infinity}
  log_dir:
    description:
      - Folder for the logs of the processes. C(/var/log/torchrun/NAME) by default.
      - It is created for O(user). A symbolic link on the way to it is refused where others than root could have created
        it, and so is a folder of another user in such a place.
      - Logs are read with the rights of O(user).
    type: path
  keep_logs:
    description:
      - How many runs' logs to keep. Older ones are removed at a start, with the rights of O(user); those of a user that
        the job had before stay.
    type: int
    default: 5
  options:
    description:
      - Further options of torchrun, by their long names, such as V(numa-binding) or V(no-python). Those without a value
        are V(true).
      - What follows from O(plan) or from another option is refused, and so is an option that the torchrun of O(venv)
        does not have. V(numa-binding) requires C(numactl) on the host.
    type: dict
    default: {}
  monitor_interval:
    description: Seconds between two looks of torchrun at its processes. Its own default is 0.1.
    type: float
  join_timeout:
    description: Seconds for which the rendezvous waits for all hosts.
    type: int
    default: 300
  rdzv_conf:
    description: Further settings of the rendezvous, such as V(last_call_timeout), in torchrun's words.
    type: dict
    default: {}
  script_path:
    description:
      - Where to put the same launch as a plain shell script, for starting it manually. None by default.
      - It is removed when the path changes. No link, pipe or device is written to.
    type: path
  restart:
    description: Stop it and start it again, whether it has changed or not, with O(state=started).
    type: bool
    default: false
  timeout:
    description:
      - Seconds within which the hosts must meet, with O(state=joined), or the job must end, with O(state=finished).
        It is left running when it does not.
    type: int
    default: 3600
seealso:
  - module: gpufleet.inference.torchrun_facts
  - plugin: gpufleet.inference.torchrun_plan
    plugin_type: lookup
"""

EXAMPLES = r"""
---
- name: Start a training on all hosts of a group
  gpufleet.inference.torchrun_job:
    name: train
    plan: "{{ lookup('gpufleet.inference.torchrun_plan', groups['torchrun'], job='train', max_restarts=3) }}"
    venv: /opt/torch
    script: /srv/train/train.py
    arguments: [--config, /srv/train/7b.yml]
    working_directory: /srv/train
    user: trainer
    secret_environment:
      WANDB_API_KEY: "{{ vault_wandb_key }}"
  become: true

- name: Wait for its end
  gpufleet.inference.torchrun_job:
    name: train
    state: finished
    plan: "{{ lookup('gpufleet.inference.torchrun_plan', groups['torchrun'], job='train', max_restarts=3) }}"
    venv: /opt/torch
    script: /srv/train/train.py
    arguments: [--config, /srv/train/7b.yml]
    working_directory: /srv/train
    user: trainer
    secret_environment:
      WANDB_API_KEY: "{{ vault_wandb_key }}"
    timeout: 86400
  become: true
"""

RETURN = r"""
verdict:
  description:
    - V(ok), or why the job does not run or has failed on this host.
    - V(bad_interface), V(too_many_processes), V(peer_missing), V(master_unreachable), V(stranger_at_port),
      V(port_taken), V(connection_lost), V(collective_timeout), V(nccl_system_error), V(locked_memory),
      V(shared_memory), V(disk_full), V(out_of_memory), V(gpu_memory_error), V(kernel_failed), V(no_kernel),
      V(no_driver), V(no_script), V(no_module), V(wrong_sum), V(worker_failed), V(stalled), V(not_begun), V(stopped),
      V(failed).
  returned: always
  type: str
  sample: ok
unit:
  description: The job's unit.
  returned: always
  type: str
  sample: torchrun@train.service
generation:
  description: Changes with the job.
  returned: with a plan
  type: str
  sample: 0c9b2f1d3a44
node_rank:
  description: Rank of the host.
  returned: with a plan
  type: int
  sample: 0
ranks:
  description: Ranks of its processes, as planned.
  returned: with a plan
  type: list
  elements: int
  sample: [0, 1]
command:
  description: What the unit runs.
  returned: with a plan
  type: list
  elements: str
  sample: [/opt/torch/bin/python, -m, torch.distributed.run, --nproc-per-node=2, --standalone, /srv/train.py]
environment:
  description: The variables it is given, without secrets.
  returned: with a plan
  type: dict
  sample: {NCCL_SOCKET_IFNAME: "=eth0"}
started:
  description: Whether it was started.
  returned: always
  type: bool
  sample: true
stopped:
  description: Whether it was stopped, including to start it again.
  returned: always
  type: bool
  sample: false
running:
  description: Whether it runs.
  returned: with a plan
  type: bool
  sample: true
ready:
  description: Whether this very job was running, or had ended well, when the module came.
  returned: with a plan
  type: bool
  sample: true
joined:
  description: Whether all hosts have met and this one's processes run, or the job has ended well.
  returned: with a plan
  type: bool
  sample: true
stale:
  description: Whether processes of another definition of the job were running.
  returned: with a plan
  type: bool
  sample: false
exit_status:
  description: Exit status of torchrun.
  returned: when it has ended
  type: int
  sample: 0
restarts:
  description: How often torchrun has restarted the processes.
  returned: when it has ended
  type: int
  sample: 1
begun:
  description: Whether torchrun has come so far as to look for the other hosts.
  returned: when it has ended
  type: bool
  sample: true
rounds:
  description: Each gathering of the hosts, with C(restarts) so far, C(nodes), C(world_size) and this host's C(ranks).
  returned: when it has ended
  type: list
  elements: dict
  sample: [{restarts: 0, nodes: 3, world_size: 6, ranks: [0, 1]}]
failures:
  description:
    - The processes of this host that failed, each C(host), C(rank), C(local_rank), C(attempt), C(exit_code), C(time)
      (seconds since 1970), C(message) and C(fault), from torchrun's summary, its error files and the logs.
  returned: when it has ended
  type: list
  elements: dict
  sample: [{host: gpu-a, rank: 1, local_rank: 1, attempt: 0, exit_code: 1, time: 1795357234.0,
            message: "RuntimeError: out of patience", fault: null}]
fault:
  description: The first known fault in the logs, C(name), C(text) and the C(line) that shows it.
  returned: when it has ended
  type: dict
  sample: null
nccl:
  description:
    - What NCCL reported, with C(NCCL_DEBUG=INFO), such as C(version), C(network), and C(via), channels by transport.
  returned: when it has ended
  type: dict
  sample: {version: 2.28.9, network: Socket, via: {P2P/CUMEM: 96}, interfaces: {}, set: {}, warnings: []}
seen_ranks:
  description: What the processes reported about themselves in lines that begin with C(RANKS).
  returned: when it has ended
  type: list
  elements: dict
  sample: [{rank: 0, local: 0, world: 6, node: 0}]
allreduce:
  description: Figures in lines that begin with C(ALLREDUCE), as the role's check prints them.
  returned: when it has ended
  type: list
  elements: dict
  sample: [{MiB: 1024.0, s: 0.00458, algbw: 234.4, busbw: 351.6, sum_ok: true}]
pairs:
  description: Figures in lines that begin with C(PAIR), of links between two hosts.
  returned: when it has ended
  type: list
  elements: dict
  sample: [{a: 0, b: 1, MiB: 64.0, gbps: 11.7}]
enqueued:
  description:
    - By rank, the number of the last operation that a process had come to when one had timed out, of those among all
      processes.
  returned: when it has ended
  type: dict
  sample: {"0": 126, "1": 124}
log:
  description: Folder with the logs of the last run.
  returned: when it has ended
  type: str
  sample: /var/log/torchrun/train/train-3f2a91c0_x1
log_dir:
  description: Folder with the logs of all runs.
  returned: with a plan
  type: str
  sample: /var/log/torchrun/train
last_words:
  description: The last lines of the processes' logs.
  returned: when it has ended
  type: list
  elements: str
  sample: ["RuntimeError: out of patience"]
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        name=dict(type="str", required=True),
        state=dict(
            type="str", choices=["present", "started", "joined", "finished", "stopped", "absent"], default="started"
        ),
        plan=dict(type="dict"),
        venv=dict(type="path", default="/opt/torch"),
        script=dict(type="str"),
        module=dict(type="str"),
        content=dict(type="str"),
        arguments=dict(type="list", elements="str", default=[]),
        working_directory=dict(type="path"),
        stop_timeout=dict(type="int", default=30),
        user=dict(type="str", default="root"),
        environment=dict(type="dict", default={}),
        secret_environment=dict(type="dict", default={}, no_log=True),
        limits=dict(type="dict", default={"memlock": "infinity"}),
        log_dir=dict(type="path"),
        keep_logs=dict(type="int", default=5),
        options=dict(type="dict", default={}),
        monitor_interval=dict(type="float"),
        join_timeout=dict(type="int", default=300),
        rdzv_conf=dict(type="dict", default={}),
        script_path=dict(type="path"),
        restart=dict(type="bool", default=False),
        timeout=dict(type="int", default=3600),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import job

    run(argument_spec(), job.converge)


if __name__ == "__main__":
    main()
