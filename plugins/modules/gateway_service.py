#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configures the gateway in front of a fleet's inference servers, verifies it, and rolls back what fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_service
short_description: Configure the gateway in front of a fleet and verify it
version_added: 0.1.0
description:
  - Configures HAProxy as C(gpufleet-gateway.service), one address for all models of a fleet. A request goes to a server
    of the model that its body names, if its API key may use that model. C(haproxy.service) of the distribution and its
    configuration are left alone.
  - Only the paths with which models are used exist for clients. Everything else, such as Ollama's pull and delete or
    vLLM's administration, is answered with 404.
  - HAProxy itself checks the configuration before anything is changed. A change is put in force by a reload, which
    breaks no connection and no answer; a change of keys needs not even that. Only a change of the unit restarts it.
  - After a change the port must answer, and HAProxy must run this very configuration with the declared servers.
    Otherwise the previous configuration is restored.
  - The state of the servers, such as a host that M(gpufleet.inference.gateway_server) has taken out, survives reloads
    and restarts. After a crash, the gateway has the state that was saved last.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.gateway, gpufleet.inference.services]
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Keys are never part of the difference, nor is who may use what.
requirements:
  - HAProxy 2.6 or later with Lua, as C(/usr/sbin/haproxy)
options:
  # begin: written by make generate from module_utils/gateway/options.py
  state:
    description:
      - V(present) configures the gateway, enables it and starts it.
      - V(absent) stops the gateway, disables it and removes its files. The package C(haproxy) stays.
    type: str
    choices: [present, absent]
    default: present
  enabled:
    description: Whether the gateway starts at boot.
    type: bool
    default: true
  timeout:
    description: Seconds within which the gateway must be up and verified.
    type: int
    default: 30
  pools:
    description:
      - >-
        The models, and the servers of each: a list of dictionaries with C(host), C(address), C(port), C(engine),
        C(unit) and C(api) (V(openai), V(ollama) or V(both)), and optionally C(max_concurrent), C(tls). An engine's own
        API key may be given as C(key); it is passed to the host as O(engine_keys).
      - P(gpufleet.inference.gateway_pools#lookup) derives it from the inventory.
    type: dict
    default: {}
  engine_keys:
    description:
      - The API keys of engines, by C(HOST UNIT). Clients never see them. All servers of a model must have the same.
    type: dict
    default: {}
  keys:
    description:
      - Who may use which models. Stored as SHA-256, in a file that only root can read. A change to keys alone takes
        effect at once, without a reload. Keys with the same name share their limits, so that a key can be rotated.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the holder, for the log and the limits.
        type: str
        required: true
      key:
        description:
          - >-
            The key: at least 20 characters that nobody can guess, such as the output of C(openssl rand -hex 32).
        type: str
      sha256:
        description: Instead of C(key), its SHA-256 in hexadecimal digits.
        type: str
      pools:
        description: The models that it may use; V(*) means all.
        type: list
        elements: str
        default: []
      rate:
        description: Requests per minute. Left out, any number.
        type: int
      concurrent:
        description: Requests at the same time. Left out, any number.
        type: int
      expires:
        description:
          - >-
            When the key expires, in UTC: V(2027-01-31) (at the start of that day) or V(2027-01-31T12:00:00Z).
        type: str
  host:
    description:
      - Address at which clients reach the gateway; V(0.0.0.0) means all IPv4 addresses, V(::) all of IPv4 and IPv6. An
        address that other hosts can reach requires O(tls_certificate) or O(allow_plaintext).
    type: str
    default: 127.0.0.1
  port:
    description: Port of the gateway.
    type: int
    default: 8443
  tls_certificate:
    description:
      - A file on the host with the certificate, its chain and its key in PEM, readable by root. The gateway then speaks
        HTTPS (TLS 1.2 and later) with HTTP/1.1 and HTTP/2.
    type: path
  redirect_port:
    description: Port of plain HTTP that redirects to HTTPS; V(0) for none.
    type: int
    default: 0
  web_port:
    description:
      - Port of the page for people, Open WebUI of the group C(open_webui), with the same address and certificate; V(0)
        for none. O(redirect_port) then leads there.
    type: int
    default: 0
  web:
    description:
      - >-
        The servers of the page: dictionaries with C(host), C(address) and C(port).
      - P(gpufleet.inference.open_webui_servers#lookup) derives them from the inventory.
    type: list
    elements: dict
    default: []
  allow_plaintext:
    description: Whether O(host) may be reachable from other hosts without TLS. Keys then cross the network unencrypted.
    type: bool
    default: false
  affinity:
    description:
      - Models whose chats go to the server that has already seen their beginning; V(*) means all. A server whose load
        exceeds 1.5 times the average is passed over. Other models go to the server with the fewest requests.
    type: list
    elements: str
    default: []
  agent_port:
    description: Port of the agent on each GPU host, which reports how much a server can take. V(0) means no agent.
    type: int
    default: 8405
  queue_timeout:
    description: Seconds that a request waits for a server; then it gets 503.
    type: int
    default: 60
  queue_length:
    description: Requests of one model that may wait; more get 429.
    type: int
    default: 256
  answer_timeout:
    description: Seconds without a byte after which the gateway gives up on an answer. They include loading the model.
    type: int
    default: 600
  client_timeout:
    description: Seconds that a client may take to send its request, and to pause during it.
    type: int
    default: 30
  connections:
    description: Connections of all clients.
    type: int
    default: 10000
  address_connections:
    description: Connections of one address.
    type: int
    default: 1000
  address_rate:
    description: Requests per minute of one address.
    type: int
    default: 6000
  max_body_mib:
    description: Largest body of a request, in MiB.
    type: int
    default: 32
  buffer_kib:
    description:
      - How much of a body is read before it is routed, in KiB. If the model is named after that, the client must also
        name it in the header C(X-Model).
    type: int
    default: 1024
  status_port:
    description: Port on 127.0.0.1 for C(/metrics) and C(/keys) (Prometheus) and a status page; V(0) for none.
    type: int
    default: 8404
  status_clients:
    description:
      - Addresses or networks of other hosts that may read O(status_port), such as that of a Prometheus. They see the
        names of models, hosts and holders of keys, unencrypted. The port then listens on all IPv4 addresses.
    type: list
    elements: str
    default: []
  # end
notes:
  - Run it as root (C(become)).
seealso:
  - module: gpufleet.inference.ollama_service
  - module: gpufleet.inference.vllm_service
  - module: gpufleet.inference.llama_server_service
"""

EXAMPLES = r"""
- name: One address for the models of the inventory
  gpufleet.inference.gateway_service:
    pools: "{{ lookup('gpufleet.inference.gateway_pools', keys=true) }}"
    host: 0.0.0.0
    tls_certificate: /etc/ssl/private/gateway.pem
    keys:
      - name: team-a
        key: "{{ vault_team_a_key }}"
        pools: ["*"]
      - name: batch
        sha256: 6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090
        pools: ["llama3.3:70b"]
        concurrent: 4
        expires: 2027-12-31
  become: true

- name: Remove the gateway
  gpufleet.inference.gateway_service:
    state: absent
  become: true
"""

RETURN = r"""
msg:
  description: The outcome in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: ok · 3 models on 4 servers · 7 of 7 up · 2 keys · https://0.0.0.0:8443 · reloaded
verdict:
  description:
    - The result of the verification. V(ok), or one of V(not_ready), V(old_configuration), V(wrong_servers),
      V(not_reloaded), or a verdict of the M(gpufleet.inference.systemd_override) module.
  returned: when the gateway was inspected
  type: str
  sample: ok
evidence:
  description: The state of each server, as C(BACKEND/SERVER), and how many are up; after a failure, the last log lines.
  returned: when the gateway was inspected
  type: dict
  sample: {servers: {"llama3.3:70b/gpu1:ollama:11434": UP}, up: 1}
restarted:
  description: Whether the gateway was restarted. In check mode, whether it would be.
  returned: when the gateway was inspected
  type: bool
reasons:
  description: Why the gateway was reloaded or restarted.
  returned: when the gateway was inspected
  type: list
  elements: str
  sample: ["files that it reads change: /etc/gpufleet/gateway/haproxy.cfg"]
differs:
  description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
  returned: when the gateway was inspected
  type: list
  elements: str
  sample: [environment, override]
planned:
  description:
    - The writes and systemctl commands of the run, in order. In check mode those of a real run.
    - Empty when the gateway is in its declared state.
  returned: when the gateway was inspected
  type: list
  elements: str
  sample: [write /etc/gpufleet/gateway/haproxy.cfg, systemctl reload gpufleet-gateway.service]
reloaded:
  description: Whether systemd reloaded its units. In check mode, whether it would.
  returned: when the gateway was inspected
  type: bool
rolled_back:
  description: Whether the previous state was restored.
  returned: when the gateway was inspected
  type: bool
downtime_ms:
  description: Milliseconds from the stop of the gateway until it was verified, 0 without a restart.
  returned: when the gateway was inspected
  type: int
  sample: 0
environment:
  description: Always empty.
  returned: when the gateway was inspected
  type: dict
drift:
  description: Always empty.
  returned: when the gateway was inspected
  type: dict
shadowed:
  description: Declared settings that another file overrides, with the file and line.
  returned: when the gateway was inspected
  type: list
  elements: dict
certificates:
  description:
    - The file of the certificate in use, and the Unix time at which it ends. Less than 14 days before, a run warns.
    - Empty without O(tls_certificate), and in check mode for a gateway that does not run yet.
  returned: when the gateway was inspected
  type: dict
  sample: {/etc/ssl/gateway.pem: 1798761600}
unit_state:
  description: State of the unit, as systemd reports it.
  returned: when the gateway was inspected
  type: dict
needs:
  description: The missing program. Nothing was changed; install it, and run the module again.
  returned: when HAProxy is not installed, unless in check mode
  type: list
  elements: str
  sample: [/usr/sbin/haproxy]
url:
  description: Where a client on the host reaches it.
  returned: success, with O(state=present)
  type: str
  sample: https://127.0.0.1:8443
pools:
  description: The servers of each model, by their names in HAProxy.
  returned: success, with O(state=present)
  type: dict
  sample: {"llama3.3:70b": ["gpu1:ollama:11434", "gpu2:ollama:11434"]}
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import options
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return options.argument_spec(OPTIONS)


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import service

    run(argument_spec(), service.converge)


if __name__ == "__main__":
    main()
