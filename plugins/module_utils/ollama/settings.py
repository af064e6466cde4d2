# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Typed options of Ollama in, environment variables out. Pure.

Ollama never refuses a value: what it cannot read it replaces with a default, mostly silently. So every value is read
here by the server's own rules (``envconfig/config.go`` of Ollama 0.32.15) before anything is touched, and what the
server will say it understood is predicted for the proof.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ..serving.variables import MAY_BE_SECRET, may_be_secret, secret_variables
from ..toolbox import values
from ..toolbox.addresses import reachable
from ..toolbox.durations import FOREVER, go_duration, parse_go_duration
from ..toolbox.errors import Refused
from ..toolbox.fields import dataclass, field

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11434

_UINT64 = (1 << 64) - 1
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")

KV_CACHE_TYPES = ("f16", "q8_0", "q4_0", "f32", "bf16", "q4_1", "iq4_nl", "q5_0", "q5_1")
LOG_LEVELS = ("info", "debug", "trace")


@dataclass
class Declared:
    """What is asked of one Ollama service."""

    environment: Dict[str, str] = field(default_factory=dict)
    """Variable to value, as the process shall have it."""
    secret_environment: Dict[str, str] = field(default_factory=dict)
    effective: Dict[str, str] = field(default_factory=dict)
    """Variable to value as the server's own start log must show it; variables that it does not log are left out."""
    warnings: List[str] = field(default_factory=list)


class Reading(NamedTuple):
    """One value as it is written into the environment, and as the server logs what it read."""

    text: str
    logged: Optional[str]


# --- Kinds of values: each takes what a person wrote and gives a Reading, or raises ValueError with the reason.


def boolean(value: Any) -> Reading:
    """A Go bool. Ollama takes every other text for *true*: ``off`` and ``no`` would switch a thing on."""
    if isinstance(value, bool):
        return Reading("1" if value else "0", "true" if value else "false")
    text = _trimmed(value)
    if text in _TRUE:
        return Reading(text, "true")
    if text in _FALSE:
        return Reading(text, "false")
    raise ValueError("Ollama reads %r as true, whatever it says; write true or false" % text)


def boolean_as_written(value: Any) -> Reading:
    """A Go bool that the server logs as it was written (OLLAMA_IGPU_ENABLE)."""
    text = boolean(value).text
    return Reading(text, text)


def unsigned(least: int = 0) -> Callable[[Any], Reading]:
    """A whole number, ``least`` or more; Ollama replaces anything else with its default."""

    def read(value: Any) -> Reading:
        text = _trimmed(value)
        if not re.match(r"[0-9]+\Z", text):
            raise ValueError("%r is not a whole number without sign and unit; Ollama would use its default" % text)
        number = int(text)
        if not least <= number <= _UINT64:
            raise ValueError("%s is out of range; expected %d or more" % (text, least))
        return Reading(text, str(number))

    return read


def keep_alive(value: Any) -> Reading:
    """A duration or a number of seconds; negative keeps models loaded indefinitely, 0 unloads them at once."""
    nanoseconds = _duration(value)
    return Reading(_trimmed(value), go_duration(FOREVER if nanoseconds < 0 else nanoseconds))


def load_timeout(value: Any) -> Reading:
    """A duration or a number of seconds; 0 and negative mean no limit."""
    nanoseconds = _duration(value)
    return Reading(_trimmed(value), go_duration(FOREVER if nanoseconds <= 0 else nanoseconds))


def size(value: Any) -> Reading:
    """A size with its unit (``512MiB``, ``1.5GB``), or bytes; passed to Ollama in bytes, the only unit it reads."""
    number = str(_bytes(value))
    return Reading(number, number)


def size_in_mib(value: Any) -> Reading:
    """The same, passed in MiB, as llama.cpp wants it; a bare number is MiB there."""
    text = _trimmed(value)
    mib = int(text) if re.match(r"[0-9]+\Z", text) else _bytes(text) // (1 << 20)
    return Reading(str(mib), str(mib))


def plain_bytes(value: Any) -> Reading:
    """A number of bytes in the extra environment, where nothing is converted."""
    text = _trimmed(value)
    if not re.match(r"[0-9]+\Z", text):
        raise ValueError("%r is not a number of bytes; Ollama reads no units and would use 0" % text)
    return unsigned()(text)


def host(value: Any) -> Reading:
    """Where the server listens: ``ADDRESS``, ``ADDRESS:PORT``, ``:PORT``, IPv6 in brackets."""
    address, port = listen_address(value)
    shown = "[%s]" % address if ":" in address else address
    return Reading(_trimmed(value), "http://%s:%d" % (shown, port))


def path(value: Any) -> Reading:
    text = _trimmed(value)
    if not text.startswith("/"):
        raise ValueError("%r is not an absolute path" % text)
    return Reading(text, text)


def text(value: Any) -> Reading:
    """Any text; but Ollama strips blanks and quotes around it."""
    trimmed = _trimmed(value)
    return Reading(trimmed, trimmed)


def word(value: Any) -> Reading:
    trimmed = _trimmed(value)
    if not re.match(r"[A-Za-z0-9_.-]+\Z", trimmed):
        raise ValueError("%r is not a name" % trimmed)
    return Reading(trimmed, trimmed)


def kv_cache_type(value: Any) -> Reading:
    kind = _trimmed(value)
    if kind not in KV_CACHE_TYPES:
        raise ValueError("%r is not a cache type; expected one of %s" % (kind, ", ".join(KV_CACHE_TYPES)))
    return Reading(kind, kind)


def origins(value: Any) -> Reading:
    """Origins that browsers may call from, in addition to those of localhost."""
    items = _items(value)
    for item in items:
        if "*" not in item and "://" not in item:
            raise ValueError("%r is not an origin; write the scheme too, as in https://%s" % (item, item))
    return Reading(",".join(items), "[%s " % " ".join(items))


def names(value: Any) -> Reading:
    items = _items(value)
    return Reading(",".join(items), "[%s]" % " ".join(items))


def log_level(value: Any) -> Reading:
    level = _trimmed(value)
    if level not in LOG_LEVELS:
        raise ValueError("%r is not a log level; expected one of %s" % (level, ", ".join(LOG_LEVELS)))
    return _debug(str(LOG_LEVELS.index(level)))


def _debug(value: Any) -> Reading:
    """OLLAMA_DEBUG as a person writes it: a Go bool, or 2 for TRACE."""
    level = _trimmed(boolean(value).text if isinstance(value, bool) else value)
    if level in _TRUE:
        return Reading(level, "DEBUG")
    if level in _FALSE:
        return Reading(level, "INFO")
    if level == "2":
        return Reading(level, "DEBUG-4")
    raise ValueError("%r is not a debug level; Ollama would log at INFO; write 0, 1 or 2" % level)


def on_off(value: Any) -> Reading:
    if isinstance(value, bool):
        value = "on" if value else "off"
    if value not in ("on", "off"):
        raise ValueError("%r is neither on nor off" % value)
    return Reading(value, value)


def proxy(value: Any) -> Reading:
    """A proxy's URL without a password: Ollama writes its proxies into its log at every start."""
    url = _trimmed(value)
    if not re.match(r"(https?|socks5h?)://[^/]+", url):
        raise ValueError("%r is not a proxy URL; expected something like http://proxy.example:3128" % _masked(url))
    if "@" in url.split("://", 1)[1].split("/")[0]:
        raise ValueError(
            "the URL holds a password, and Ollama writes it into the journal at each start; "
            "use a proxy that lets this host in without one"
        )
    return Reading(url, url)


# --- The table: option, variable, kind for the option, kind for the variable in the extra environment.


class Setting(NamedTuple):
    option: str
    variable: str
    read: Callable[[Any], Reading]
    read_raw: Optional[Callable[[Any], Reading]] = None
    logged: bool = True


SETTINGS: Tuple[Setting, ...] = (
    Setting("host", "OLLAMA_HOST", host),
    Setting("models_dir", "OLLAMA_MODELS", path),
    Setting("keep_alive", "OLLAMA_KEEP_ALIVE", keep_alive),
    Setting("load_timeout", "OLLAMA_LOAD_TIMEOUT", load_timeout),
    Setting("num_parallel", "OLLAMA_NUM_PARALLEL", unsigned(1)),
    Setting("max_loaded_models", "OLLAMA_MAX_LOADED_MODELS", unsigned()),
    Setting("max_queue", "OLLAMA_MAX_QUEUE", unsigned(1)),
    Setting("context_length", "OLLAMA_CONTEXT_LENGTH", unsigned()),
    Setting("flash_attention", "OLLAMA_FLASH_ATTENTION", boolean),
    Setting("kv_cache_type", "OLLAMA_KV_CACHE_TYPE", kv_cache_type),
    Setting("gpu_overhead", "OLLAMA_GPU_OVERHEAD", size, plain_bytes),
    Setting("sched_spread", "OLLAMA_SCHED_SPREAD", boolean),
    Setting("llm_library", "OLLAMA_LLM_LIBRARY", word),
    Setting("igpu_enable", "OLLAMA_IGPU_ENABLE", boolean_as_written),
    Setting("vulkan", "OLLAMA_VULKAN", boolean),
    Setting("origins", "OLLAMA_ORIGINS", origins),
    Setting("log_level", "OLLAMA_DEBUG", log_level, _debug),
    Setting("debug_log_requests", "OLLAMA_DEBUG_LOG_REQUESTS", boolean),
    Setting("go_template", "OLLAMA_GO_TEMPLATE", boolean),
    Setting("noprune", "OLLAMA_NOPRUNE", boolean),
    Setting("no_cloud", "OLLAMA_NO_CLOUD", boolean),
    Setting("remotes", "OLLAMA_REMOTES", names),
    Setting("max_transfer_streams", "OLLAMA_MAX_TRANSFER_STREAMS", unsigned(1)),
    Setting("auth", "OLLAMA_AUTH", boolean, logged=False),
    Setting("llama_fit", "LLAMA_ARG_FIT", on_off),
    Setting("fit_target", "LLAMA_ARG_FIT_TARGET", size_in_mib, text),
    Setting("https_proxy", "HTTPS_PROXY", proxy),
    Setting("no_proxy", "NO_PROXY", text),
)

_EXTRA: Dict[str, Callable[[Any], Reading]] = {
    "HTTP_PROXY": proxy,
    "http_proxy": proxy,
    "https_proxy": proxy,
    "no_proxy": text,
    "OLLAMA_NOHISTORY": boolean,
    "OLLAMA_EDITOR": text,
    "ROCR_VISIBLE_DEVICES": text,
    "HIP_VISIBLE_DEVICES": text,
    "GPU_DEVICE_ORDINAL": text,
    "HSA_OVERRIDE_GFX_VERSION": text,
    "GGML_VK_VISIBLE_DEVICES": text,
}
"""Read and logged by the server, with no option of their own: for the command line, or for cards not of NVIDIA."""

LOGGED: Tuple[str, ...] = tuple(
    sorted([entry.variable for entry in SETTINGS if entry.logged] + list(_EXTRA) + ["CUDA_VISIBLE_DEVICES"])
)
"""Names in the server's ``server config`` line."""

GONE: Dict[str, str] = {
    "OLLAMA_NEW_ENGINE": "0.24.0",
    "OLLAMA_MULTIUSER_CACHE": "0.24.0",
    "OLLAMA_NEW_ESTIMATES": "0.11.10",
    "OLLAMA_INTEL_GPU": "0.12.10",
    "OLLAMA_TMPDIR": "0.6.5",
    "OLLAMA_RUNNERS_DIR": "0.3.10",
    "OLLAMA_MAX_VRAM": "0.6.8",
}
"""Names without effect today, with the last version that read them."""

_KNOWN_UNLOGGED = ("OLLAMA_EXPERIMENT", "OLLAMA_CLOUD_BASE_URL", "JETSON_JETPACK", "CUDA_DEVICE_ORDER")


def declare(
    options: Mapping[str, Any], environment: Mapping[str, Any], visible_devices: Optional[str] = None
) -> Declared:
    """Turn options and extra environment into what the process and its log must show.

    :param options: option name to value; absent and None mean: not declared.
    :param environment: further variables, passed as they are; those that Ollama knows are checked as well.
    :param visible_devices: value of CUDA_VISIBLE_DEVICES, already chosen among the host's GPUs.
    :raises Refused: Ollama would misread a value, or a variable is given twice.
    """
    declared, problems = Declared(), []  # type: Tuple[Declared, List[str]]

    def take(where: str, variable: str, logged: bool, read: Callable[[Any], Reading], value: Any) -> None:
        try:
            reading = read(value)
        except ValueError as error:
            problems.append("%s: %s" % (where, error))
            return
        declared.environment[variable] = reading.text
        if logged and reading.logged is not None:
            declared.effective[variable] = reading.logged

    by_variable = {entry.variable: entry for entry in SETTINGS}
    for entry in SETTINGS:
        value = options.get(entry.option)
        if value is not None:
            take("%s (%s)" % (entry.option, entry.variable), entry.variable, entry.logged, entry.read, value)
    if visible_devices is not None:
        declared.environment["CUDA_VISIBLE_DEVICES"] = visible_devices
        declared.effective["CUDA_VISIBLE_DEVICES"] = visible_devices

    for name in sorted(environment):
        where = "environment.%s" % name
        known = by_variable.get(name)
        if known and options.get(known.option) is not None:
            problems.append("%s: already given by the option %s; keep one of the two" % (where, known.option))
        elif name == "CUDA_VISIBLE_DEVICES":
            continue  # chosen with the other GPUs, see placement.choice
        elif known:
            take(where, name, known.logged, known.read_raw or known.read, environment[name])
        elif name in _EXTRA:
            take(where, name, True, _EXTRA[name], environment[name])
        elif may_be_secret(name, environment[name]):
            problems.append("%s: %s" % (where, MAY_BE_SECRET))
        else:
            take(where, name, False, _as_it_is, environment[name])
            declared.warnings += _strange(name)
    logged = "Ollama writes its value into its log; expected in environment"
    declared.secret_environment, more = secret_variables(
        options.get("secret_environment") or {}, dict.fromkeys(LOGGED, logged), environment
    )
    problems += more

    if options.get("flash_attention") is False and options.get("kv_cache_type") not in (None, "f16", "f32", "bf16"):
        problems.append(
            "kv_cache_type: the quantised cache %s needs flash attention, which flash_attention: false switches off"
            % options["kv_cache_type"]
        )
    if problems:
        raise Refused("; ".join(problems))
    return declared


def agrees(variable: str, expected: str, logged: str) -> bool:
    """Whether the server understood a value; it appends its own origins to the declared ones."""
    return logged.startswith(expected) if variable == "OLLAMA_ORIGINS" else logged == expected


def listen_address(value: Any) -> Tuple[str, int]:
    """Address and port that OLLAMA_HOST means; the address ``""`` is every interface.

    :raises ValueError: Ollama would listen elsewhere than written, or not at all.
    """
    written = _trimmed(value)
    scheme, separator, rest = written.rpartition("://")
    if separator and scheme != "http":
        raise ValueError("%r: the server speaks plain HTTP only; write ADDRESS:PORT" % written)
    if "/" in rest:
        raise ValueError("%r: a path means nothing to the server; write ADDRESS:PORT" % written)
    bracketed = re.match(r"\[([^\]]*)\](?::(.*))?\Z", rest)
    if bracketed:
        address, port = bracketed.group(1), bracketed.group(2)
        normal = _ip(address, written)
        address = normal if port is None else address
    elif rest.count(":") > 1:
        address, port = _ip(rest, written), None
    else:
        address, colon, number = rest.partition(":")
        port = number if colon else None
    if separator and port is None:
        raise ValueError("%r means port 80, not %d; write the port" % (written, DEFAULT_PORT))
    if port is not None and not (re.match(r"[0-9]+\Z", port) and 1 <= int(port) <= 65535):
        raise ValueError("%r has no port between 1 and 65535; Ollama would use %d" % (written, DEFAULT_PORT))
    if not address and port is None:
        address = DEFAULT_HOST
    if ":" not in address and not re.match(r"[A-Za-z0-9.-]*\Z", address):
        raise ValueError("%r is not an address" % written)
    return address, DEFAULT_PORT if port is None else int(port)


def reachable_at(value: Any) -> Tuple[str, int]:
    """Where a client on the same host finds a server that listens at OLLAMA_HOST."""
    address, port = listen_address(value)
    return reachable(address), port


# --- Small readers


def _duration(value: Any) -> int:
    written = _trimmed(value)
    if re.match(r"[+-]?[0-9]+\Z", written):
        nanoseconds = int(written) * 10**9
        if abs(nanoseconds) > FOREVER:
            raise ValueError("%s seconds is more than Ollama can count; -1 means indefinitely" % written)
        return nanoseconds
    try:
        return parse_go_duration(written)
    except ValueError:
        days = re.match(r"([0-9]+)\s*d(ays?)?\Z", written)
        advice = "write %dh" % (int(days.group(1)) * 24) if days else "write it as 90s, 30m or 1h30m, without blanks"
        raise ValueError(
            "%r is not a duration that Ollama reads (it would use its default of 5m silently); %s, "
            "a number of seconds, or -1 for no limit" % (written, advice)
        ) from None


def _bytes(value: Any) -> int:
    written = _trimmed(value)
    try:
        return values.size(written, "")
    except Refused:
        raise ValueError("%r is not a size; write bytes, or a size such as 2GiB or 500MB" % written) from None


def _trimmed(value: Any) -> str:
    """The text of a value, which must not be one that Ollama would trim blanks and quotes from."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("%r is neither text nor a number; put quotes around it" % (value,))
    written = str(value)
    if not written:
        raise ValueError("is empty, which Ollama reads as not set; leave it out")
    if written != written.strip().strip("\"'"):
        raise ValueError("%r begins or ends with a blank or a quote, which Ollama strips" % written)
    return written


def _as_it_is(value: Any) -> Reading:
    """A value that Ollama does not read itself: byte for byte, but no guess what a bool should look like."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("%r is neither text nor a number; put quotes around it" % (value,))
    return Reading(str(value), None)


def _items(value: Any) -> List[str]:
    items = [_trimmed(item) for item in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    if not items:
        raise ValueError("is an empty list; leave it out")
    for item in items:
        if re.search(r"[\s,]", item):
            raise ValueError("%r contains a blank or a comma; write each item separately" % item)
    return items


def _ip(address: str, written: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise ValueError("%r is not an address; write IPv6 in brackets, [::1]:%d" % (written, DEFAULT_PORT)) from None


def _masked(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)


def _strange(name: str) -> List[str]:
    """A warning about a name that Ollama does not read, when it looks as if it were meant for Ollama."""
    if name in GONE:
        return ["environment.%s: has no effect; Ollama %s was the last version that read it" % (name, GONE[name])]
    if name == "OLLAMA_NUM_GPU":
        return ["environment.%s: was never a variable of Ollama; num_gpu is an option of a request" % name]
    if name in _KNOWN_UNLOGGED or name.startswith("LLAMA_ARG_"):
        return []
    import difflib  # only for names that are not known

    known = list(LOGGED) + list(_KNOWN_UNLOGGED) + ["OLLAMA_AUTH"]
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
    if near:
        return ["environment.%s: Ollama does not know this name; did you mean %s?" % (name, near[0])]
    if name.upper().startswith("OLLAMA"):
        return ["environment.%s: Ollama does not know this name and will not mention it" % name]
    return []
