#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One vLLM instance: configured, proven on its GPUs, or put back as it was."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_service
short_description: Configure a vLLM instance and prove it on the GPUs
version_added: 0.1.0
description:
  - Brings one instance, C(vllm@NAME.service), to its declared state. Its options stand in
    C(/etc/gpufleet/vllm/NAME.yaml), its environment, command and secrets in a drop-in of the unit and files that root
    alone reads. It is restarted only when one of these changes, and the result is proven on the running process.
  - What would fail is refused before the running instance is touched. vLLM's own parser reads the configuration, so a
    misspelt or unknown option is found. Heads that do not split over the GPUs, a context that is longer than the
    model's, a model that does not fit, memory that others hold and a GPU or port of another instance are named with the
    numbers.
  - Before a restart, requests that are running or waiting are given O(drain_timeout) to end; afterwards the GPU memory
    of the former processes is waited for. Processes of others are named, and never ended.
  - The proof is that the unit itself lists the model, that the model does its own kind of work, and that NVML names the
    unit's processes on every declared GPU. C(/health) is not asked; it answers for as long as the front end lives.
  - Which work that is depends on the paths that vLLM offers for the model. A generating model generates a token, which
    the server must have counted; others compute an embedding, a score, a class or a pooled output. A model that offers
    none of these, such as one for transcription, passes when it is listed; RV(msg) says then that its answers are not
    proven.
  - A slow start is waited for, long enough for slow storage. One that logs nothing and takes no more GPU memory for
    O(stall_timeout) has stalled. When the proof fails, the former state is put back.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  check_mode:
    support: full
    details: vLLM's own parser is asked in check mode, too; it starts nothing.
  diff_mode:
    support: full
requirements:
  - An environment with vLLM on the host (O(venv)).
options:
  name:
    description: Name of the instance, letters, digits, C(_) and C(.). The unit is C(vllm@NAME.service).
    type: str
    required: true
  state:
    description:
      - V(present) brings the instance to its declared state, running.
      - V(absent) stops and disables it and removes its files. Environment, user and model stay.
    type: str
    choices: [present, absent]
    default: present
  enabled:
    description: Whether the instance starts at boot.
    type: bool
    default: true
  venv:
    description:
      - The Python environment with vLLM. A link is followed, and the unit names what it leads to; a switch of the link
        takes effect with the next run of this module. Needed with O(state=present).
    type: path
  user:
    description: User that it runs as, made with the home C(/var/lib/USER) when it is not there.
    type: str
    default: vllm
  model:
    description: Directory of the model on the host, or its name on the hub. Needed with O(state=present).
    type: str
  served_model_name:
    description: Names under which clients ask for the model. Left out, it is O(model).
    type: list
    elements: str
  revision:
    description: Branch, tag or commit of a model from the hub.
    type: str
  download_dir:
    description: Where models from the hub are kept. Left out, in the home of O(user).
    type: path
  load_format:
    description: How the weights are read, as vLLM names it, such as V(safetensors), V(dummy).
    type: str
  trust_remote_code:
    description: Whether code that comes with the model may run.
    type: bool
  chat_template:
    description: File on the host with another chat template than the model's.
    type: path
  dtype:
    description: Type of weights and computing. Left out, as the model has it, and half of it for float32.
    type: str
    choices: [auto, half, float16, bfloat16, float, float32]
  quantization:
    description: How the weights are quantised, as vLLM names it. Left out, as the model says.
    type: str
  max_model_len:
    description:
      - Tokens of the longest request with its answer, as V(32768), V(32k) (32000), V(32K) (32768), or V(auto), what
        fits. Left out, what the model was trained for. More than that is refused.
    type: str
  max_num_seqs:
    description: Requests computed at a time.
    type: int
  max_num_batched_tokens:
    description: Tokens computed at a time.
    type: int
  gpu_memory_utilization:
    description:
      - Share of each GPU's whole memory that it takes; vLLM's default is 0.92. So much must be free, or held by this
        instance already.
    type: float
  kv_cache_dtype:
    description: Type of the cache, such as V(fp8). Left out, that of the model.
    type: str
  cpu_offload_gb:
    description: GiB of weights for each GPU that are kept in the host's memory.
    type: float
  enable_prefix_caching:
    description: Whether what prompts begin with alike is computed once.
    type: bool
  enforce_eager:
    description: Whether compilation and CUDA graphs are left out. It starts sooner and serves slower.
    type: bool
  visible_devices:
    description:
      - The GPUs of the instance, as for M(gpufleet.inference.ollama_service). V(all), a list of indexes, UUIDs or PCI
        bus ids, or a policy with keys such as C(count). The process is given indexes in the order of the
        PCI bus, which every version of vLLM understands.
      - V(none) is for a vLLM that runs on the CPU.
    type: raw
    default: all
  share_gpus:
    description:
      - Whether other services that say so, too, may use the same GPUs. The sum of their shares of memory must not be
        more than the whole.
    type: bool
    default: false
  tensor_parallel_size:
    description:
      - GPUs over which each layer is split, or V(auto), as many as the model's heads allow. All chosen GPUs must be
        used.
    type: str
    default: auto
  pipeline_parallel_size:
    description: GPUs over which the layers are dealt out, or V(auto), what O(tensor_parallel_size) leaves.
    type: str
    default: auto
  data_parallel_size:
    description: Copies of the model; V(auto) is one.
    type: str
    default: auto
  host:
    description:
      - Address on which it listens. On one that others reach, an O(api_key) is needed.
    type: str
    default: 127.0.0.1
  port:
    description: Port of its API, 1024 or more. No two instances may have the same.
    type: int
    default: 8000
  ssl_keyfile:
    description: Key for https, with O(ssl_certfile). A file on the host that O(user) can read.
    type: path
  ssl_certfile:
    description: Certificate for https.
    type: path
  api_key:
    description:
      - Key that clients must send. It reaches vLLM as E(VLLM_API_KEY) from a file that root alone reads, and stands in
        no command line, unit, log or result.
      - vLLM asks for it only on paths under C(/v1), C(/v2), C(/inference) and C(/cohere), see O(guard_all_paths).
    type: str
  guard_all_paths:
    description:
      - Whether the key is asked for on every path but O(open_paths), by a small middleware that vLLM loads. Without it
        C(/invocations), which generates, C(/tokenize), C(/metrics) and others answer to anybody.
    type: bool
    default: false
  open_paths:
    description: Paths that need no key with O(guard_all_paths), such as V(/metrics).
    type: list
    elements: str
    default: [/health]
  allow_unauthenticated:
    description: Whether it may listen without a key on an address that others reach.
    type: bool
    default: false
  hf_token:
    description: Token for models from the hub, handed over as a credential of the unit.
    type: str
  shutdown_timeout:
    description:
      - Seconds that vLLM itself gives running requests when it is stopped by anybody (since 0.18). The unit's
        C(TimeoutStopSec=) is 30 more, and its C(KillMode=) is V(mixed), as the workers of a model on several GPUs would
        end at once upon a signal.
    type: int
  nodes:
    description:
      - The hosts that share the model, in the order of their ranks, by vLLM's own serving over several hosts. Each has
        the same GPUs chosen, the same version and the same options. The first serves the API, the others compute only.
        O(tensor_parallel_size) × O(pipeline_parallel_size) must be the GPUs of all of them; left to V(auto), layers are
        split over the GPUs of a host and dealt out to the hosts.
      - Run the module on all of them at a time. They start together; a change is kept when all of them are proven, and
        else all have their former state back. Later, when the process of one ends, those of all do, and start together.
      - The role P(gpufleet.inference.vllm#role) does this, with addresses and variables of the planner.
      - What the hosts say to each other is neither encrypted nor authenticated, and goes over ports that vLLM chooses
        (and O(master_port) and the next one on the first host). Have them in a network of their own.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the host, for messages.
        type: str
        required: true
      address:
        description: Its address, at which the others reach it. It becomes E(VLLM_HOST_IP).
        type: str
        required: true
  node_rank:
    description: Which of O(nodes) this host is.
    type: int
    default: 0
  distributed_executor_backend:
    description:
      - What starts vLLM's processes on the O(nodes). V(mp), vLLM itself, or V(ray), a cluster of Ray that is this
        instance's alone, and part of its unit on every host. Its environment must have the package C(ray).
      - Ray runs code for anybody who reaches its ports, which are open on all addresses. With an O(api_key) its nodes
        ask for a token, which is made of that key and reaches them as a credential (Ray 2.52 and later).
    type: str
    choices: [mp, ray]
    default: mp
  master_port:
    description:
      - Port of the rendezvous on the first of O(nodes); the next one is used, too. With Ray it is that of the cluster,
        and its nodes listen at the third and fourth port after it, the first one also at the fifth.
    type: int
    default: 29500
  restart:
    description: Whether it is restarted and proven also where nothing differs, as another of O(nodes) has to be.
    type: bool
    default: false
  environment:
    description: Further variables of the process, such as E(VLLM_LOGGING_LEVEL). A misspelt E(VLLM_) name is warned of.
    type: dict
    default: {}
  asleep:
    description:
      - What to think of an instance whose engine is asleep, which C(enable-sleep-mode) in O(extra_args) makes possible.
        V(refuse) fails with the verdict V(asleep), as it answers no request; V(accept) passes, and RV(msg) says so.
        Neither wakes or restarts it.
    type: str
    choices: [refuse, accept]
    default: refuse
  extra_args:
    description:
      - Further options of C(vllm serve), without the dashes. A list gives several words, a dictionary JSON. V(false)
        becomes C(--no-NAME), as C(vllm serve) ignores a false in its file. What vLLM's own parser does not accept is
        refused.
    type: dict
    default: {}
  timeout:
    description:
      - Seconds within which it must be up and proven. Left out, 300 and one for every 100 MB of weights.
    type: int
  stall_timeout:
    description: Seconds without a line in the journal and without more GPU memory, after which a start has stalled.
    type: float
    default: 300.0
  token_timeout:
    description: Seconds that the token, embedding, score or class of the proof may take.
    type: float
    default: 120.0
  drain_timeout:
    description: Seconds for which running and waiting requests may end before a restart; V(0) waits for none.
    type: float
    default: 60.0
  release_timeout:
    description: Seconds for which the GPU memory of the former processes is waited for after a stop.
    type: float
    default: 60.0
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
seealso:
  - module: gpufleet.inference.gpu_facts
  - module: gpufleet.inference.inference_endpoint
  - module: gpufleet.inference.systemd_override
"""

EXAMPLES = r"""
- name: Serve on all GPUs of the host, with a key
  gpufleet.inference.vllm_service:
    name: chat
    venv: /opt/gpufleet/vllm/current
    model: /srv/models/llama-3.3-70b
    served_model_name: [chat]
    host: 0.0.0.0
    api_key: "{{ vault_vllm_key }}"
    guard_all_paths: true
  become: true

- name: Two instances on halves of one GPU
  gpufleet.inference.vllm_service:
    name: "{{ item.name }}"
    venv: /opt/gpufleet/vllm/current
    model: "{{ item.model }}"
    port: "{{ item.port }}"
    visible_devices: [0]
    share_gpus: true
    gpu_memory_utilization: 0.45
    extra_args:
      max-loras: 4
  loop:
    - {name: small, model: /srv/models/small, port: 8000}
    - {name: embed, model: /srv/models/embed, port: 8001}
  become: true
"""

RETURN = r"""
msg:
  description: The outcome in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: ok · 4× H200 · TP4 · chat at http://127.0.0.1:8000, 515.2 GiB held · a token in 0.21 s · restart 92.4 s
verdict:
  description:
    - What the proof found. V(ok), or one of V(crash_loop), V(out_of_memory), V(port_taken), V(bad_config),
      V(model_missing), V(stalled), V(not_ready), V(unauthorized), V(asleep), V(not_generated), V(no_progress),
      V(cpu_fallback), V(wrong_gpu), V(vram_missing), V(unproven), V(vram_held),
      V(peer_lost) (another of O(nodes) has ended), or what the M(gpufleet.inference.systemd_override)
      module names.
  returned: when anything was looked at
  type: str
  sample: ok
evidence:
  description: The figures behind the verdict, and the last lines of the journal.
  returned: when anything was looked at
  type: dict
restarted:
  description: Whether the instance was restarted, or would be.
  returned: when anything was looked at
  type: bool
reasons:
  description: Why it was restarted.
  returned: when anything was looked at
  type: list
  elements: str
  sample: ["files that it reads change: /etc/gpufleet/vllm/chat.yaml"]
reloaded:
  description: Whether systemd read its units anew, or would.
  returned: when anything was looked at
  type: bool
rolled_back:
  description: Whether the former state was put back.
  returned: when anything was looked at
  type: bool
downtime_ms:
  description: Milliseconds from the stop of the instance until it was proven, or the former one was back.
  returned: when anything was looked at
  type: int
  sample: 92400
environment:
  description: The declared variables as the running process has them, secrets hidden.
  returned: when anything was looked at
  type: dict
drift:
  description: Variables whose declared value, value on disk and value in the running process differed, with the three.
  returned: when anything was looked at
  type: dict
shadowed:
  description: Declared values that another file overrides, with the file and line.
  returned: when anything was looked at
  type: list
  elements: dict
unit_state:
  description: State of the unit, in the words of systemd.
  returned: when anything was looked at
  type: dict
url:
  description: Where a client on the host reaches it. None where it is not the first of O(nodes).
  returned: success, with O(state=present)
  type: str
  sample: http://127.0.0.1:8000
model:
  description: Name of the model for clients.
  returned: success, with O(state=present)
  type: str
  sample: chat
version:
  description: Version of vLLM, as the environment's packages say.
  returned: success, with O(state=present)
  type: str
  sample: 0.32.0
parallel:
  description: The sizes that were chosen, and why.
  returned: success, with O(state=present)
  type: dict
  sample: {tensor: 4, pipeline: 1, data: 1, why: "4 GPUs, 64 heads split over all of them"}
fit:
  description:
    - What was foretold of each GPU, C(budget_bytes) that vLLM takes, C(weight_bytes), C(request_cache_bytes) for one
      request of the longest context, and about how many C(cache_tokens) find room. Empty without a GPU.
  returned: success, with O(state=present)
  type: dict
gpus:
  description: The declared GPUs.
  returned: success, with O(state=present)
  type: list
  elements: dict
  contains:
    index:
      description: Index, as NVML counts.
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
      description: PCI bus id in the form of sysfs.
      returned: always
      type: str
    held_bytes:
      description: Memory that the unit's own processes hold there.
      returned: always
      type: int
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import service


def argument_spec():
    return dict(
        name=dict(type="str", required=True),
        state=dict(type="str", choices=["present", "absent"], default="present"),
        enabled=dict(type="bool", default=True),
        venv=dict(type="path"),
        user=dict(type="str", default="vllm"),
        model=dict(type="str"),
        served_model_name=dict(type="list", elements="str"),
        revision=dict(type="str"),
        download_dir=dict(type="path"),
        load_format=dict(type="str"),
        trust_remote_code=dict(type="bool"),
        chat_template=dict(type="path"),
        dtype=dict(type="str", choices=["auto", "half", "float16", "bfloat16", "float", "float32"]),
        quantization=dict(type="str"),
        max_model_len=dict(type="str"),
        max_num_seqs=dict(type="int"),
        max_num_batched_tokens=dict(type="int", no_log=False),
        gpu_memory_utilization=dict(type="float"),
        kv_cache_dtype=dict(type="str"),
        cpu_offload_gb=dict(type="float"),
        enable_prefix_caching=dict(type="bool"),
        enforce_eager=dict(type="bool"),
        visible_devices=dict(type="raw", default="all"),
        share_gpus=dict(type="bool", default=False),
        tensor_parallel_size=dict(type="str", default="auto"),
        pipeline_parallel_size=dict(type="str", default="auto"),
        data_parallel_size=dict(type="str", default="auto"),
        host=dict(type="str", default="127.0.0.1"),
        port=dict(type="int", default=8000),
        ssl_keyfile=dict(type="path", no_log=False),
        ssl_certfile=dict(type="path"),
        api_key=dict(type="str", no_log=True),
        guard_all_paths=dict(type="bool", default=False),
        open_paths=dict(type="list", elements="str", default=["/health"]),
        allow_unauthenticated=dict(type="bool", default=False),
        hf_token=dict(type="str", no_log=True),
        shutdown_timeout=dict(type="int"),
        nodes=dict(
            type="list",
            elements="dict",
            options=dict(name=dict(type="str", required=True), address=dict(type="str", required=True)),
        ),
        node_rank=dict(type="int", default=0),
        distributed_executor_backend=dict(type="str", choices=["mp", "ray"], default="mp"),
        master_port=dict(type="int", default=29500),
        restart=dict(type="bool", default=False),
        environment=dict(type="dict", default={}),
        asleep=dict(type="str", choices=["refuse", "accept"], default="refuse"),
        extra_args=dict(type="dict", default={}),
        timeout=dict(type="int"),
        stall_timeout=dict(type="float", default=300.0),
        token_timeout=dict(type="float", default=120.0, no_log=False),
        drain_timeout=dict(type="float", default=60.0),
        release_timeout=dict(type="float", default=60.0),
        facts_timeout=dict(type="float", default=10.0),
    )


def main():
    run(argument_spec(), service.bring, required_if=[("state", "present", ("venv", "model"))])


if __name__ == "__main__":
    main()
