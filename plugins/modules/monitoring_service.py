#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configures a Prometheus that watches a fleet, verifies it, and rolls back what fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: monitoring_service
short_description: Configure a Prometheus that watches a fleet and verify it
version_added: 0.2.0
description:
  - Configures the distribution's C(prometheus.service) to read the metrics of a fleet and to raise alerts. The
    configuration is a folder of its own, C(/etc/gpufleet/monitoring); that of the distribution is left alone, and so
    are the arguments in C(/etc/default/prometheus), such as how long metrics are kept.
  - C(promtool) checks the configuration before anything is changed. A change is put in force by a reload; only a change
    of the address or of keys restarts Prometheus.
  - After a change Prometheus must be ready, and run these very files with the declared targets. Otherwise the previous
    configuration is restored.
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
      - Keys are never part of the difference.
requirements:
  - Prometheus 2.33 or later with C(promtool), as the package C(prometheus) of Debian and Ubuntu
options:
  # begin: written by make generate from module_utils/monitoring/options.py
  state:
    description:
      - V(present) configures Prometheus, enables it and starts it.
      - V(absent) removes what this collection has written. Prometheus then runs as the distribution configured it.
    type: str
    choices: [present, absent]
    default: present
  targets:
    description:
      - >-
        What to read the metrics of: dictionaries with C(job), C(host), C(address) and C(port), and optionally
        C(labels), C(tls), and C(key), the name of one of O(keys).
      - P(gpufleet.inference.scrape_targets#lookup) derives them from the inventory.
    type: list
    elements: dict
    default: []
  keys:
    description:
      - API keys by name. They are passed to Prometheus as credentials of its unit, and stand in no configuration.
    type: dict
    default: {}
  rules:
    description: The alert rules, as the text of a rule file.
    type: str
    default: ''
  host:
    description:
      - >-
        Address at which people reach Prometheus; V(0.0.0.0) means all IPv4 addresses. Prometheus asks for no password:
        an address that other hosts can reach requires O(allow_unauthenticated).
    type: str
    default: 127.0.0.1
  port:
    description: Port of Prometheus.
    type: int
    default: 9090
  allow_unauthenticated:
    description: Whether everyone who reaches O(host) may read all metrics.
    type: bool
    default: false
  interval:
    description: Seconds between two readings of a target.
    type: int
    default: 15
  alertmanagers:
    description:
      - >-
        Where alerts are sent: V(HOST:PORT) of each Alertmanager.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds within which Prometheus must be up and verified.
    type: int
    default: 60
  # end
notes:
  - Run it as root (C(become)).
seealso:
  - module: gpufleet.inference.gateway_service
"""

EXAMPLES = r"""
- name: Watch everything in the inventory
  gpufleet.inference.monitoring_service:
    targets: "{{ found.targets }}"
    keys: "{{ found['keys'] }}"
    rules: "{{ lookup('ansible.builtin.file', 'rules.yml') }}"
    alertmanagers: ["alerts.example.org:9093"]
  vars:
    found: "{{ lookup('gpufleet.inference.scrape_targets') }}"
  become: true
"""

RETURN = r"""
msg:
  description: The outcome in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: ok · 12 targets, 12 up · http://127.0.0.1:9090 · reloaded
verdict:
  description:
    - The result of the verification. V(ok), or one of V(not_ready), V(old_configuration), V(wrong_targets),
      V(not_reloaded), or a verdict of the M(gpufleet.inference.systemd_override) module.
  returned: when Prometheus was inspected
  type: str
  sample: ok
evidence:
  description: How many targets Prometheus has, and how many answered; after a failure, the last log lines.
  returned: when Prometheus was inspected
  type: dict
  sample: {targets: 12, up: 12}
restarted:
  description: Whether Prometheus was restarted. In check mode, whether it would be.
  returned: when Prometheus was inspected
  type: bool
reasons:
  description: Why Prometheus was reloaded or restarted.
  returned: when Prometheus was inspected
  type: list
  elements: str
  sample: ["files that it reads change: /etc/gpufleet/monitoring/rules.yml"]
differs:
  description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
  returned: when Prometheus was inspected
  type: list
  elements: str
  sample: [environment, override]
planned:
  description:
    - The writes and systemctl commands of the run, in order. In check mode those of a real run, or none if Prometheus
      is not installed yet.
    - Empty when Prometheus is in its declared state.
  returned: when Prometheus was inspected
  type: list
  elements: str
  sample: [write /etc/gpufleet/monitoring/rules.yml, systemctl reload prometheus.service]
reloaded:
  description: Whether systemd reloaded its units. In check mode, whether it would.
  returned: when Prometheus was inspected
  type: bool
rolled_back:
  description: Whether the previous state was restored.
  returned: when Prometheus was inspected
  type: bool
downtime_ms:
  description: Milliseconds from the stop of Prometheus until it was verified, 0 without a restart.
  returned: when Prometheus was inspected
  type: int
  sample: 0
environment:
  description: Always empty.
  returned: when Prometheus was inspected
  type: dict
drift:
  description: Always empty.
  returned: when Prometheus was inspected
  type: dict
shadowed:
  description: Declared settings that another file overrides, with the file and line.
  returned: when Prometheus was inspected
  type: list
  elements: dict
unit_state:
  description: State of the unit, as systemd reports it.
  returned: when Prometheus was inspected
  type: dict
needs:
  description: The missing program. Nothing was changed; install it, and run the module again.
  returned: when Prometheus is not installed, unless in check mode
  type: list
  elements: str
  sample: [/usr/bin/prometheus]
url:
  description: Where a client on the host reaches it.
  returned: success, with O(state=present)
  type: str
  sample: http://127.0.0.1:9090
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.monitoring.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import options
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return options.argument_spec(OPTIONS)


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.monitoring import service

    run(argument_spec(), service.converge)


if __name__ == "__main__":
    main()
