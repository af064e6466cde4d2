# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which servers serve which model, from what the inventory declares of the engines. Pure."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..module_utils.llama_server import settings as llama_server
from ..module_utils.ollama.settings import listen_address
from ..module_utils.toolbox.addresses import is_loopback
from ..module_utils.vllm import settings as vllm

Pools = Dict[str, List[Dict[str, Any]]]
EVERYWHERE = ("", "0.0.0.0", "::")


class Served(NamedTuple):
    """One service and the models that it serves."""

    engine: str
    unit: str
    models: Sequence[str]
    listens: str
    port: int
    api: str = "openai"
    max_concurrent: Optional[int] = None
    tls: bool = False
    key: str = ""
    gpus: Any = None
    """Its ``visible_devices``."""
    metrics: Optional[str] = None
    """The key that its ``/metrics`` asks for; empty if it asks for none, None if there are no metrics."""


def pools(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], gateway: str = ""
) -> Tuple[Pools, List[str]]:
    """The servers of each model.

    :param hostvars: the variables of each host.
    :param groups: the hosts of each group: ``ollama``, ``vllm`` and ``llama_server`` are looked at.
    :param gateway: the host that asks, which also reaches what listens on its own loopback address.
    :returns: model → its servers, in the order of the inventory; and a sentence for each service that is left out.
    """
    found: Pools = {}
    left_out: List[str] = []
    for host, service, address in services(hostvars, groups, gateway):
        if address is None:
            left_out.append(
                "%s on %s listens on %s, where no gateway reaches it" % (service.unit, host, service.listens)
            )
            continue
        for model in service.models:
            found.setdefault(model, []).append(_row(service, host, address))
    return found, left_out


def services(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], asking: str
) -> Iterator[Tuple[str, Served, Optional[str]]]:
    """Every declared service: its host, itself, and where the host that asks reaches it, or None."""
    for group, declared in ENGINES.items():
        for host in groups.get(group, ()):
            for service in declared(host, hostvars[host]):
                yield host, service, _address(service, host, hostvars[host], asking)


def _address(service: Served, host: str, variables: Mapping[str, Any], asking: str) -> Optional[str]:
    """Where a host reaches a service; None where it does not."""
    if is_loopback(service.listens):
        return "127.0.0.1" if host == asking else None
    if service.listens not in EVERYWHERE:
        return service.listens
    return address_of(host, variables)


def address_of(host: str, variables: Mapping[str, Any]) -> str:
    """Where the other hosts reach a host."""
    return str(variables.get("gateway_address") or variables.get("ansible_host") or host)


def _row(service: Served, host: str, address: str) -> Dict[str, Any]:
    return {
        "host": host,
        "address": address,
        "port": service.port,
        "engine": service.engine,
        "unit": service.unit,
        "api": service.api,
        "max_concurrent": service.max_concurrent,
        "tls": service.tls,
        "key": service.key,
    }


def _instances(variables: Mapping[str, Any], prefix: str, unit: str) -> Iterator[Tuple[str, Callable[..., Any]]]:
    """The units of an engine that are present, and what each of them has declared by an option's name."""
    name = str(variables.get(prefix + "_name") or unit)
    name = name[: -len(".service")] if name.endswith(".service") else name
    given = variables.get(prefix + "_instances") or []
    for instance in given or [{}]:

        def option(option: str, default: Any = None, instance: Mapping[str, Any] = instance) -> Any:
            value = instance.get(option)
            value = variables.get("%s_%s" % (prefix, option)) if value is None else value
            return default if value is None else value

        if option("state", "present") in ("present", "asleep"):
            yield ("%s@%s" % (name, instance["name"]) if given else name), option


def _ollama(host: str, variables: Mapping[str, Any]) -> Iterator[Served]:
    """The role downloads models for one unit; others that use the same store have them as well."""
    models = [
        item if isinstance(item, str) else item["name"] for item in variables.get("ollama_models") or [] if _there(item)
    ]
    units = list(_instances(variables, "ollama", "ollama"))
    home = variables.get("ollama_models_unit") or (units[0][0] if units else "")
    store = next((option("models_dir") for unit, option in units if unit == home), None)
    for unit, option in units:
        if unit == home or (store and option("models_dir") == store):
            address, port = listen_address(option("host", "127.0.0.1"))
            limit, gpus = int(option("num_parallel", 1)), option("visible_devices")
            yield Served("ollama", unit, models, address, port, "both", limit, gpus=gpus)


def _there(item: Any) -> bool:
    return isinstance(item, str) or item.get("state", "present") in ("present", "loaded")


def _vllm(host: str, variables: Mapping[str, Any]) -> Iterator[Served]:
    if not variables.get("vllm_instances"):
        return
    for unit, option in _instances(variables, "vllm", "vllm"):
        hosts = option("hosts", [])
        if hosts and host != hosts[0]:  # only the first of the hosts that share a model serves it
            continue
        models = [*(option("served_model_name") or [option("model")]), *(option("lora_adapters") or {})]
        key = str(option("api_key", ""))
        guarded = option("guard_all_paths", False) and "/metrics" not in option("open_paths", [])
        yield Served(
            "vllm",
            unit,
            [str(model) for model in models if model],
            str(option("host", vllm.HOST)),
            int(option("port", vllm.PORT)),
            max_concurrent=option("max_num_seqs"),
            gpus=option("visible_devices", "all"),
            tls=bool(option("ssl_certfile")),
            key=key,
            metrics=key if guarded else "",
        )


def _llama_server(host: str, variables: Mapping[str, Any]) -> Iterator[Served]:
    paths = [model["name"] for model in variables.get("llama_server_models") or []]
    for unit, option in _instances(variables, "llama_server", "llama-server"):
        model = str(option("model", ""))
        own = model if model in paths else unit.rpartition("@")[2]
        yield Served(
            "llama_server",
            unit,
            [name for name in str(option("alias", own)).split(",") if name],
            str(option("host", llama_server.HOST)),
            int(option("port", llama_server.PORT)),
            max_concurrent=option("parallel"),
            gpus=option("visible_devices"),
            tls=bool(option("ssl_cert_file")),
            key=str(option("api_key", "")),
            metrics=str(option("api_key", "")),
        )


ENGINES = {"ollama": _ollama, "vllm": _vllm, "llama_server": _llama_server}
"""Group of the inventory to what its hosts serve."""
