# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of an instance → the variables and arguments of its process. Pure.

llama-server reads nearly every argument from a variable, too. Variables are what can be compared with the running
process, so every option is written as one. An argument takes precedence over its variable: one in a unit that was
written manually stays where it says the same as the inventory, and is removed where it does not.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..serving.variables import plain_variables, secret_variables
from ..toolbox.addresses import host_port, reachable
from ..toolbox.errors import Refused
from ..toolbox.fields import dataclass, field

FILES = ("model", "ssl_key_file", "ssl_cert_file")
HOST, PORT = "127.0.0.1", "8080"
ALL_LAYERS = "999"
"""More than any model has; the word ``all`` is not known to older versions."""


class Setting(NamedTuple):
    option: str
    variable: str
    flags: Tuple[str, ...]
    bare: bool = False
    """The argument has no value."""


SETTINGS = (
    Setting("model", "LLAMA_ARG_MODEL", ("-m", "--model")),
    Setting("alias", "LLAMA_ARG_ALIAS", ("-a", "--alias")),
    Setting("ctx_size", "LLAMA_ARG_CTX_SIZE", ("-c", "--ctx-size")),
    Setting("parallel", "LLAMA_ARG_N_PARALLEL", ("-np", "--parallel")),
    Setting("cache_type_k", "LLAMA_ARG_CACHE_TYPE_K", ("-ctk", "--cache-type-k")),
    Setting("cache_type_v", "LLAMA_ARG_CACHE_TYPE_V", ("-ctv", "--cache-type-v")),
    Setting("n_gpu_layers", "LLAMA_ARG_N_GPU_LAYERS", ("-ngl", "--gpu-layers", "--n-gpu-layers")),
    Setting("split_mode", "LLAMA_ARG_SPLIT_MODE", ("-sm", "--split-mode")),
    Setting("embeddings", "LLAMA_ARG_EMBEDDINGS", ("--embeddings", "--embedding"), bare=True),
    Setting("reranking", "LLAMA_ARG_RERANKING", ("--reranking", "--rerank"), bare=True),
    Setting("host", "LLAMA_ARG_HOST", ("--host",)),
    Setting("port", "LLAMA_ARG_PORT", ("--port",)),
    Setting("api_key", "LLAMA_API_KEY", ("--api-key",)),
    Setting("ssl_key_file", "LLAMA_ARG_SSL_KEY_FILE", ("--ssl-key-file",)),
    Setting("ssl_cert_file", "LLAMA_ARG_SSL_CERT_FILE", ("--ssl-cert-file",)),
    # set by other options: by visible_devices: none, and so that drain_timeout can see the running requests
    Setting("device", "LLAMA_ARG_DEVICE", ("-dev", "--device")),
    Setting("metrics", "LLAMA_ARG_ENDPOINT_METRICS", ("--metrics",), bare=True),
)
_ELSEWHERE = {name: "use the option %s" % row.option for row in SETTINGS for name in (row.variable, *row.flags)}
"""By variable and argument, what to do instead of setting it in ``environment`` or ``extra_args``."""
for _names, _option in (
    (("CUDA_DEVICE_ORDER", "LLAMA_ARG_DEVICE", "-dev", "--device"), "visible_devices"),
    (("--api-key-file", "LLAMA_ARG_API_KEY_FILE"), "api_key"),
    (("--metrics", "LLAMA_ARG_ENDPOINT_METRICS"), "drain_timeout, which needs it"),
):
    _ELSEWHERE.update(dict.fromkeys(_names, "use the option %s" % _option))
_ELSEWHERE["--hf-token"] = "others could read it; use HF_TOKEN in secret_environment"


@dataclass
class Settled:
    """What an instance is to have."""

    values: Dict[str, str]
    """Option to the value in force, whoever sets it."""
    environment: Dict[str, str] = field(default_factory=dict)
    secret_environment: Dict[str, str] = field(default_factory=dict)
    arguments: List[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where a client on the same host reaches it."""
        return url(self.values)

    @property
    def files(self) -> Dict[str, str]:
        """The files that it reads, by option."""
        return {option: self.values[option] for option in FILES if self.values.get(option)}

    @property
    def task(self) -> str:
        """What a model is asked for: a server answers other requests, too, but not usefully."""
        return next((task for task in ("reranking", "embeddings") if self.values.get(task, "0") != "0"), "text")


def url(values: Mapping[str, str]) -> str:
    scheme = "https" if values.get("ssl_cert_file") else "http"
    return "%s://%s" % (scheme, host_port(reachable(values["host"]), int(values["port"])))


def settle(
    options: Mapping[str, Any],
    defaults: Mapping[str, str],
    environment: Mapping[str, str],
    command: Sequence[str],
    visible: Mapping[str, str],
) -> Settled:
    """Turn the options of an instance into what its process is to have.

    :param options: the module's; None is not declared.
    :param defaults: by option, for those that neither the inventory nor the unit sets.
    :param environment: the unit's own variables, without those of our override.
    :param command: the words with which the unit starts the program, where they are to stay.
    :param visible: the variables that give the process its GPUs.
    :raises Refused: llama-server would misread or reject a value.
    """
    given = ((row.option, options.get(row.option)) for row in SETTINGS)
    declared = {
        name: str(int(value) if isinstance(value, bool) else value) for name, value in given if value is not None
    }
    declared["metrics"] = "1"
    theirs = dict(read_environment(environment), **read_arguments(command[1:]))
    declared.update({name: value for name, value in defaults.items() if name not in declared and name not in theirs})
    plain, problems = plain_variables(options["environment"], _ELSEWHERE)
    secrets, more = secret_variables(options["secret_environment"], _ELSEWHERE, options["environment"])
    settled = Settled(dict(theirs, **declared), dict(visible, **plain), secrets, list(command[1:]))
    for row in SETTINGS:
        secret, value = row.option == "api_key", declared.get(row.option)
        if value is None or (read_arguments(settled.arguments).get(row.option) == value and not secret):
            continue
        settled.arguments = _without(settled.arguments, row)
        (settled.secret_environment if secret else settled.environment)[row.variable] = value
    problems += more + _wrong_values(options, settled.values) + _take_arguments(settled, options["extra_args"])
    if problems:
        raise Refused("; ".join(problems))
    return settled


def read_environment(environment: Mapping[str, str]) -> Dict[str, str]:
    """The options that variables set."""
    return {row.option: environment[row.variable] for row in SETTINGS if row.variable in environment}


def read_arguments(words: Sequence[str]) -> Dict[str, str]:
    """The options that the arguments of a command set; of one that is there twice, the last."""
    found: Dict[str, str] = {}
    for word, value in zip(words, [*words[1:], ""]):
        for row in SETTINGS:
            if word in row.flags:
                found[row.option] = "1" if row.bare else value
    return found


def _without(words: Sequence[str], row: Setting) -> List[str]:
    kept, skip = [], False
    for word in words:
        if skip or word in row.flags:
            skip = not skip and not row.bare
        else:
            kept.append(word)
    return kept


def _wrong_values(options: Mapping[str, Any], values: Mapping[str, str]) -> List[str]:
    problems = []
    key, port, layers = options.get("api_key"), options.get("port"), options.get("n_gpu_layers")
    if not values.get("model"):
        problems.append("model: is not set; expected the path of a GGUF file on the host")
    if key is not None and not re.match(r"[\x21-\x2b\x2d-\x7e]{8,}\Z", key):
        problems.append("api_key: expected at least 8 printable ASCII characters without blanks and commas")
    if port is not None and not 1 <= port <= 65535:
        problems.append("port: %d; expected 1 to 65535" % port)
    for option, least in (("ctx_size", 0), ("parallel", 1)):
        if options.get(option) is not None and options[option] < least:
            problems.append("%s: %d; expected %d or more" % (option, options[option], least))
    if layers is not None and not re.match(r"[0-9]+\Z|all\Z|auto\Z", layers):
        problems.append("n_gpu_layers: %r; expected a number of layers, all or auto" % layers)
    if bool(values.get("ssl_key_file")) != bool(values.get("ssl_cert_file")):
        problems.append("ssl_key_file, ssl_cert_file: set both or neither")
    if options.get("embeddings") and options.get("reranking"):
        problems.append("embeddings, reranking: a server does one of the two; reranking includes what it needs")
    if not re.match(r"[A-Za-z0-9.:-]+\Z", values["host"]):
        problems.append("host: %r is not an address; expected such as 127.0.0.1, 0.0.0.0 or ::1" % values["host"])
    return problems


def _take_arguments(settled: Settled, extra: Mapping[str, Any]) -> List[str]:
    problems = []
    for name in sorted(extra):
        flag, value, where = "--" + name.lstrip("-").replace("_", "-"), extra[name], "extra_args.%s" % name
        if flag in _ELSEWHERE:
            problems.append("%s: %s" % (where, _ELSEWHERE[flag]))
        elif value is None or value is False:
            problems.append("%s: %r says nothing; leave it out, or use its opposite (no-...)" % (where, value))
        elif value is True:
            settled.arguments.append(flag)
        else:
            settled.arguments += [flag, *map(str, value if isinstance(value, list) else [value])]
    return problems
