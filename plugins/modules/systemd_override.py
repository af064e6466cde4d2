#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environment and settings of any systemd unit through a drop-in, proven on the running process."""

from __future__ import annotations

DOCUMENTATION = r"""
module: systemd_override
short_description: Set environment and settings of a systemd unit and prove them on the running process
version_added: 0.1.0
description:
  - Sets the environment and the settings of a unit to the declared values through this collection's own drop-in,
    C(/etc/systemd/system/UNIT.d/zz-gpufleet.conf). The unit file itself is never edited, and C(override.conf), the file
    of C(systemctl edit), is never written.
  - What is declared is compared with all files of the unit, merged by the rules of systemd, and with the environment
    of the running process. The unit is restarted only if a value in force changes or the running process has other
    values. A change of comments or order restarts nothing; neither does a change of what systemd itself acts on, such
    as C(Restart=).
  - After a restart the new process must have exactly the declared values, and must keep running. A process that dies
    is noticed at once.
  - On any failure the files, systemd and the unit are restored, with exactly the links that C(systemctl enable) or
    C(systemctl disable) had created or removed. The message says in one line what failed, whether the previous state
    is back, and what remains; RV(evidence) has the last lines that the failed invocation logged.
  - A run that was killed leaves nothing behind. The next run either completes the change or rolls it back as a whole,
    and removes whatever the killed run left, secrets included.
  - If systemd is just restarting the unit, the module waits for that, within O(timeout). A unit that ends again is
    reported as V(crash_loop).
  - The environment of a process that has overwritten it with its title, as nginx does, cannot be read. It counts
    neither as drift nor as a reason for a restart.
  - A value reaches the process unchanged, byte for byte. What systemd cannot pass, such as a NUL byte, invalid UTF-8 or
    an invalid name, is rejected before anything is changed.
  - A declared value that another file would override is an error that names the file, the line and both values.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.services]
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Secrets are never part of the difference.
requirements:
  - systemd 247 or later
options:
  unit:
    description:
      - Name of the unit. Without a suffix, C(.service) is meant.
      - It must exist, unless O(state=absent). A template needs an instance name, such as V(vllm@chat.service).
    type: str
    required: true
  state:
    description:
      - With V(present), the drop-in contains what is declared and nothing else.
      - V(absent) removes everything that this module has written for the unit, and restarts the unit if it was running
        with any of it.
    type: str
    choices: [present, absent]
    default: present
  environment:
    description:
      - Variables of the service's environment, taken literally. Nothing needs quoting or escaping.
      - Numbers are taken as written. V(true) and V(false) are rejected, as programs differ in how they write them.
        Quote what the program expects.
      - Every local user can read them. Use O(secret_environment) for secrets.
    type: dict
    default: {}
  secret_environment:
    description:
      - Variables of the service's environment that only root and the service itself may read.
      - They are kept in C(/etc/gpufleet/UNIT.env), which only root can read, and are never shown or logged.
    type: dict
    default: {}
  credentials:
    description:
      - Credentials of the service, see C(LoadCredential=) in C(systemd.exec(5)). The service reads the content of
        V(NAME) from the file C($CREDENTIALS_DIRECTORY/NAME).
      - Safer than O(secret_environment), as the processes that a service starts do not inherit them. They are kept in
        C(/etc/gpufleet/credentials/UNIT), which only root can read, and are never shown or logged.
    type: dict
    default: {}
  settings:
    description:
      - Settings of the unit by section, in the words of systemd, specifiers such as C(%h) included.
      - Each value is one line. A list gives one line for each item; an empty first item clears what the unit had.
      - V(true) and V(false) are written as C(yes) and C(no).
      - Anything that systemd would ignore, such as an unknown setting, is an error.
    type: dict
    default: {}
  enabled:
    description: Whether the unit starts at boot. Not changed by default.
    type: bool
  started:
    description:
      - Whether the unit runs. Not changed by default; a unit that runs is then restarted if necessary, and one that
        does not run is not started.
    type: bool
  timeout:
    description:
      - Seconds within which the new process must be up, counted from its start.
      - Also how long to wait for another run that is changing the same unit.
    type: int
    default: 60
  settle:
    description:
      - Seconds for which the new process is watched. One that dies within them has failed, and the previous state
        is restored.
    type: float
    default: 2
seealso:
  - module: gpufleet.inference.ollama_service
  - module: ansible.builtin.systemd_service
notes:
  - Run it as root (C(become)).
"""

EXAMPLES = r"""
---
- name: Serve on four GPUs, and keep models loaded
  gpufleet.inference.systemd_override:
    unit: ollama
    environment:
      CUDA_VISIBLE_DEVICES: 0,1,2,3
      OLLAMA_SCHED_SPREAD: 1
      OLLAMA_KEEP_ALIVE: -1
    started: true

- name: Give vLLM its token, more open files and a longer stop
  gpufleet.inference.systemd_override:
    unit: vllm@chat.service
    secret_environment:
      HF_TOKEN: "{{ vault_hf_token }}"
    settings:
      Service:
        LimitNOFILE: 65535
        TimeoutStopSec: 120

- name: Replace the command of a service and hand it a key as a credential
  gpufleet.inference.systemd_override:
    unit: gateway
    settings:
      Service:
        ExecStart: ["", "/usr/local/bin/gateway --key-file %d/api-key"]
    credentials:
      api-key: "{{ vault_gateway_key }}"

- name: Remove everything that was declared for the service
  gpufleet.inference.systemd_override:
    unit: gateway
    state: absent
"""

RETURN = r"""
verdict:
  description:
    - V(ok), or the name of what is wrong.
    - V(refused) and V(shadowed) are found before anything is changed. After V(crash_loop), V(failed), V(timeout),
      V(unproven), V(not_loaded), V(not_written), V(not_enabled), V(not_stopped), V(not_done) and V(error) the previous
      state is restored.
  returned: always
  type: str
  sample: ok
evidence:
  description: What the verdict is based on, such as the unit's state and the last lines of its journal.
  returned: always
  type: dict
  sample: {result: exit-code, exec_main_status: 1, journal: ["Error: listen tcp: address already in use"]}
restarted:
  description: Whether a running unit was restarted, or would be in check mode.
  returned: always
  type: bool
  sample: true
reasons:
  description: Why the unit was restarted.
  returned: always
  type: list
  elements: str
  sample: ["the value in force changes: OLLAMA_KEEP_ALIVE"]
differs:
  description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
  returned: always
  type: list
  elements: str
  sample: [environment, override]
planned:
  description:
    - The writes and systemctl commands of the run, in order. In check mode those of a real run.
    - Empty when the unit is in its declared state.
  returned: always
  type: list
  elements: str
  sample:
    - write /etc/systemd/system/ollama.service.d/zz-gpufleet.conf
    - systemctl daemon-reload
    - systemctl reset-failed ollama.service
    - systemctl restart ollama.service
reloaded:
  description: Whether systemd reloaded its files, or would in check mode.
  returned: always
  type: bool
  sample: true
rolled_back:
  description: Whether the change failed and the previous state was restored.
  returned: always
  type: bool
  sample: false
downtime_ms:
  description: Milliseconds from the stop of the previous process until the new one was proven, 0 without a restart.
  returned: always
  type: int
  sample: 38
drift:
  description:
    - The variables whose values differed between the declaration, the unit's files and the running process when the
      module started.
    - The value of a missing variable is V(null). C(file) is the file and line of the value on disk.
  returned: always
  type: dict
  sample: {OLLAMA_KEEP_ALIVE: {declared: "-1", on_disk: 5m, running: 5m, file: /etc/default/ollama:1}}
shadowed:
  description: What is declared but overridden elsewhere.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The variable, or section and setting.
      returned: always
      type: str
      sample: OLLAMA_KEEP_ALIVE
    declared:
      description: The declared value.
      returned: always
      type: str
      sample: "-1"
    effective:
      description: The value in force, V(null) where the other file removes it.
      returned: always
      type: str
      sample: 5m
    file:
      description: The file that overrides it.
      returned: always
      type: str
      sample: /etc/systemd/system/ollama.service.d/zzz-local.conf
    line:
      description: The line in that file.
      returned: always
      type: int
      sample: 2
environment:
  description:
    - The declared variables as the running process has them, secrets masked. Empty when nothing runs, and when the
      process has written over its environment.
  returned: always
  type: dict
  sample: {OLLAMA_KEEP_ALIVE: "-1", HF_TOKEN: <secret>}
unit_state:
  description: The unit as systemd shows it at the end.
  returned: always
  type: dict
  contains:
    load_state:
      description: Whether systemd could load it.
      returned: always
      type: str
      sample: loaded
    active_state:
      description: Its state.
      returned: always
      type: str
      sample: active
    sub_state:
      description: Its state in more detail.
      returned: always
      type: str
      sample: running
    unit_file_state:
      description: Whether it is enabled.
      returned: always
      type: str
      sample: enabled
    main_pid:
      description: PID of the main process, 0 if there is none.
      returned: always
      type: int
      sample: 4711
    invocation_id:
      description: Identifier of this run of the unit, as in the journal's field C(_SYSTEMD_INVOCATION_ID).
      returned: always
      type: str
      sample: c961ec1e35a24ded9e1f8ab4dc4d6193
    n_restarts:
      description: How often systemd has restarted it on its own since its last regular start.
      returned: always
      type: int
      sample: 0
    fragment_path:
      description: The unit file.
      returned: always
      type: str
      sample: /etc/systemd/system/ollama.service
    drop_in_paths:
      description: The drop-ins, in the order in which they apply.
      returned: always
      type: list
      elements: str
      sample: [/etc/systemd/system/ollama.service.d/zz-gpufleet.conf]
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        unit=dict(type="str", required=True),
        state=dict(type="str", choices=["present", "absent"], default="present"),
        environment=dict(type="dict", default={}),
        secret_environment=dict(type="dict", default={}, no_log=True),
        credentials=dict(type="dict", default={}, no_log=True),
        settings=dict(type="dict", default={}),
        enabled=dict(type="bool"),
        started=dict(type="bool"),
        timeout=dict(type="int", default=60),
        settle=dict(type="float", default=2),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.converge import override_module

    run(argument_spec(), override_module.converge)


if __name__ == "__main__":
    main()
