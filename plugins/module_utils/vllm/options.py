# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of vLLM instances. Pure.

What a row is on vLLM's command line or in its environment is in ``settings.py``, under the same name.
"""

from __future__ import annotations

from ..serving.options import ONE_MODEL, VARIABLES, Option, table

OPTIONS = table(
    Option(
        "instances",
        "list",
        """The vLLM instances of the host. Each is a unit C(vllm@NAME.service). An instance that is not in the list is
        left alone.

        An instance takes the options that it leaves out from those next to this one. Its C(environment) is
        merged over O(environment), and its C(secret_environment) over O(secret_environment).

        All instances are checked before the first one is changed. Two that claim the same GPU or port are rejected; the
        error names both. Absent instances go first.""",
        default=[],
        elements="dict",
        suboptions=(
            Option("name", "str", "Name of the instance: letters, digits, C(_) and C(.).", required=True),
            Option(
                "state",
                "str",
                "Overrides O(state) for this instance.",
                choices=("present", "asleep", "stopped", "absent"),
            ),
            *VARIABLES,
            Option(
                "hosts",
                "list",
                """Inventory names of the hosts that share the model, in the order of their ranks. The first one serves
                the API. The instance must be declared for all of them.""",
                elements="str",
                only="role",
            ),
            Option(
                "network",
                "str",
                "The subnet that the C(hosts) use, such as V(10.1.0.0/16). Left out, it is chosen.",
                only="role",
            ),
        ),
        per_host=True,
    ),
    Option(
        "state",
        "str",
        """V(present) configures the instance, enables it, starts it and wakes it.

        V(asleep) does the same, but then puts its engine to sleep (level 1): the weights move to the host's memory, and
        almost all GPU memory is free. Gateways send it no requests, it is not started at boot, as it would start awake,
        and it claims only 3 GiB of each GPU. It needs C(enable-sleep-mode) in O(extra_args) and
        E(VLLM_SERVER_DEV_MODE=1) in O(environment).

        V(stopped) drains the instance, stops it and disables it. All else of it stays.

        V(absent) stops the instance, disables it and removes its files. Its program, user and models stay.""",
        choices=("present", "asleep", "stopped", "absent"),
        default="present",
        per_host=True,
    ),
    Option(
        "visible_devices",
        "raw",
        """The GPUs of the instance: V(all), a list of indexes, UUIDs or PCI bus ids, or a policy. A policy is a
        dictionary with any of the keys C(count), C(min_memory_gib), C(min_free_memory_gib), C(model) (a regular
        expression searched in the GPU's name), C(healthy) (default true) and C(exclude_display). The process gets
        indexes in the order of the PCI bus, which every version of vLLM understands.

        V(none) is for a vLLM that runs on the CPU.

        A GPU that does not exist is rejected before anything is changed. So are an unhealthy GPU under V(all) and a
        policy that selects no GPU.""",
        default="all",
    ),
    Option(
        "share_gpus",
        "bool",
        """Whether other services of this collection may use the same GPUs. They must set this too, and the sum of their
        shares of memory (O(gpu_memory_utilization)) must not exceed the whole. Otherwise a service that claims one of
        these GPUs is rejected before anything is changed; the error names both services.

        The claim is stored in the instance's own drop-in. It counts while the unit exists and is running or
        enabled.""",
        default=False,
    ),
    Option(
        "environment",
        "dict",
        """Further variables of the process, such as E(VLLM_LOGGING_LEVEL). A misspelt E(VLLM_) name causes
        a warning.""",
        default={},
    ),
    Option(
        "venv",
        "path",
        """The Python environment with vLLM. A link is followed, and the unit names its target; if the link is switched,
        the next run applies it.""",
        default="/opt/gpufleet/vllm/current",
    ),
    Option(
        "user",
        "str",
        "User that runs the instance. It is created, with the home C(/var/lib/USER), if it does not exist.",
        default="vllm",
    ),
    Option(
        "model",
        "str",
        """Directory of the model on the host, the name of a downloaded model (one of C(vllm_models) of the role, or of
        C(model_paths) of the module), or its name on the hub. Required for an instance that is present.""",
    ),
    Option(
        "served_model_name",
        "list",
        "Names by which clients request the model. Left out, it is O(model).",
        elements="str",
    ),
    Option("revision", "str", "Branch, tag or commit of a model from the hub."),
    Option("download_dir", "path", "Where models from the hub are stored. Left out, in the home of O(user)."),
    Option(
        "offline",
        "bool",
        """Whether the instance must not fetch anything from the internet: neither from a hub, so its model must be on
        the host (E(HF_HUB_OFFLINE)), nor kernels (E(FLASHINFER_NO_DOWNLOAD)). An environment whose FlashInfer has no
        precompiled kernels causes a warning.""",
        default=False,
    ),
    Option(
        "lora_adapters",
        "dict",
        """LoRA adapters by the names under which clients request them: directories on the host, or names of downloaded
        models. Before a change, each must have a configuration and weights that O(user) can read; after it, each must
        answer a request under its name. C(max-lora-rank) is derived from them unless O(extra_args) sets it.""",
    ),
    Option("load_format", "str", "How the weights are read, by vLLM's names, such as V(safetensors) or V(dummy)."),
    Option("trust_remote_code", "bool", "Whether code that comes with the model may run."),
    Option("chat_template", "path", "File on the host with a chat template that replaces the model's own."),
    Option(
        "dtype",
        "str",
        """Data type of weights and computations. Left out, it is the model's own, or half precision if that
        is float32.""",
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
    ),
    Option(
        "quantization",
        "str",
        "How the weights are quantized, by vLLM's names. Left out, it is what the model declares.",
    ),
    Option(
        "max_model_len",
        "str",
        """Tokens of the longest request including its answer: V(32768), V(32k) (32000), V(32K) (32768), or V(auto) for
        as many as fit. If left out, it is the length that the model was trained for. A length that the model's
        config.json, with C(hf-overrides) in O(extra_args), does not allow is rejected.""",
    ),
    Option("max_num_seqs", "int", "How many requests are computed at the same time."),
    Option("max_num_batched_tokens", "int", "How many tokens are computed at the same time.", no_log=False),
    Option(
        "gpu_memory_utilization",
        "float",
        """Share of each GPU's total memory that the instance uses; vLLM's default is 0.92 (0.9 before 0.20). This much
        must be free, or already in use by this instance.""",
    ),
    Option("kv_cache_dtype", "str", "Data type of the cache, such as V(fp8). Left out, it is that of the model."),
    Option("cpu_offload_gb", "float", "GiB of weights per GPU that are kept in the host's memory."),
    Option("enable_prefix_caching", "bool", "Whether a beginning that several prompts share is computed only once."),
    Option(
        "enforce_eager",
        "bool",
        "Whether to skip compilation and CUDA graphs. The instance then starts sooner and serves more slowly.",
    ),
    Option(
        "tensor_parallel_size",
        "str",
        """Number of GPUs over which each layer is split, or V(auto) for as many as the model's heads allow. All chosen
        GPUs must be used.""",
        default="auto",
    ),
    Option(
        "pipeline_parallel_size",
        "str",
        """Number of stages into which the layers are divided, each on other GPUs, or V(auto) for what
        O(tensor_parallel_size) leaves.""",
        default="auto",
    ),
    Option(
        "data_parallel_size",
        "str",
        """Number of copies of the model; V(auto) is one. Of a mixture of experts, only the attention is copied. Its
        experts are divided among all GPUs: each is split, or with C(enable-expert-parallel) in O(extra_args) stays
        whole.""",
        default="auto",
    ),
    Option(
        "host",
        "str",
        "Address at which the instance listens. An address that other hosts can reach requires an O(api_key).",
        default="127.0.0.1",
    ),
    Option(
        "port",
        "int",
        """Port of the API. It can be below 1024 only with O(user=root). Two instances on a host cannot have the same
        port.""",
        default=8000,
    ),
    Option(
        "ssl_keyfile",
        "path",
        "Key for HTTPS, together with O(ssl_certfile): a file on the host that O(user) can read.",
        no_log=False,
    ),
    Option("ssl_certfile", "path", "Certificate for HTTPS, a file on the host."),
    Option(
        "api_key",
        "str",
        """Key that clients must send. It is passed to vLLM as E(VLLM_API_KEY) from a file that only root can read, and
        appears in no command line, unit, log or result.

        vLLM asks for it only under the path C(/v1); since 0.22 also under C(/v2) and C(/inference), since 0.27 under
        C(/cohere). See O(guard_all_paths).""",
        no_log=True,
    ),
    Option(
        "guard_all_paths",
        "bool",
        """Whether the key is required on every path except O(open_paths). A small middleware, which vLLM loads, checks
        it. Without it, C(/invocations), which generates, C(/tokenize), C(/metrics) and others answer anyone.""",
        default=False,
    ),
    Option(
        "client_keys",
        "dict",
        """Further keys, by the names of clients. Requires O(guard_all_paths), because vLLM itself knows only one key. A
        change restarts the instance; the role P(gpufleet.inference.gateway#role) changes keys without a restart.""",
        no_log=True,
    ),
    Option(
        "open_paths",
        "list",
        "Paths that need no key with O(guard_all_paths), such as V(/metrics).",
        default=["/health"],
        elements="str",
    ),
    Option("hf_token", "str", "Token for models from the hub. It is passed as a credential of the unit.", no_log=True),
    Option(
        "shutdown_timeout",
        "int",
        """Seconds that vLLM gives running requests when the instance is stopped by anyone (since vLLM 0.18). The unit's
        C(TimeoutStopSec=) is 30 seconds longer, and its C(KillMode=) is V(mixed), because the workers of a model on
        several GPUs would end at once on a signal.""",
    ),
    Option(
        "nodes",
        "list",
        """The hosts that share the model, in the order of their ranks, with vLLM's own multi-node serving. All of them
        must have the same version and options, and the same number of chosen GPUs. The first host serves the API; the
        others only compute. O(tensor_parallel_size) × O(pipeline_parallel_size) × O(data_parallel_size) must be the
        number of GPUs of all hosts together. With V(auto), each layer is split over the GPUs of one host, and the
        layers are divided among the hosts. With O(data_parallel_size), each host has the same number of copies.

        Run the module on all of them at the same time. They start together. A change is kept only if all of them are
        verified; otherwise all are rolled back. If the process of one host ends later, all end and start again
        together.

        The role P(gpufleet.inference.vllm#role) does this, with addresses and variables from its planner.

        The traffic between the hosts is neither encrypted nor authenticated. It uses O(master_port) and the next two
        ports on the first host, and other ports that vLLM chooses. Use a separate network for it.""",
        elements="dict",
        suboptions=(
            Option("name", "str", "Name of the host, for messages.", required=True),
            Option(
                "address",
                "str",
                "Address at which the other hosts reach it. It is passed as E(VLLM_HOST_IP).",
                required=True,
            ),
        ),
        only="module",
    ),
    Option("node_rank", "int", "The rank of this host in O(nodes).", default=0, only="module"),
    Option(
        "master_port",
        "int",
        "Port of the rendezvous on the first of the hosts of one model; the next two ports are used too.",
        default=29500,
    ),
    Option(
        "restart",
        "bool",
        "Whether to restart and verify the instance even if nothing changes, because another of the O(nodes) changes.",
        default=False,
        only="module",
    ),
    Option(
        "asleep",
        "str",
        """What to do about an instance that is V(present), but whose engine is asleep, which C(enable-sleep-mode) in
        O(extra_args) makes possible. V(wake) wakes it; without E(VLLM_SERVER_DEV_MODE), or from level 2, it restarts
        it. V(accept) leaves it to another program that puts it to sleep and wakes it.""",
        choices=("wake", "accept"),
        default="wake",
    ),
    Option(
        "extra_args",
        "dict",
        """Further options of C(vllm serve), without the dashes. A list becomes several words, a dictionary becomes
        JSON, and V(false) becomes C(--no-NAME), because C(vllm serve) ignores a false in its file. An option that
        vLLM's own parser does not accept is rejected.""",
        default={},
    ),
    *ONE_MODEL,
    without=("name", "main"),
)
"""Options of the module ``vllm_service``."""
