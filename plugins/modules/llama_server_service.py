#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configures the instances of llama.cpp's server, verifies them on their GPUs, and rolls back what fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server_service
short_description: Configure llama.cpp servers and verify them on the GPUs
version_added: 0.1.0
description:
  - Configures C(llama-server) of llama.cpp, each instance a unit C(llama-server@NAME.service), restarts an instance
    only when an effective value changes, and verifies the running process.
  - Every option is a variable of the process, so its value in the inventory, on disk and in the running process can be
    compared. Values, variables and arguments are checked against C(llama-server --help) before anything is changed.
  - After a change the server must list its model, the model must answer a request of its own kind, and NVML must show
    the unit's own processes on every declared GPU.
  - If the verification fails, the previous state is restored. The instance then runs as before, and the message says
    what was found, what was expected and what to do.
  - A unit that was written manually is adopted. Its variables, arguments and user stay in force unless the inventory
    declares another value. The unit file itself is never edited.
  - An option that is left out is not declared. The unit's own value applies, or llama-server's default.
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
options:
  # begin: written by make generate from module_utils/llama_server/options.py
  name:
    description:
      - >-
        Name of the unit, with or without C(.service). With O(instances), the name of the template: each instance is
        C(NAME@INSTANCE.service).
    type: str
    default: llama-server
  state:
    description:
      - V(present) configures the service, enables it and starts it.
      - V(absent) stops the service, disables it and removes its files. Its program, user and models stay.
      - V(stopped) drains the service, stops it and disables it, for example for work on the host. All else of it stays,
        as it is. Load balancers send it no requests until V(present) has started and verified it again.
    type: str
    choices: [present, stopped, absent]
    default: present
  enabled:
    description: Whether the service starts at boot.
    type: bool
    default: true
  ready_unit:
    description:
      - Whether there is a unit C(NAME-ready.service), or C(NAME-ready@INSTANCE.service), that waits until the service
        answers requests. Units with C(Wants=) and C(After=) of it start when the service can be used, however long it
        takes to load a model.
    type: bool
    default: false
  timeout:
    description:
      - Seconds within which the service must be up and verified, including the time to load its model. Left out, it
        grows with the size of the model, by one second per 100 MB.
      - A service that dies is noticed at once, one that stalls after O(stall_timeout).
    type: int
  instances:
    description:
      - Several services on this host. Each is an instance, C(NAME@INSTANCE.service), of the template C(NAME@.service),
        which is created if it does not exist. For C(NAME.service) itself see O(main).
      - An instance takes the options that it leaves out from those next to this one. Its C(environment) is merged over
        O(environment), and its C(secret_environment) over O(secret_environment).
      - All instances are checked before the first one is changed. Two that claim the same GPU or port are rejected; the
        error names both.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - >-
            Name of the instance: letters, digits, C(_) and C(.).
        type: str
        required: true
      state:
        description:
          - V(absent) stops and disables the instance and removes its files. Models stay. V(stopped) stops and disables
            it, and keeps its files. Left out, it is that of O(state).
        type: str
        choices: [present, stopped, absent]
      environment:
        description: Further variables of its process, merged over O(environment).
        type: dict
      secret_environment:
        description: Further secret variables of its process, merged over O(secret_environment).
        type: dict
      enabled:
        description: Overrides O(enabled) for this instance.
        type: bool
      ready_unit:
        description: Overrides O(ready_unit) for this instance.
        type: bool
      timeout:
        description: Overrides O(timeout) for this instance.
        type: int
      visible_devices:
        description: Overrides O(visible_devices) for this instance.
        type: raw
      share_gpus:
        description: Overrides O(share_gpus) for this instance.
        type: bool
      isolate:
        description: Overrides O(isolate) for this instance.
        type: bool
      sandbox:
        description: Overrides O(sandbox) for this instance.
        type: bool
      allow_unauthenticated:
        description: Overrides O(allow_unauthenticated) for this instance.
        type: bool
      clients:
        description: Overrides O(clients) for this instance.
        type: list
        elements: str
      drain_timeout:
        description: Overrides O(drain_timeout) for this instance.
        type: float
      drain_command:
        description: Overrides O(drain_command) for this instance.
        type: list
        elements: str
      undrain_command:
        description: Overrides O(undrain_command) for this instance.
        type: list
        elements: str
      generation:
        description: Overrides O(generation) for this instance.
        type: str
      fingerprints:
        description: Overrides O(fingerprints) for this instance.
        type: list
        elements: str
      program:
        description: Overrides O(program) for this instance.
        type: path
      user:
        description: Overrides O(user) for this instance.
        type: str
      model:
        description: Overrides O(model) for this instance.
        type: str
      alias:
        description: Overrides O(alias) for this instance.
        type: str
      ctx_size:
        description: Overrides O(ctx_size) for this instance.
        type: int
      parallel:
        description: Overrides O(parallel) for this instance.
        type: int
      cache_type_k:
        description: Overrides O(cache_type_k) for this instance.
        type: str
      cache_type_v:
        description: Overrides O(cache_type_v) for this instance.
        type: str
      n_gpu_layers:
        description: Overrides O(n_gpu_layers) for this instance.
        type: str
      split_mode:
        description: Overrides O(split_mode) for this instance.
        type: str
      embeddings:
        description: Overrides O(embeddings) for this instance.
        type: bool
      reranking:
        description: Overrides O(reranking) for this instance.
        type: bool
      host:
        description: Overrides O(host) for this instance.
        type: str
      port:
        description: Overrides O(port) for this instance.
        type: int
      api_key:
        description: Overrides O(api_key) for this instance.
        type: str
      ssl_key_file:
        description: Overrides O(ssl_key_file) for this instance.
        type: path
      ssl_cert_file:
        description: Overrides O(ssl_cert_file) for this instance.
        type: path
      extra_args:
        description: Overrides O(extra_args) for this instance.
        type: dict
      stall_timeout:
        description: Overrides O(stall_timeout) for this instance.
        type: float
      token_timeout:
        description: Overrides O(token_timeout) for this instance.
        type: float
      release_timeout:
        description: Overrides O(release_timeout) for this instance.
        type: float
  main:
    description:
      - What happens to C(NAME.service) itself when there are O(instances).
      - V(kept) leaves it alone. V(disabled) stops it before the first instance starts, and disables it and removes its
        drop-in once all instances are verified. If one fails, C(NAME.service) is started again.
    type: str
    choices: [kept, disabled]
    default: kept
  visible_devices:
    description:
      - The GPUs of the service, passed to it as E(CUDA_VISIBLE_DEVICES).
      - V(all) for all healthy ones, a list of indexes, UUIDs or PCI bus ids, or a policy. A policy is a dictionary with
        any of the keys C(count), C(min_memory_gib), C(min_free_memory_gib), C(model) (a regular expression searched in
        the GPU's name), C(healthy) (default true) and C(exclude_display).
      - V(all) leaves out a GPU that is lost or has memory errors, and the result says so. One that is only slowed down
        stays. The first run after the repair uses the GPU again.
      - A GPU that does not exist is rejected before anything is changed, and so is a policy that selects no GPU.
    type: raw
  share_gpus:
    description:
      - Whether other services of this collection may use the same GPUs. They must set this too. Otherwise a service
        that claims one of these GPUs is rejected before anything is changed; the error names both services. Without
        O(visible_devices), all GPUs are claimed.
      - The claim is stored in the service's own drop-in. It counts while the unit exists and is running or enabled.
    type: bool
    default: false
  isolate:
    description:
      - Let the kernel deny the service every GPU except those in O(visible_devices), which must be set (C(DeviceAllow=)
        for their device nodes).
      - The service then sees no other GPU, so the indexes of its own start at 0 inside it.
    type: bool
    default: false
  sandbox:
    description:
      - Run the service in a systemd sandbox in which it can still use its GPUs.
      - It can write only to its user's home and to the directories for its models. It cannot see C(/home), C(/root),
        C(/tmp) and C(/var/tmp), so nothing that it needs may be there; otherwise it is rejected.
    type: bool
    default: false
  allow_unauthenticated:
    description: Whether the service may listen, without authentication, on an address that other hosts can reach.
    type: bool
    default: false
  clients:
    description:
      - Addresses or networks that alone exchange packets with the service (C(IPAddressAllow=)), such as those of the
        gateways. The service may then listen, without authentication, on an address that other hosts can reach.
      - It must listen on one IPv4 address of the host. The verification tests that another address is kept out; it
        fails if the kernel cannot filter the packets of a unit.
      - The service itself cannot reach other addresses either. List the registry from which Ollama pulls, and the other
        hosts of a vLLM that spans several.
    type: list
    elements: str
    default: []
  drain_timeout:
    description:
      - >-
        Seconds that running and waiting requests get to finish before the process is stopped. Those that are still
        running then are cut, with a warning. V(0) skips the drain altogether: gateways are not notified, and
        O(drain_command) is not run.
      - On a host with M(gpufleet.inference.gateway_agent), all gateways first send new requests elsewhere; they send
        requests again once the service is verified.
    type: float
    default: 120.0
  drain_command:
    description:
      - Command and arguments that take the service out of another load balancer before it is stopped. It is run on the
        host as root, without a shell, with the name of the unit in E(GPUFLEET_UNIT), and must end within 60 seconds. If
        it fails, nothing is stopped.
    type: list
    elements: str
    default: []
  undrain_command:
    description:
      - Command and arguments that put the service back after O(drain_command), once it is verified or was rolled back.
        If it fails, so does the run, and the next one tries again.
    type: list
    elements: str
    default: []
  environment:
    description:
      - Further variables of the process, such as E(LLAMA_ARG_FLASH_ATTN). llama-server reads nearly every argument from
        a variable as well; C(llama-server --help) names them. A name that this version does not know is rejected.
    type: dict
    default: {}
  secret_environment:
    description:
      - Further variables of the process that hold secrets, such as E(AWS_SECRET_ACCESS_KEY). They are passed from a
        file that only root can read. O(environment) rejects a variable with the name of a secret, and a URL with a
        password.
    type: dict
    default: {}
  generation:
    description:
      - >-
        Earlier accepted configuration to take the service back to: its number, or a time in UTC such as
        V(2026-11-30T08:00Z) for the one that was in force then. M(gpufleet.inference.generations_info) lists them.
      - Its options replace those declared here, except secrets, the drain, and with O(instances) the release. The
        change is verified, and rolled back if it fails, like any other.
      - The service stays there while this is set. Without it, the declared options apply again.
    type: str
  fingerprints:
    description:
      - Prompts that show whether the model still answers as before. When a change is verified, the model answers each
        of them with 16 tokens at temperature 0. The tokens and their log probabilities are recorded on the host, where
        only root can read them. They are compared after each later change of the service, and whenever a run makes
        every model answer. If they differ by more than the answers of one process do, the verdict is V(wrong_answers),
        and the change is rolled back.
      - The engine must report log probabilities with C(/v1/chat/completions). If it does not, the run warns, and
        nothing is compared.
    type: list
    elements: str
    default: []
  new_answers:
    description:
      - Whether this change is meant to change the answers, for example by another model or quantisation under the same
        name. The answers to O(fingerprints) are then recorded again instead of compared.
    type: bool
    default: false
  prove:
    description:
      - When the model of a service has to answer a request.
      - >-
        With V(change), after a change. With V(now), also if nothing changes, even in check mode: the model is loaded if
        necessary, and nothing is restarted. The task fails if the model does not answer.
    type: str
    choices: [change, now]
    default: change
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
  program:
    description:
      - The program C(llama-server) on the host. It is not installed by this module.
      - Left out, it is the one that the unit already starts, with the arguments that it has there, and else
        C(/opt/llama.cpp/bin/llama-server).
    type: path
  user:
    description:
      - The user that the server runs as. It is created if it does not exist. Left out, it is the user of a unit that
        was written manually, and else C(llama-server).
    type: str
  model:
    description:
      - >-
        Path of a GGUF file on the host, of the first part of a split model, or of a directory with one model in it
        (E(LLAMA_ARG_MODEL)). Or the name of a downloaded model: one of C(llama_server_models) of the role, or of
        C(model_paths) of the module.
    type: str
  alias:
    description:
      - Name of the model for clients, or several separated by commas (E(LLAMA_ARG_ALIAS)). Left out, it is the name of
        the downloaded model, or that of the instance.
    type: str
  ctx_size:
    description:
      - Tokens of context, shared by all O(parallel) requests (E(LLAMA_ARG_CTX_SIZE)). V(0) is what the model was
        trained with.
    type: int
  parallel:
    description: How many requests are served at a time (E(LLAMA_ARG_N_PARALLEL)).
    type: int
  cache_type_k:
    description: Data type of the keys in the KV cache, such as V(q8_0) (E(LLAMA_ARG_CACHE_TYPE_K)).
    type: str
  cache_type_v:
    description:
      - Data type of the values in the KV cache (E(LLAMA_ARG_CACHE_TYPE_V)). The quantised types need flash attention.
    type: str
  n_gpu_layers:
    description:
      - >-
        Layers on the GPUs: a number, V(all), or V(auto), as many as fit (E(LLAMA_ARG_N_GPU_LAYERS)).
      - If O(visible_devices) is set, all layers are put on the GPUs, so that a model that does not fit fails rather
        than being computed by the CPU in part.
    type: str
  split_mode:
    description:
      - How a model is split over several GPUs, such as V(layer), V(row) or V(none) (E(LLAMA_ARG_SPLIT_MODE)). With
        V(none), declare one GPU.
    type: str
  embeddings:
    description: Serve embeddings (E(LLAMA_ARG_EMBEDDINGS)). The server is then verified by an embedding.
    type: bool
  reranking:
    description: Serve rankings (E(LLAMA_ARG_RERANKING)). The server is then verified by a score.
    type: bool
  host:
    description:
      - Address at which the server listens (E(LLAMA_ARG_HOST)). Left out, it is V(127.0.0.1). An address that other
        hosts can reach requires O(api_key) or O(allow_unauthenticated).
    type: str
  port:
    description:
      - Port at which the server listens (E(LLAMA_ARG_PORT)). Left out, it is V(8080). A port that another service of
        this collection claims, or on which another process listens, is rejected.
    type: int
  api_key:
    description:
      - Key that clients must send (E(LLAMA_API_KEY)). It is kept in a file that only root can read, and is in neither
        the unit nor the process list. C(/health) and C(/v1/models) are served without it.
    type: str
  ssl_key_file:
    description:
      - File on the host with the private key for TLS (E(LLAMA_ARG_SSL_KEY_FILE)); O(user) must be able to read it. The
        program must be built with OpenSSL.
    type: path
  ssl_cert_file:
    description: File on the host with the certificate for O(ssl_key_file) (E(LLAMA_ARG_SSL_CERT_FILE)).
    type: path
  extra_args:
    description:
      - Further arguments by their long names, such as V(flash-attn). V(true) gives the argument alone, a list gives it
        several values.
      - Before anything is changed, each is compared with C(llama-server --help). An argument that this version does not
        know is rejected, with the nearest that it does.
    type: dict
    default: {}
  model_paths:
    description:
      - Paths of models by name. A model that is named here is served from its path, under that name unless another is
        set.
    type: dict
    default: {}
  stall_timeout:
    description: Seconds without a new line in the journal and without more GPU memory after which a start has stalled.
    type: float
    default: 300.0
  token_timeout:
    description: Seconds that the token, embedding, score or class of the verification may take.
    type: float
    default: 120.0
  release_timeout:
    description: Seconds to wait after a stop until the GPU memory of the previous processes is free.
    type: float
    default: 60.0
  # end
seealso:
  - module: gpufleet.inference.model_source
  - module: gpufleet.inference.inference_endpoint
"""

EXAMPLES = r"""
- name: A chat model and an embedding model, each on its own GPUs
  gpufleet.inference.llama_server_service:
    api_key: "{{ vault_llama_key }}"
    instances:
      - name: chat
        model: /srv/models/qwen3-32b-q8_0.gguf
        visible_devices: [0, 1]
        ctx_size: 65536
        parallel: 4
      - name: embed
        model: /srv/models/bge-m3-f16.gguf
        visible_devices: [2]
        port: 8081
        embeddings: true
  become: true

- name: Remove an instance
  gpufleet.inference.llama_server_service:
    instances:
      - name: embed
        state: absent
  become: true
"""

RETURN = r"""
msg:
  description: The outcome in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: ok · 2× H200 · chat at http://127.0.0.1:8080, 41.2 GiB used · a token in 0.02 s · restart 8.1 s
verdict:
  description:
    - The result of the verification. V(ok), or one of V(crash_loop), V(out_of_memory), V(port_taken), V(bad_config),
      V(model_missing), V(load_failed), V(stalled), V(not_ready), V(unauthorized), V(not_generated), V(not_offered),
      V(no_progress), V(cpu_fallback), V(wrong_gpu), V(spread_missing), V(unproven), V(vram_held), V(exposed),
      V(wrong_answers), or a verdict of the M(gpufleet.inference.systemd_override) module.
  returned: when a service was inspected
  type: str
  sample: ok
unproven:
  description:
    - Why the model was not asked to answer in this run, such as V(nothing changed). Empty if it answered.
    - With O(prove=now) it is always asked.
  returned: when a service was inspected
  type: str
evidence:
  description: The measurements behind the verdict, and the last lines of the journal.
  returned: when a service was inspected
  type: dict
restarted:
  description: Whether the service was restarted. In check mode, whether it would be.
  returned: when a service was inspected
  type: bool
reasons:
  description: Why the service was restarted.
  returned: when a service was inspected
  type: list
  elements: str
  sample: ["the value in force changes: LLAMA_ARG_CTX_SIZE"]
differs:
  description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
  returned: when a service was inspected
  type: list
  elements: str
  sample: [environment, override]
planned:
  description:
    - The writes and systemctl commands of the run, in order. In check mode those of a real run.
    - Empty when the service is in its declared state.
  returned: when a service was inspected
  type: list
  elements: str
  sample: [systemctl daemon-reload]
reloaded:
  description: Whether systemd reloaded its units. In check mode, whether it would.
  returned: when a service was inspected
  type: bool
rolled_back:
  description: Whether the previous state was restored.
  returned: when a service was inspected
  type: bool
downtime_ms:
  description: Milliseconds from the stop of the service until it was verified, or until the previous one was back.
  returned: when a service was inspected
  type: int
  sample: 1900
environment:
  description: The declared variables, with their values in the running process.
  returned: when a service was inspected
  type: dict
  sample: {CUDA_VISIBLE_DEVICES: "0,1,2,3", LLAMA_ARG_CTX_SIZE: "32768"}
drift:
  description: Variables whose values differed between the inventory, the disk and the running process, with all three,
    and the file and line of the value on disk.
  returned: when a service was inspected
  type: dict
  sample: {LLAMA_ARG_CTX_SIZE: {declared: "32768", on_disk: null, running: null, file: null}}
shadowed:
  description: Declared values that another file overrides, with the file and line.
  returned: when a service was inspected
  type: list
  elements: dict
unit_state:
  description: State of the unit, as systemd reports it.
  returned: when a service was inspected
  type: dict
gpus:
  description: The declared GPUs, or all GPUs of the host if none are declared.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Index in NVML's order.
      returned: always
      type: int
    uuid:
      description: UUID.
      returned: always
      type: str
    name:
      description: Model.
      returned: always
      type: str
    pci_bus_id:
      description: PCI bus id in the format of sysfs.
      returned: always
      type: str
    used_bytes:
      description: Memory that the unit's own processes use there.
      returned: always
      type: int
url:
  description: Where a client on the host reaches it.
  returned: success, with O(state=present)
  type: str
  sample: http://127.0.0.1:8080
model:
  description: Name of the model for clients.
  returned: success, with O(state=present)
  type: str
  sample: chat
generation:
  description: Number of the generation that this run has recorded, see M(gpufleet.inference.generations_info). Null if
    it recorded none.
  returned: success, with O(state=present) and without O(instances)
  type: int
  sample: 3
fingerprint:
  description: Result of O(fingerprints). Empty if this run compared and recorded nothing.
  returned: success, with O(state=present) and without O(instances)
  type: dict
  contains:
    state:
      description: V(same) as before, V(recorded) by this run, or V(not_offered) by the server.
      returned: always
      type: str
    deviation:
      description: The largest difference of a log probability from the recorded one, in nats.
      returned: unless RV(fingerprint.state) is V(not_offered)
      type: float
      sample: 0.0002
    tolerance:
      description: The largest difference allowed, derived from how much the answers of one process differed.
      returned: unless RV(fingerprint.state) is V(not_offered)
      type: float
      sample: 0.1
drain:
  description: What happened before the service was stopped; empty where it was not stopped or O(drain_timeout=0).
  returned: success, with O(state=present) and without O(instances)
  type: dict
  contains:
    seconds:
      description: How long it took until nothing was running any more.
      returned: always
      type: float
    gateways:
      description: Gateways that sent new requests elsewhere by then.
      returned: always
      type: list
      elements: str
    silent:
      description: Gateways that did not ask this host in time, and so do not know of the drain.
      returned: always
      type: list
      elements: str
    cut:
      description: What was still running at the end, and was cut; empty for nothing.
      returned: always
      type: str
      sample: 2 connections from 192.0.2.10 are open
instances:
  description: The result of each service as described here, by the name of its unit. RV(msg) has one part for each.
  returned: success, with O(instances)
  type: dict
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import options
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return options.argument_spec(OPTIONS)


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import service

    run(argument_spec(), service.converge)


if __name__ == "__main__":
    main()
