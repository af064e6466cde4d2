#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configures the vLLM instances of a host, verifies them on their GPUs, and rolls back what fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_service
short_description: Configure the vLLM instances of a host and verify them on the GPUs
version_added: 0.1.0
description:
  - Configures all O(instances) of a host in one call. Each is a unit, C(vllm@NAME.service). Its options are written to
    C(/etc/gpufleet/vllm/NAME.yaml); its environment, command and secrets to a drop-in of the unit and to files that
    only root can read. An instance is restarted only if one of these changes, or if its process was started with other
    files than these.
  - The options next to O(instances) are the defaults of all of them.
  - What would fail is rejected for all instances before the first one is changed. vLLM's own parser reads the
    configuration, so a misspelt or unknown option is found. If attention heads do not split over the GPUs, a context is
    longer than the model's, a model does not fit, others use the memory, or another instance has the GPU or port, the
    error lists the numbers.
  - Absent instances go first. If an instance needs GPUs that another instance of the same call leaves, that one is
    stopped first; if the change fails, it is started again as it was.
  - Before a restart, running and waiting requests get O(drain_timeout) to finish. Then the module waits until the GPU
    memory of the previous processes is free. Foreign processes are named, but never killed.
  - To pass verification, the unit itself must list the model, the model must do its own kind of work, and NVML must
    show the unit's processes on every declared GPU. C(/health) is not used, because it answers as long as the front end
    lives.
  - The kind of work depends on the paths that vLLM offers for the model. A generating model generates a token, which
    the server must have counted; others compute an embedding, a score, a class or a pooled output. A model with none of
    these paths, such as one for transcription, passes when it is listed; RV(msg) then says that its answers are not
    proven.
  - The module waits for a slow start, long enough for slow storage. A start that logs nothing and takes no more GPU
    memory for O(stall_timeout) has stalled. If the verification fails, the previous state is restored.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.services]
  check_mode:
    support: full
    details: vLLM's own parser reads the configuration in check mode too; it starts nothing.
  diff_mode:
    support: full
requirements:
  - An environment with vLLM on the host (O(venv)).
options:
  # begin: written by make generate from module_utils/vllm/options.py
  state:
    description:
      - V(present) configures the instance, enables it, starts it and wakes it.
      - >-
        V(asleep) does the same, but then puts its engine to sleep (level 1): the weights move to the host's memory, and
        almost all GPU memory is free. Gateways send it no requests, it is not started at boot, as it would start awake,
        and it claims only 3 GiB of each GPU. It needs C(enable-sleep-mode) in O(extra_args) and
        E(VLLM_SERVER_DEV_MODE=1) in O(environment).
      - V(stopped) drains the instance, stops it and disables it. All else of it stays.
      - V(absent) stops the instance, disables it and removes its files. Its program, user and models stay.
    type: str
    choices: [present, asleep, stopped, absent]
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
      - The vLLM instances of the host. Each is a unit C(vllm@NAME.service). An instance that is not in the list is left
        alone.
      - An instance takes the options that it leaves out from those next to this one. Its C(environment) is merged over
        O(environment), and its C(secret_environment) over O(secret_environment).
      - All instances are checked before the first one is changed. Two that claim the same GPU or port are rejected; the
        error names both. Absent instances go first.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - >-
            Name of the instance: letters, digits, C(_) and C(.).
        type: str
        required: true
      state:
        description: Overrides O(state) for this instance.
        type: str
        choices: [present, asleep, stopped, absent]
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
      venv:
        description: Overrides O(venv) for this instance.
        type: path
      user:
        description: Overrides O(user) for this instance.
        type: str
      model:
        description: Overrides O(model) for this instance.
        type: str
      served_model_name:
        description: Overrides O(served_model_name) for this instance.
        type: list
        elements: str
      revision:
        description: Overrides O(revision) for this instance.
        type: str
      download_dir:
        description: Overrides O(download_dir) for this instance.
        type: path
      offline:
        description: Overrides O(offline) for this instance.
        type: bool
      lora_adapters:
        description: Overrides O(lora_adapters) for this instance.
        type: dict
      load_format:
        description: Overrides O(load_format) for this instance.
        type: str
      trust_remote_code:
        description: Overrides O(trust_remote_code) for this instance.
        type: bool
      chat_template:
        description: Overrides O(chat_template) for this instance.
        type: path
      dtype:
        description: Overrides O(dtype) for this instance.
        type: str
        choices: [auto, half, float16, bfloat16, float, float32]
      quantization:
        description: Overrides O(quantization) for this instance.
        type: str
      max_model_len:
        description: Overrides O(max_model_len) for this instance.
        type: str
      max_num_seqs:
        description: Overrides O(max_num_seqs) for this instance.
        type: int
      max_num_batched_tokens:
        description: Overrides O(max_num_batched_tokens) for this instance.
        type: int
      gpu_memory_utilization:
        description: Overrides O(gpu_memory_utilization) for this instance.
        type: float
      kv_cache_dtype:
        description: Overrides O(kv_cache_dtype) for this instance.
        type: str
      cpu_offload_gb:
        description: Overrides O(cpu_offload_gb) for this instance.
        type: float
      enable_prefix_caching:
        description: Overrides O(enable_prefix_caching) for this instance.
        type: bool
      enforce_eager:
        description: Overrides O(enforce_eager) for this instance.
        type: bool
      tensor_parallel_size:
        description: Overrides O(tensor_parallel_size) for this instance.
        type: str
      pipeline_parallel_size:
        description: Overrides O(pipeline_parallel_size) for this instance.
        type: str
      data_parallel_size:
        description: Overrides O(data_parallel_size) for this instance.
        type: str
      host:
        description: Overrides O(host) for this instance.
        type: str
      port:
        description: Overrides O(port) for this instance.
        type: int
      ssl_keyfile:
        description: Overrides O(ssl_keyfile) for this instance.
        type: path
      ssl_certfile:
        description: Overrides O(ssl_certfile) for this instance.
        type: path
      api_key:
        description: Overrides O(api_key) for this instance.
        type: str
      guard_all_paths:
        description: Overrides O(guard_all_paths) for this instance.
        type: bool
      client_keys:
        description: Overrides O(client_keys) for this instance.
        type: dict
      open_paths:
        description: Overrides O(open_paths) for this instance.
        type: list
        elements: str
      hf_token:
        description: Overrides O(hf_token) for this instance.
        type: str
      shutdown_timeout:
        description: Overrides O(shutdown_timeout) for this instance.
        type: int
      nodes:
        description: Overrides O(nodes) for this instance.
        type: list
        elements: dict
        suboptions:
          name:
            description: Name of the host, for messages.
            type: str
            required: true
          address:
            description: Address at which the other hosts reach it. It is passed as E(VLLM_HOST_IP).
            type: str
            required: true
      node_rank:
        description: Overrides O(node_rank) for this instance.
        type: int
      master_port:
        description: Overrides O(master_port) for this instance.
        type: int
      restart:
        description: Overrides O(restart) for this instance.
        type: bool
      asleep:
        description: Overrides O(asleep) for this instance.
        type: str
        choices: [wake, accept]
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
  visible_devices:
    description:
      - >-
        The GPUs of the instance: V(all), a list of indexes, UUIDs or PCI bus ids, or a policy. A policy is a dictionary
        with any of the keys C(count), C(min_memory_gib), C(min_free_memory_gib), C(model) (a regular expression
        searched in the GPU's name), C(healthy) (default true) and C(exclude_display). The process gets indexes in the
        order of the PCI bus, which every version of vLLM understands.
      - V(none) is for a vLLM that runs on the CPU.
      - A GPU that does not exist is rejected before anything is changed. So are an unhealthy GPU under V(all) and a
        policy that selects no GPU.
    type: raw
    default: all
  share_gpus:
    description:
      - Whether other services of this collection may use the same GPUs. They must set this too, and the sum of their
        shares of memory (O(gpu_memory_utilization)) must not exceed the whole. Otherwise a service that claims one of
        these GPUs is rejected before anything is changed; the error names both services.
      - The claim is stored in the instance's own drop-in. It counts while the unit exists and is running or enabled.
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
      - Further variables of the process, such as E(VLLM_LOGGING_LEVEL). A misspelt E(VLLM_) name causes a warning.
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
  venv:
    description:
      - The Python environment with vLLM. A link is followed, and the unit names its target; if the link is switched,
        the next run applies it.
    type: path
    default: /opt/gpufleet/vllm/current
  user:
    description: User that runs the instance. It is created, with the home C(/var/lib/USER), if it does not exist.
    type: str
    default: vllm
  model:
    description:
      - Directory of the model on the host, the name of a downloaded model (one of C(vllm_models) of the role, or of
        C(model_paths) of the module), or its name on the hub. Required for an instance that is present.
    type: str
  served_model_name:
    description: Names by which clients request the model. Left out, it is O(model).
    type: list
    elements: str
  revision:
    description: Branch, tag or commit of a model from the hub.
    type: str
  download_dir:
    description: Where models from the hub are stored. Left out, in the home of O(user).
    type: path
  offline:
    description:
      - >-
        Whether the instance must not fetch anything from the internet: neither from a hub, so its model must be on the
        host (E(HF_HUB_OFFLINE)), nor kernels (E(FLASHINFER_NO_DOWNLOAD)). An environment whose FlashInfer has no
        precompiled kernels causes a warning.
    type: bool
    default: false
  lora_adapters:
    description:
      - >-
        LoRA adapters by the names under which clients request them: directories on the host, or names of downloaded
        models. Before a change, each must have a configuration and weights that O(user) can read; after it, each must
        answer a request under its name. C(max-lora-rank) is derived from them unless O(extra_args) sets it.
    type: dict
  load_format:
    description: How the weights are read, by vLLM's names, such as V(safetensors) or V(dummy).
    type: str
  trust_remote_code:
    description: Whether code that comes with the model may run.
    type: bool
  chat_template:
    description: File on the host with a chat template that replaces the model's own.
    type: path
  dtype:
    description:
      - Data type of weights and computations. Left out, it is the model's own, or half precision if that is float32.
    type: str
    choices: [auto, half, float16, bfloat16, float, float32]
  quantization:
    description: How the weights are quantized, by vLLM's names. Left out, it is what the model declares.
    type: str
  max_model_len:
    description:
      - >-
        Tokens of the longest request including its answer: V(32768), V(32k) (32000), V(32K) (32768), or V(auto) for as
        many as fit. If left out, it is the length that the model was trained for. A length that the model's
        config.json, with C(hf-overrides) in O(extra_args), does not allow is rejected.
    type: str
  max_num_seqs:
    description: How many requests are computed at the same time.
    type: int
  max_num_batched_tokens:
    description: How many tokens are computed at the same time.
    type: int
  gpu_memory_utilization:
    description:
      - Share of each GPU's total memory that the instance uses; vLLM's default is 0.92 (0.9 before 0.20). This much
        must be free, or already in use by this instance.
    type: float
  kv_cache_dtype:
    description: Data type of the cache, such as V(fp8). Left out, it is that of the model.
    type: str
  cpu_offload_gb:
    description: GiB of weights per GPU that are kept in the host's memory.
    type: float
  enable_prefix_caching:
    description: Whether a beginning that several prompts share is computed only once.
    type: bool
  enforce_eager:
    description: Whether to skip compilation and CUDA graphs. The instance then starts sooner and serves more slowly.
    type: bool
  tensor_parallel_size:
    description:
      - Number of GPUs over which each layer is split, or V(auto) for as many as the model's heads allow. All chosen
        GPUs must be used.
    type: str
    default: auto
  pipeline_parallel_size:
    description:
      - Number of stages into which the layers are divided, each on other GPUs, or V(auto) for what
        O(tensor_parallel_size) leaves.
    type: str
    default: auto
  data_parallel_size:
    description:
      - >-
        Number of copies of the model; V(auto) is one. Of a mixture of experts, only the attention is copied. Its
        experts are divided among all GPUs: each is split, or with C(enable-expert-parallel) in O(extra_args) stays
        whole.
    type: str
    default: auto
  host:
    description: Address at which the instance listens. An address that other hosts can reach requires an O(api_key).
    type: str
    default: 127.0.0.1
  port:
    description:
      - Port of the API. It can be below 1024 only with O(user=root). Two instances on a host cannot have the same port.
    type: int
    default: 8000
  ssl_keyfile:
    description:
      - >-
        Key for HTTPS, together with O(ssl_certfile): a file on the host that O(user) can read.
    type: path
  ssl_certfile:
    description: Certificate for HTTPS, a file on the host.
    type: path
  api_key:
    description:
      - Key that clients must send. It is passed to vLLM as E(VLLM_API_KEY) from a file that only root can read, and
        appears in no command line, unit, log or result.
      - vLLM asks for it only under the path C(/v1); since 0.22 also under C(/v2) and C(/inference), since 0.27 under
        C(/cohere). See O(guard_all_paths).
    type: str
  guard_all_paths:
    description:
      - Whether the key is required on every path except O(open_paths). A small middleware, which vLLM loads, checks it.
        Without it, C(/invocations), which generates, C(/tokenize), C(/metrics) and others answer anyone.
    type: bool
    default: false
  client_keys:
    description:
      - Further keys, by the names of clients. Requires O(guard_all_paths), because vLLM itself knows only one key. A
        change restarts the instance; the role P(gpufleet.inference.gateway#role) changes keys without a restart.
    type: dict
  open_paths:
    description: Paths that need no key with O(guard_all_paths), such as V(/metrics).
    type: list
    elements: str
    default: [/health]
  hf_token:
    description: Token for models from the hub. It is passed as a credential of the unit.
    type: str
  shutdown_timeout:
    description:
      - Seconds that vLLM gives running requests when the instance is stopped by anyone (since vLLM 0.18). The unit's
        C(TimeoutStopSec=) is 30 seconds longer, and its C(KillMode=) is V(mixed), because the workers of a model on
        several GPUs would end at once on a signal.
    type: int
  nodes:
    description:
      - The hosts that share the model, in the order of their ranks, with vLLM's own multi-node serving. All of them
        must have the same version and options, and the same number of chosen GPUs. The first host serves the API; the
        others only compute. O(tensor_parallel_size) × O(pipeline_parallel_size) × O(data_parallel_size) must be the
        number of GPUs of all hosts together. With V(auto), each layer is split over the GPUs of one host, and the
        layers are divided among the hosts. With O(data_parallel_size), each host has the same number of copies.
      - Run the module on all of them at the same time. They start together. A change is kept only if all of them are
        verified; otherwise all are rolled back. If the process of one host ends later, all end and start again
        together.
      - The role P(gpufleet.inference.vllm#role) does this, with addresses and variables from its planner.
      - The traffic between the hosts is neither encrypted nor authenticated. It uses O(master_port) and the next two
        ports on the first host, and other ports that vLLM chooses. Use a separate network for it.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the host, for messages.
        type: str
        required: true
      address:
        description: Address at which the other hosts reach it. It is passed as E(VLLM_HOST_IP).
        type: str
        required: true
  node_rank:
    description: The rank of this host in O(nodes).
    type: int
    default: 0
  master_port:
    description: Port of the rendezvous on the first of the hosts of one model; the next two ports are used too.
    type: int
    default: 29500
  restart:
    description:
      - Whether to restart and verify the instance even if nothing changes, because another of the O(nodes) changes.
    type: bool
    default: false
  asleep:
    description:
      - What to do about an instance that is V(present), but whose engine is asleep, which C(enable-sleep-mode) in
        O(extra_args) makes possible. V(wake) wakes it; without E(VLLM_SERVER_DEV_MODE), or from level 2, it restarts
        it. V(accept) leaves it to another program that puts it to sleep and wakes it.
    type: str
    choices: [wake, accept]
    default: wake
  extra_args:
    description:
      - Further options of C(vllm serve), without the dashes. A list becomes several words, a dictionary becomes JSON,
        and V(false) becomes C(--no-NAME), because C(vllm serve) ignores a false in its file. An option that vLLM's own
        parser does not accept is rejected.
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
  - module: gpufleet.inference.gpu_facts
  - module: gpufleet.inference.inference_endpoint
  - module: gpufleet.inference.systemd_override
"""

EXAMPLES = r"""
- name: Serve on all GPUs of the host, with a key
  gpufleet.inference.vllm_service:
    instances:
      - name: chat
        model: /srv/models/llama-3.3-70b
        served_model_name: [chat]
        host: 0.0.0.0
        api_key: "{{ vault_vllm_key }}"
        guard_all_paths: true
  become: true

- name: Run two instances, each on half of a GPU
  gpufleet.inference.vllm_service:
    visible_devices: [0]
    share_gpus: true
    gpu_memory_utilization: 0.45
    instances:
      - {name: small, model: /srv/models/small, port: 8000, extra_args: {max-loras: 4}}
      - {name: embed, model: /srv/models/embed, port: 8001}
  become: true

- name: Run two instances that cannot reach each other's GPUs or files
  gpufleet.inference.vllm_service:
    isolate: true
    sandbox: true
    instances:
      - {name: chat, model: /srv/models/chat, visible_devices: [0, 1], user: chat}
      - {name: code, model: /srv/models/code, visible_devices: [2, 3], user: code, port: 8001}
  become: true

- name: Remove an instance
  gpufleet.inference.vllm_service:
    instances:
      - {name: small, state: absent}
  become: true
"""

RETURN = r"""
msg:
  description: The outcomes in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: "vllm@chat: ok · 4× H200 · TP4 · chat at http://127.0.0.1:8000, 515.2 GiB in use"
diff:
  description: For each instance that changed, the state before and after.
  returned: success
  type: list
  elements: dict
instances:
  description: The result of each instance, by the name of its unit. If one fails, its keys are at the top level.
  returned: success
  type: dict
  contains:
    msg:
      description: The outcome in one line.
      returned: always
      type: str
      sample: ok · 4× H200 · TP4 · chat at http://127.0.0.1:8000, 515.2 GiB in use · a token in 0.21 s · restart 92.4 s
    changed:
      description: Whether the instance was changed. In check mode, whether it would be.
      returned: always
      type: bool
    verdict:
      description:
        - The result of the verification. V(ok), or one of V(crash_loop), V(out_of_memory), V(port_taken),
          V(bad_config), V(model_missing), V(load_failed), V(stalled), V(not_ready), V(unauthorized), V(asleep),
          V(not_generated), V(no_progress), V(cpu_fallback), V(wrong_gpu), V(spread_missing), V(unproven),
          V(vram_held), V(exposed), V(wrong_answers), V(peer_lost) (another of O(nodes) has ended), or a verdict of
          the M(gpufleet.inference.systemd_override) module.
      returned: when the instance was inspected
      type: str
      sample: ok
    unproven:
      description:
        - Why the model was not asked to answer in this run, such as V(nothing changed). Empty if it answered.
        - With O(prove=now) it is always asked.
      returned: when the instance was inspected
      type: str
    evidence:
      description: The measurements behind the verdict, and the last lines of the journal.
      returned: when the instance was inspected
      type: dict
    restarted:
      description: Whether the instance was restarted. In check mode, whether it would be.
      returned: when the instance was inspected
      type: bool
    reasons:
      description: Why it was restarted.
      returned: when the instance was inspected
      type: list
      elements: str
      sample: ["files that it reads change: /etc/gpufleet/vllm/chat.yaml"]
    differs:
      description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
      returned: when the instance was inspected
      type: list
      elements: str
      sample: [environment, override]
    planned:
      description:
        - The writes and systemctl commands of the run, in order. In check mode those of a real run.
        - Empty when the service is in its declared state.
      returned: when the instance was inspected
      type: list
      elements: str
      sample: [systemctl daemon-reload]
    reloaded:
      description: Whether systemd reloaded its units. In check mode, whether it would.
      returned: when the instance was inspected
      type: bool
    rolled_back:
      description: Whether the previous state was restored.
      returned: when the instance was inspected
      type: bool
    downtime_ms:
      description: Milliseconds from the stop of the instance until it was verified, or the previous one was back.
      returned: when the instance was inspected
      type: int
      sample: 92400
    environment:
      description: The declared variables, with their values in the running process. Secrets are hidden.
      returned: when the instance was inspected
      type: dict
    drift:
      description: Variables that differed between the inventory, the disk and the running process, with each value.
      returned: when the instance was inspected
      type: dict
    shadowed:
      description: Declared values that another file overrides, with the file and line.
      returned: when the instance was inspected
      type: list
      elements: dict
    unit_state:
      description: State of the unit, as systemd reports it.
      returned: when the instance was inspected
      type: dict
    url:
      description: Where a client on the host reaches it. Null if this host is not the first of O(nodes).
      returned: with O(state=present)
      type: str
      sample: http://127.0.0.1:8000
    model:
      description: Name of the model for clients.
      returned: with O(state=present)
      type: str
      sample: chat
    version:
      description: Version of vLLM in the environment.
      returned: with O(state=present)
      type: str
      sample: 0.32.0
    parallel:
      description: The chosen sizes, and the reason.
      returned: with O(state=present)
      type: dict
      sample: {tensor: 4, pipeline: 1, data: 1, why: "4 GPUs, 64 heads split over all of them"}
    fit:
      description:
        - The prediction for each GPU. C(budget_bytes) that vLLM uses, C(weight_bytes) including those of a draft model,
          C(request_cache_bytes) for one request of the longest context, and the approximate number of C(cache_tokens)
          that fit. Empty without a GPU.
        - For a mixture of experts with data parallel, C(weight_bytes) is a lower bound, as the size of what is copied
          is not known. The cache is 0 where layers differ or its data type is not known.
      returned: with O(state=present)
      type: dict
    gpus:
      description: The declared GPUs.
      returned: with O(state=present)
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
    generation:
      description: Number of the generation that this run has recorded, see M(gpufleet.inference.generations_info). Null
        if it recorded none.
      returned: with O(state=present)
      type: int
      sample: 3
    fingerprint:
      description: Result of O(fingerprints). Empty if this run compared and recorded nothing.
      returned: with O(state=present)
      type: dict
      contains:
        state:
          description: V(same) as before, V(recorded) by this run, or V(not_offered) by the server.
          returned: always
          type: str
        deviation:
          description: The largest difference of a log probability from the recorded one, in nats.
          returned: unless C(state) is V(not_offered)
          type: float
          sample: 0.0002
        tolerance:
          description: The largest difference allowed, derived from how much the answers of one process differed.
          returned: unless C(state) is V(not_offered)
          type: float
          sample: 0.1
    drain:
      description: What happened before the service was stopped; empty where it was not stopped or O(drain_timeout=0).
      returned: with O(state=present)
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
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import options
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.options import OPTIONS


def argument_spec():
    return options.argument_spec(OPTIONS)


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import service

    run(argument_spec(), service.converge)


if __name__ == "__main__":
    main()
