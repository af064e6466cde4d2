# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of an instance → vLLM's YAML file and its environment. Pure.

vLLM's own rules for the file: a key is a long option without dashes; true gives the option alone; a list gives several
words; null would be the text ``None``. What some versions misread is written so that all read it
(tests/unit/fixtures/vllm/parser.json): a false, which ``vllm serve`` drops without a word, as ``no-KEY: true``; a
mapping as JSON text; a list of one element as that element.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ..hf_model.parallel import Parallel
from ..serving.variables import plain_variables, secret_variables
from ..toolbox.addresses import host_port, is_loopback, reachable
from ..toolbox.errors import Refused
from ..toolbox.fields import dataclass, field
from . import releases
from .adapters import LORA_RANK, Adapter, rank_limit

PORT = 8000
HOST = "127.0.0.1"
GUARD = "gpufleet_guard"
"""Name of the module whose class ``Guard`` asks for the key on every path."""

FLAGS = (
    *("model", "served_model_name", "host", "port", "revision", "download_dir", "load_format", "trust_remote_code"),
    *("chat_template", "dtype", "quantization", "max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    *("gpu_memory_utilization", "kv_cache_dtype", "cpu_offload_gb", "enable_prefix_caching", "enforce_eager"),
    *("ssl_keyfile", "ssl_certfile", "shutdown_timeout"),
)
"""Options that vLLM's command line has under the same name, with dashes."""

_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_ELSEWHERE = {
    "api-key": "it would stand in the file, and older versions log it; use api_key",
    "hf-token": "it would stand in the file; use hf_token",
    "config": "the file itself is written here",
    "middleware": "it is used by guard_all_paths; leave that out to use your own",
    "uds": "the proof and the ledger need a port; a proxy may offer a socket",
}
"""Options that ``extra_args`` must not hold, and why."""
_COPIES = tuple(
    "data-parallel-" + name for name in ("hybrid-lb", "external-lb", "size-local", "rank", "start-rank", "address")
)
"""Options for another division of the requests among hosts than the one that is written; vLLM infers the rest of it."""
_SECRETS = {"VLLM_API_KEY": "api_key", "HF_TOKEN": "hf_token", "HUGGING_FACE_HUB_TOKEN": "hf_token"}
_OURS = {
    "CUDA_VISIBLE_DEVICES": "visible_devices",
    "CUDA_DEVICE_ORDER": "visible_devices",
    "HF_TOKEN_PATH": "hf_token",
    "PYTHONPATH": "guard_all_paths",
}
_NOT_HERE = {name: "use %s" % option for name, option in _SECRETS.items()}
_NOT_HERE.update({name: "is set by %s; leave it out here" % option for name, option in _OURS.items()})
"""By the name of a variable, what to do instead of setting it."""
_KEY = re.compile(r"[\x21-\x7e]{8,}\Z")
OFFLINE = {"HF_HUB_OFFLINE": "1", "FLASHINFER_NO_DOWNLOAD": "1"}
"""What keeps vLLM, and the libraries that it uses, from fetching models and kernels."""
_SCALES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass
class Declared:
    """What an instance is to have."""

    config: Dict[str, Any] = field(default_factory=dict)
    environment: Dict[str, str] = field(default_factory=dict)
    secret_environment: Dict[str, str] = field(default_factory=dict)
    credentials: Dict[str, str] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)
    addresses: List[str] = field(default_factory=list)
    """Of the hosts that share the model, by rank; none for an instance of one host."""
    rank: int = 0
    """Which of these hosts this is."""

    @property
    def served(self) -> str:
        """The name that clients use."""
        names = self.config.get("served-model-name") or self.config["model"]
        return str(names[0] if isinstance(names, list) else names)

    @property
    def port(self) -> int:
        return int(self.config["port"])

    @property
    def admin(self) -> bool:
        """Whether it has the paths that control the server, ``/sleep`` and ``/wake_up`` among them."""
        return self.environment.get("VLLM_SERVER_DEV_MODE") == "1"

    @property
    def url(self) -> str:
        """Where a client on the same host finds it."""
        scheme = "https" if "ssl-certfile" in self.config else "http"
        return "%s://%s" % (scheme, host_port(reachable(str(self.config["host"])), self.port))


def declare(
    options: Mapping[str, Any],
    parallel: Parallel,
    visible: Optional[str],
    release: releases.Release = (),
    adapters: Sequence[Adapter] = (),
) -> Declared:
    """Turn options into the file and the environment.

    :param options: the module's options; absent and None mean: not declared.
    :param parallel: the sizes that were chosen; a size of 1 is vLLM's default and is left out.
    :param visible: value of CUDA_VISIBLE_DEVICES; None where the instance uses no GPU.
    :param release: of vLLM.
    :param adapters: LoRA adapters to be served with the model.
    :raises Refused: vLLM would misread or refuse values.
    """
    declared = Declared()
    problems: List[str] = []
    given = dict(options, host=options.get("host") or HOST, port=options.get("port") or PORT)
    for option in FLAGS:
        if given.get(option) is not None:
            _put(declared.config, _flag(option), given[option])
    for option, size in zip(_SIZES, (parallel.tensor, parallel.pipeline, parallel.data)):
        if size != 1:
            declared.config[_flag(option)] = size
    nodes, rank = options.get("nodes") or (), options.get("node_rank") or 0
    if nodes:
        problems += _take_nodes(declared, options, nodes, rank)
    problems += _wrong_values(given)
    problems += _take_adapters(declared, adapters, extra(options, "max-lora-rank"))
    problems += _take_extra(declared, options.get("extra_args") or {})
    problems += _take_environment(declared, options)
    if visible is not None:
        declared.environment.update(CUDA_VISIBLE_DEVICES=visible, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    declared.environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    if options.get("offline"):
        declared.environment.update({**OFFLINE, **declared.environment})
    key, token = options.get("api_key"), options.get("hf_token")
    if key is not None:
        if not _KEY.match(key):
            problems.append("api_key: expected at least 8 ASCII characters without blanks")
        declared.secret_environment["VLLM_API_KEY"] = key
    if token is not None:
        declared.credentials["hf_token"] = token
    problems += _take_sleep(declared, options)
    problems += _take_client_keys(declared, options)
    if options.get("guard_all_paths"):
        if key is None:
            problems.append("guard_all_paths: there is no api_key that it could ask for")
        if {**declared.secret_environment, **declared.environment}.get("VLLM_USE_RUST_FRONTEND", "0") != "0":
            problems.append("guard_all_paths: it cannot run in the front end of VLLM_USE_RUST_FRONTEND; leave one out")
        declared.config["middleware"] = "%s.Guard" % GUARD
        declared.environment["GPUFLEET_OPEN_PATHS"] = ",".join(options.get("open_paths") or ())
        if declared.admin:
            declared.environment["GPUFLEET_LOCAL_ADMIN"] = "1"
    for flag, value in declared.config.items():
        if isinstance(value, list) and not releases.lists_are_read(release):
            problems.append("%s: this vLLM misreads a list in its file; give one value, or use 0.10.2 or newer" % flag)
    if problems:
        raise Refused("; ".join(problems))
    return declared


def render(config: Mapping[str, Any]) -> str:
    """The file's text: each value as JSON, which is YAML."""
    lines = ["%s: %s\n" % (key, json.dumps(config[key], ensure_ascii=False)) for key in sorted(config)]
    head = "# Written by the Ansible collection gpufleet.inference, which replaces this file on its next run.\n"
    return head + "".join(lines)


def read_back(text: str) -> Dict[str, Any]:
    """The configuration in a text that render() gave; nothing of one by another hand."""
    found: Dict[str, Any] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            try:
                found[key] = json.loads(value)
            except ValueError:
                return {}
    return found if "host" in found and "port" in found else {}


def tokens(value: Any) -> Optional[int]:
    """A number of tokens as vLLM reads it (``32768``, ``32k``, ``32K``); None for ``auto``.

    :raises ValueError: vLLM does not read it.
    """
    text = str(value).strip()
    if text.lower() == "auto" or text == "-1":
        return None
    found = re.match(r"([0-9]+)(\.[0-9]+)?([kmgtKMGT])?\Z", text)
    if not found or (found.group(2) and (found.group(3) or "").lower() != found.group(3)):
        raise ValueError(
            "%r is not a number of tokens; expected for example 32768, 32k (32000), 32K (32768), 1.5k, or auto"
            % (value,)
        )
    return int(float(found.group(1) + (found.group(2) or "")) * _SCALES.get(found.group(3), 1))


def _wrong_values(given: Mapping[str, Any]) -> List[str]:
    problems = []
    port, share = int(given["port"]), given.get("gpu_memory_utilization")
    if not 1 <= port <= 65535:
        problems.append("port: %d; expected 1 to 65535" % port)
    elif port < 1024 and given.get("user") != "root":
        problems.append("port: %d; only root may listen below 1024" % port)
    if share is not None and not 0 < share <= 1:
        problems.append(
            "gpu_memory_utilization: %.4g is not a share of a GPU's memory; expected more than 0 and at most 1" % share
        )
    for option in ("max_num_seqs", "max_num_batched_tokens"):
        if given.get(option) is not None and given[option] < 1:
            problems.append("%s: %d; expected 1 or more" % (option, given[option]))
    if given.get("max_model_len") is not None:
        try:
            tokens(given["max_model_len"])
        except ValueError as error:
            problems.append("max_model_len: %s" % error)
    if not re.match(r"[A-Za-z0-9.:-]+\Z", str(given["host"])):
        problems.append("host: %r is not an address" % given["host"])
    if not given.get("model"):
        problems.append("model: is not given; vLLM would serve a small model of its own choice")
    if bool(given.get("ssl_keyfile")) != bool(given.get("ssl_certfile")):
        problems.append("ssl_keyfile, ssl_certfile: set both, or neither")
    if (given.get("shutdown_timeout") or 0) < 0:
        problems.append("shutdown_timeout: %d; expected 0 or more seconds" % given["shutdown_timeout"])
    return problems


def _take_nodes(
    declared: Declared, options: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], rank: int
) -> List[str]:
    """What makes one server of several hosts; those but the first serve no API."""
    if len(nodes) < 2 or not 0 <= rank < len(nodes):
        return ["nodes: %d nodes, of which this is node_rank %d; expected 2 or more" % (len(nodes), rank)]
    names = [node.get("name") for node in nodes]
    bad = [
        node for node in nodes if not all(re.match(r"[\w.:-]+\Z", str(node.get(key))) for key in ("name", "address"))
    ]
    if bad or len(set(names)) != len(names):
        return ["nodes: %r; expected each with a name of its own and an address" % (list(bad or names),)]
    declared.addresses, declared.rank = [node["address"] for node in nodes], rank
    declared.config.update({"distributed-executor-backend": "mp", "nnodes": len(nodes), "node-rank": rank})
    declared.config.update({"master-addr": declared.addresses[0], "master-port": int(options["master_port"])})
    if declared.config.get("data-parallel-size", 1) > 1:  # vLLM's own default would be the same for each instance
        declared.config["data-parallel-rpc-port"] = int(options["master_port"]) + 2
    if rank:
        declared.config["headless"] = True
    declared.environment["VLLM_HOST_IP"] = declared.addresses[rank]
    return []


def _take_adapters(declared: Declared, adapters: Sequence[Adapter], limit: Any) -> List[str]:
    """:param limit: the highest rank, where it is declared."""
    if not adapters:
        return []
    _put(declared.config, "enable-lora", True)
    _put(declared.config, "lora-modules", [{"name": adapter.name, "path": adapter.path} for adapter in adapters])
    needed = rank_limit(adapters)
    if limit is None and needed > LORA_RANK:
        declared.config["max-lora-rank"] = needed
    served = declared.config.get("served-model-name") or declared.config.get("model")
    problems = [
        "lora_adapters.%s: this is the name of the model itself; choose another" % adapter.name
        for adapter in adapters
        if adapter.name in (served if isinstance(served, list) else [served])
    ]
    if isinstance(limit, int):
        problems += [
            "lora_adapters.%s: its rank is %d, but extra_args.max-lora-rank is %d; leave that out, or set %d"
            % (adapter.name, adapter.rank, limit, needed)
            for adapter in adapters
            if adapter.rank > limit
        ]
    return problems


def definition(declared: Declared, version: str) -> str:
    """What all nodes of a model must have in common, as a few digits."""
    import hashlib

    own = ("node-rank", "headless")
    shared = {key: value for key, value in declared.config.items() if key not in own}
    text = json.dumps([version, declared.addresses, shared], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def extra(options: Mapping[str, Any], flag: str) -> Any:
    """The value of an option in ``extra_args``, however it is spelled there; None if it is left out.

    One whose value is JSON is a mapping: ``{"a": {"b": 1}}``, also as text or as the dotted key ``FLAG.a.b``.
    """
    found: Any = None
    for name, value in sorted((options.get("extra_args") or {}).items()):
        first, _dot, rest = _canonical(name).partition(".")
        if first != flag:
            continue
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:  # vLLM's parser will say so
                continue
        for key in reversed(rest.split(".") if rest else []):
            value = {key: value}
        found = _joined(found, value)
    return found


def _joined(first: Any, second: Any) -> Any:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return {**first, **{key: _joined(first.get(key), value) for key, value in second.items()}}


def _canonical(name: Any) -> str:
    """A key of ``extra_args`` as vLLM's own option, which has dashes for underscores, though only before a dot."""
    first, dot, rest = str(name).lstrip("-").partition(".")
    return first.replace("_", "-") + dot + rest


def _flag(option: str) -> str:
    return option.replace("_", "-")


def _put(config: Dict[str, Any], flag: str, value: Any) -> None:
    """Add an option in the spelling that takes effect in every version."""
    if isinstance(value, bool) and "." in flag:  # part of an option whose value is JSON
        config[flag] = json.dumps(value)
    elif value is False:
        config["no-" + flag] = True
    elif isinstance(value, list):
        words = [_word(one) for one in value]
        config[flag] = words[0] if len(words) == 1 else words
    else:
        config[flag] = _word(value)


def _word(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, dict) else value


def _take_extra(declared: Declared, extra: Mapping[str, Any]) -> List[str]:
    problems = []
    typed = {_flag(option): option for option in FLAGS + _SIZES}
    if "lora-modules" in declared.config:
        typed.update({"lora-modules": "lora_adapters", "enable-lora": "lora_adapters"})
    for name in sorted(extra):
        flag = _canonical(name)
        where = "extra_args.%s" % name
        negative = flag.startswith("no-")
        bare = flag[3:] if negative else flag
        if bare in typed:
            problems.append("%s: use the option %s%s" % (where, typed[bare], ": false" if negative else ""))
        elif bare in _ELSEWHERE:
            problems.append("%s: %s" % (where, _ELSEWHERE[bare]))
        elif declared.addresses and bare in (*_COPIES, "enable-elastic-ep"):
            problems.append(
                "%s: is not supported with hosts, of which the first divides the requests among all copies; for an API "
                "on each host, declare an instance without hosts there" % where
            )
        elif negative and extra[name] is False:
            problems.append("%s: says no twice; write %s: true" % (where, bare))
        elif not re.match(r"[a-z][a-z0-9-]*(\.[A-Za-z0-9._-]+)?\Z", flag):
            problems.append("%s: is not the name of an option, such as max-loras" % where)
        elif extra[name] is None:
            problems.append("%s: has no value, which vLLM would take for the text None; leave it out" % where)
        elif bare in declared.config or "no-" + bare in declared.config:
            problems.append("%s: is given twice" % where)
        else:
            _put(declared.config, flag, extra[name])
    return problems


def _take_environment(declared: Declared, options: Mapping[str, Any]) -> List[str]:
    plain, problems = plain_variables(options.get("environment") or {}, _NOT_HERE)
    secret, more = secret_variables(options.get("secret_environment") or {}, _NOT_HERE, plain)
    declared.environment.update(plain)
    declared.secret_environment.update(secret)
    if "VLLM_PORT" in plain:
        declared.warnings.append("environment.VLLM_PORT: is not the API's port, but vLLM's first internal one")
    return problems + more


def _take_sleep(declared: Declared, options: Mapping[str, Any]) -> List[str]:
    able, asleep = declared.config.get("enable-sleep-mode"), options.get("state") == "asleep"
    problems = []
    if declared.admin and not options.get("guard_all_paths"):
        declared.warnings.append(
            "environment.VLLM_SERVER_DEV_MODE: opens paths that change the server and ask for no key; set "
            "guard_all_paths: true"
        )
    if options.get("asleep") == "accept" and not able:
        problems.append("asleep: it cannot sleep without extra_args: {enable-sleep-mode: true}")
    if asleep and not (able and declared.admin):
        problems.append(
            "state: asleep needs extra_args: {enable-sleep-mode: true} and environment: {VLLM_SERVER_DEV_MODE: '1'}"
        )
    if asleep and options.get("nodes"):
        problems.append("state: an instance on several hosts cannot be put to sleep; use stopped")
    if asleep and not is_loopback(str(declared.config["host"])) and not options.get("guard_all_paths"):
        problems.append("state: others could reach the paths that wake it; set guard_all_paths: true")
    return problems


def _take_client_keys(declared: Declared, options: Mapping[str, Any]) -> List[str]:
    """Keys besides the API key, which only our own guard asks for."""
    keys = options.get("client_keys") or {}
    if not keys:
        return []
    if not options.get("guard_all_paths"):
        return ["client_keys: vLLM itself knows one key; set guard_all_paths: true"]
    problems, seen = [], {options.get("api_key"): "api_key"}
    for name, key in sorted(keys.items()):
        if not isinstance(key, str) or not _KEY.match(key):
            problems.append("client_keys.%s: expected at least 8 ASCII characters without blanks" % name)
        elif key in seen:
            problems.append("client_keys.%s: is also the key of %s; give each client its own" % (name, seen[key]))
        else:
            seen[key] = str(name)
    if not problems:
        declared.secret_environment["GPUFLEET_CLIENT_KEYS"] = " ".join(keys[name] for name in sorted(keys))
    return problems
