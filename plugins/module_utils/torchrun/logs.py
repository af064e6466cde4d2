# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What torchrun, NCCL and Gloo say: which way the data went, what failed first and why. Pure."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

_NCCL = re.compile(r"NCCL (INFO|WARN) (.*)")
_CHANNEL = re.compile(r"Channel \d+(?:/\d+)? : .* via (\S+)")
_BOOTSTRAP = re.compile(r"Bootstrap: Using ([^:\s]+):(\S+?)<\d+>")
_NETWORK = re.compile(r"Using network (\S+)")
_VERSION = re.compile(r"NCCL version ([0-9.]+)")
_SET = re.compile(r"(NCCL_\w+) set by environment to (.*?)\.?$")
_RANKS = re.compile(r"\bRANKS ((?:\w+=\S+ ?)+)")
_ALLREDUCE = re.compile(r"\bALLREDUCE ((?:\w+=\S+ ?)+)")
_PAIR = re.compile(r"\bPAIR ((?:\w+=\S+ ?)+)")
_ENQUEUED = re.compile(
    # of a process whose operation timed out; and of one that was told so by another, and waits for none itself
    r"\[PG ID 0 [^\]\n]{0,200} Rank (\d{1,9})\][^\n]{0,200}[Ll]ast enqueued (?:NCCL )?work: (-?\d{1,9})"
)
_ROOT_CAUSE = re.compile(r"Root Cause \(first observed failure\):\s*\n\[\d+\]:\n((?:  .*\n?)+)")
_FIELD = re.compile(r"^[ \t]+(time|host|rank|exitcode|error_file)[ \t]*: (.*)$", re.MULTILINE)
_ROUND = re.compile(
    r"restart_count=(\d{1,9})\b.{0,4999}?group_world_size=(\d{1,9})\b.{0,4999}?global_ranks=\[([\d, ]{0,4999})\]"
    r".{0,4999}?global_world_sizes=\[(\d{1,9})",
    re.DOTALL,
)
_DEATH = re.compile(r"\brestart_count=(\d{1,9})\b|failed \(exitcode: (-?\d{1,9})\) local_rank: (\d{1,9})\b")
_LAST_WORDS = re.compile(
    r"^(?:\[\w+\]:)?[ \t]*([A-Za-z_][\w.]{0,199}(?:Error|Exception|Exit|Interrupt)\b.*)$", re.MULTILINE
)
MOST = 1000
"""Items of one kind that are read from a log: any user of the job may print as many as he likes."""
_LONGEST = 500
"""Characters of a line or word of a log that are passed on."""
_FIGURES = ("MiB", "s", "algbw", "busbw")


class Fault(NamedTuple):
    """A known way to fail. The first of FAULTS that is found names the failure: causes come before consequences."""

    name: str
    pattern: "re.Pattern[str]"
    text: str
    """What it means and what to do; ``{0}`` … are the pattern's groups."""


def _fault(name: str, pattern: str, text: str) -> Fault:
    return Fault(name, re.compile(pattern), text)


FAULTS = (
    _fault(
        "bad_interface",
        r"(?:Bootstrap : no socket interface found|NET/Socket : no (?:socket )?interface found)",
        "NCCL finds no network interface that NCCL_SOCKET_IFNAME allows; name one that is up, or leave it to the plan",
    ),
    _fault(
        "bad_interface",
        r"Unable to find (?:address|interface) for: (\S+)",
        "there is no network interface {0} with an address on this host; correct GLOO_SOCKET_IFNAME, or leave it to"
        " the plan",
    ),
    _fault(
        "too_many_processes",
        r"(?:invalid device ordinal|Duplicate GPU detected)",
        "more processes than GPUs on this host; lower nproc_per_node",
    ),
    _fault(
        "stopped",
        r"SignalException: Process \d+ got signal: (\d+)",
        "torchrun was ended by signal {0}, not by the job itself",
    ),
    _fault(
        "stranger_at_port",
        r"Ping failed, invalid value returned from server",
        "something that is not this job's rendezvous answers at the master's address and port; choose another port",
    ),
    _fault(
        "port_taken",
        r"(?:EADDRINUSE|[Aa]ddress already in use)",
        "the rendezvous port is held by another process on the master; stop it or choose another master_port",
    ),
    _fault(
        "peer_missing",
        r"Timed out after (\d+) seconds waiting for clients\. (\d+/\d+) clients joined",
        "only {1} hosts came to the rendezvous within {0} s; check whether the others started and can reach the master",
    ),
    _fault(
        "master_unreachable",
        r"client socket has (?:timed out|failed).*?(?:connect to|connecting to) \(?([^\s,]+), (\d+)\)?",
        "the rendezvous at {0} port {1} does not answer; check that the master's job runs, and look for a firewall",
    ),
    _fault(
        "peer_missing",
        r"RendezvousTimeoutError",
        "too few hosts came to the rendezvous in time; check whether the others started and can reach the master",
    ),
    _fault(
        "gpu_memory_error",
        r"uncorrectable ECC error",
        "a GPU has a memory error that it cannot correct: look at its findings with gpu_facts, and reset or replace it",
    ),
    _fault(
        "no_kernel",
        r"no kernel image is available",
        "this build of PyTorch, or of an extension, has no code for this GPU: choose a version that supports it",
    ),
    _fault(
        "locked_memory",
        r"Call to (ibv_reg_\w+) failed",
        "RDMA memory cannot be registered ({0}): raise the limit memlock, or look at the driver of the adapter",
    ),
    _fault(
        "shared_memory",
        r"(?:out of shared memory|[Ee]rror while creating shared memory segment)",
        "/dev/shm is full: enlarge it, or use fewer workers that load data",
    ),
    _fault("disk_full", r"No space left on device", "a file system is full on this host"),
    _fault("out_of_memory", r"(?:CUDA out of memory|OutOfMemoryError)", "a GPU's memory does not suffice"),
    _fault("no_driver", r"Found no NVIDIA driver", "PyTorch finds no NVIDIA driver on this host"),
    _fault(
        "no_script", r"can't open file '([^']+)'", "there is no script {0} on this host, or its user may not read it"
    ),
    _fault("no_module", r"(?:ModuleNotFoundError|No module named) ?:? ?(.*)", "a Python module is missing: {0}"),
    _fault(
        "kernel_failed",
        r"CUDA error: (unspecified launch failure|an illegal memory access[^\n]*)",
        "code on a GPU failed ({0}): find it with CUDA_LAUNCH_BLOCKING=1, and look at the findings of gpu_facts",
    ),
    _fault(
        "collective_timeout",
        r"Watchdog caught collective operation timeout: \w+\(SeqNum=(\d+), OpType=(\w+)",
        "not all processes came to operation {0}, {1}, in time: look at the process that did not, or raise the timeout"
        " of init_process_group",
    ),
    _fault(
        "collective_timeout",
        r"(?:collective operation timeout|watchdog hang|Timed out waiting \d+ms for (?:send|recv) operation)",
        "not all processes came to an operation in time: look at the process that did not, or raise the timeout of"
        " init_process_group",
    ),
    _fault(
        "connection_lost",
        r"(?:Connection closed by peer|Connection reset by peer|socketProgress: Connection closed|ncclRemoteError)",
        "the connection to another process was lost: that process or its host ended first",
    ),
    _fault(
        "nccl_system_error",
        r"ncclSystemError: [^\n]*(?:\n(?:\[\w+\]: )?Last error:[^\n]*\n(?:\[\w+\]: )?([^\n]*))?",
        "the operating system refused NCCL something, {0}: set NCCL_DEBUG to INFO to see what came before",
    ),
)

CONSEQUENCES = ("collective_timeout", "connection_lost", "peer_missing", "master_unreachable")
"""What a host prints when another one has failed."""


def read(text: str) -> Dict[str, Any]:
    """What a log holds.

    ``version``, ``interfaces`` (name to address), ``network`` (what NCCL uses between hosts), ``via`` (transport to
    number of channels), ``set`` (variables that NCCL found set), ``warnings`` (of NCCL), ``ranks``, ``allreduce``,
    ``pairs`` (what the all-reduce program prints), ``enqueued`` (by rank the last operation that a process
    had come to when one timed out, in the group of all), ``root_cause`` (of torchrun's summary) and ``fault``.
    """
    said = {"version": None, "interfaces": {}, "network": None, "via": {}, "set": {}, "warnings": []}  # type: Dict[str, Any]
    for match in _NCCL.finditer(text):
        level, words = match.group(1), match.group(2)[:_LONGEST]
        if level == "WARN" and len(said["warnings"]) < MOST:
            said["warnings"].append(words.strip())
        _take(said, words)
    ranks = [one for one in map(_fields, islice(_RANKS.finditer(text), MOST)) if isinstance(one.get("rank"), int)]
    said["ranks"] = sorted(ranks, key=lambda one: one["rank"])
    said["allreduce"] = _with(_FIGURES, _ALLREDUCE, text)
    said["pairs"] = _with(("a", "b", "gbps"), _PAIR, text)
    said["enqueued"] = {int(rank): int(work) for rank, work in _ENQUEUED.findall(text)[-MOST:]}
    said["root_cause"] = _root_cause(text)
    said["fault"] = fault(text)
    return said


def _take(said: Dict[str, Any], words: str) -> None:
    for pattern, keep in ((_VERSION, "version"), (_NETWORK, "network")):
        match = pattern.match(words)
        if match:
            said[keep] = match.group(1)
            return
    if len(said["via"]) + len(said["interfaces"]) + len(said["set"]) > MOST:
        return
    channel, bootstrap, was_set = _CHANNEL.match(words), _BOOTSTRAP.match(words), _SET.match(words)
    if channel:
        said["via"][channel.group(1)] = said["via"].get(channel.group(1), 0) + 1
    elif bootstrap:
        said["interfaces"][bootstrap.group(1)] = bootstrap.group(2)
    elif was_set:
        said["set"][was_set.group(1)] = was_set.group(2)


def _fields(match: "re.Match[str]") -> Dict[str, Any]:
    pairs = _pairs(match)
    return {name: int(value) if re.fullmatch("[0-9]{1,9}", value) else value for name, value in pairs.items()}


def _pairs(match: "re.Match[str]") -> Dict[str, str]:
    return dict(word.split("=", 1) for word in match.group(1)[:_LONGEST].split() if "=" in word)


def _with(needed: Sequence[str], pattern: "re.Pattern[str]", text: str) -> List[Dict[str, Any]]:
    """The figures of the lines that have all that is needed."""
    found = map(_figures, islice(pattern.finditer(text), MOST))
    return [one for one in found if all(isinstance(one.get(name), float) for name in needed)]


def _figures(match: "re.Match[str]") -> Dict[str, Any]:
    """``MiB=1024 s=0.0046 busbw=351.6GB/s sum_ok=True`` as numbers and truths."""
    found = {}  # type: Dict[str, Any]
    for name, value in _pairs(match).items():
        number = re.sub("GB/s$", "", value)
        if value in ("True", "False"):
            found[name] = value == "True"
        else:
            found[name] = (
                float(number)
                if re.fullmatch(r"-?[0-9]{1,18}(?:\.[0-9]{0,18})?(?:e[+-]?[0-9]{1,2})?", number)
                else value
            )
    return found


def rounds(agent: str) -> List[Dict[str, Any]]:
    """Each gathering of hosts by torchrun: ``restarts`` so far, ``nodes``, ``world_size``, this host's ``ranks``."""
    found = []
    for restarts, nodes, ranks, world in _ROUND.findall(agent)[-MOST:]:
        own = [int(rank) for rank in re.findall(r"\d{1,9}", ranks)]
        found.append({"restarts": int(restarts), "nodes": int(nodes), "world_size": int(world), "ranks": own})
    return found


def begun(agent: str) -> bool:
    """Whether torchrun has started to look for the other hosts."""
    return re.search("[Rr]endezvous|TCPStore", agent) is not None


def deaths(agent: str) -> List[Dict[str, int]]:
    """The processes that torchrun saw die: ``attempt``, ``local_rank`` and ``exit_code``."""
    found, attempt = [], -1
    for match in islice(_DEATH.finditer(agent), MOST):
        if match.group(1) is not None:
            attempt = int(match.group(1))
        else:
            found.append(
                {"attempt": max(0, attempt), "local_rank": int(match.group(3)), "exit_code": int(match.group(2))}
            )
    return found


def _root_cause(text: str) -> Optional[Dict[str, Any]]:
    """The process that torchrun saw failing first; of several attempts the last."""
    blocks = _ROOT_CAUSE.findall(text)
    if not blocks:
        return None
    fields = dict(_FIELD.findall(blocks[-1]))
    rank = re.match(r"(\d{1,9}) \(local_rank: (\d{1,9})\)", fields.get("rank", ""))
    code = re.match(r"(-?\d{1,9})\b", fields.get("exitcode", ""))
    last = _LAST_WORDS.findall(blocks[-1])
    return {
        "rank": int(rank.group(1)) if rank else None,
        "local_rank": int(rank.group(2)) if rank else None,
        "exit_code": int(code.group(1)) if code else None,
        "time": fields.get("time"),
        "message": last[-1].strip()[:_LONGEST] if last else None,
    }


def fault(text: str) -> Optional[Dict[str, str]]:
    """The first known fault in a log: ``name``, ``text`` and the ``line`` that shows it."""
    for known in FAULTS:
        match = known.pattern.search(text)
        if match:
            start = text.rfind("\n", 0, match.start()) + 1
            line = text[start : (text.find("\n", match.end()) + 1 or len(text) + 1) - 1].strip()[:_LONGEST]
            groups = [(group or "").strip()[:_LONGEST] for group in match.groups()]
            return {"name": known.name, "text": known.text.format(*groups), "line": line}
    return None


def last_words(text: str) -> Optional[str]:
    """The exception that ended a Python program, of a log that may hold several."""
    found = [
        words for words in _LAST_WORDS.findall(text) if not words.startswith(("torch.distributed.elastic", "frame"))
    ]
    return found[-1].strip() if found else None


# --- transport


def transport(said: Mapping[str, Any], nvlink: bool = False) -> List[str]:
    """The ways that data went between processes, in words, the slowest first.

    NCCL calls it P2P whether it goes over NVLink or PCIe: ``nvlink`` is whether the GPUs' facts have NVLinks.
    """
    found = []
    for way in said["via"]:
        if way.startswith("NET/Socket"):
            found.append("socket")
        elif way.startswith("NET/"):
            found.append(way.split("/")[1] + (" GDRDMA" if "GDRDMA" in way else ""))
        elif way.startswith("SHM"):
            found.append("SHM")
        elif way.startswith("P2P"):
            found.append("NVLink" if nvlink else "PCIe P2P")
        else:
            found.append(way)
    slow_first = ["socket", "SHM", "PCIe P2P"]
    return sorted(
        dict.fromkeys(found), key=lambda word: slow_first.index(word) if word in slow_first else len(slow_first)
    )


def suspicious(said: Mapping[str, Any], nvlink: bool, rdma: bool, one_host: bool) -> Optional[str]:
    """Why a transport that works is not the one that the hardware has, or None."""
    ways = transport(said, nvlink)
    unset = ", ".join("%s=%s" % item for item in sorted(said["set"].items()) if item[1] != "0")
    because = "; set: %s" % unset if unset else ""
    if rdma and "socket" in ways:
        return "the hosts have RDMA, but NCCL uses sockets%s" % because
    if nvlink and "SHM" in ways:
        return "the GPUs have NVLink, but NCCL uses the host's memory (SHM)%s" % because
    if nvlink and one_host and "socket" in ways:
        return "the GPUs have NVLink, but NCCL uses sockets%s" % because
    return None


# --- verdicts


def verdict(said: Mapping[str, Any], expected_ranks: int, running: bool) -> Dict[str, str]:
    """The verdict on one host's log: ``name`` and ``text``.

    :param expected_ranks: how many processes of this host should have said their ranks.
    :param running: whether torchrun was still running when the log was read.
    """
    if said["fault"]:
        return {"name": said["fault"]["name"], "text": said["fault"]["text"]}
    cause = said["root_cause"]
    if cause:
        return {"name": "worker_failed", "text": describe(cause)}
    if any(not one.get("sum_ok", True) for one in said["allreduce"]):
        return {"name": "wrong_sum", "text": "the processes do not agree on the sum: %s" % said["allreduce"]}
    if said["allreduce"] or (expected_ranks and len(said["ranks"]) >= expected_ranks and not running):
        return {"name": "ok", "text": ""}
    if not said["ranks"]:
        text = "torchrun has logged nothing%s; it is waiting for the other hosts" % (" so far" if running else "")
        return {"name": "peer_missing", "text": text}
    text = "%d of %d processes of this host have started, none has finished" % (len(said["ranks"]), expected_ranks)
    return {"name": "stalled", "text": text}


def describe(failure: Mapping[str, Any]) -> str:
    """A failed process in words."""
    code = failure.get("exit_code")
    if code is None:
        how = "failed"
    elif code < 0:
        how = "was killed by signal %d" % -code
    else:
        how = "exited with status %d" % code
    why = failure.get("message")
    return "rank %s (local rank %s) %s%s" % (
        failure.get("rank"),
        failure.get("local_rank"),
        how,
        ": %s" % why if why else "",
    )


def first_failure(failures: Iterable[Mapping[str, Any]]) -> Optional[Dict[str, Any]]:
    """Of the failures of all hosts the one that the others follow from.

    Each has ``host``, ``rank``, ``exit_code``, ``time`` (seconds, None when unknown), ``fault`` and ``message``. A
    failure that names a cause of its own comes before one that only reports a lost peer, or was ended by torchrun.
    """

    def order(failure: Mapping[str, Any]) -> Any:
        follows = failure.get("fault") in CONSEQUENCES or failure.get("exit_code") == -15
        time = failure.get("time")
        return (follows, time is None, time or 0, failure.get("rank") or 0)

    found = sorted(failures, key=order)
    return dict(found[0]) if found else None


def outlier(pairs: Iterable[Mapping[str, Any]]) -> Optional[Dict[str, Any]]:
    """The host whose links to all others are slow: ``host``, ``gbps`` (GB/s, its median) and ``others`` (theirs).

    Slow is below half the median of the links among the others.

    :param pairs: measured links, each ``a``, ``b`` and ``gbps``.
    """
    links = [dict(one) for one in pairs]
    hosts = sorted({link[end] for link in links for end in ("a", "b")})
    if len(hosts) < 3:
        return None  # of two hosts, it is unknown which is slow
    worst = None  # type: Optional[Dict[str, Any]]
    for host in hosts:
        own = _median([link["gbps"] for link in links if host in (link["a"], link["b"])])
        rest = _median([link["gbps"] for link in links if host not in (link["a"], link["b"])])
        if own < rest / 2 and (worst is None or own < worst["gbps"]):
            worst = {"host": host, "gbps": own, "others": rest}
    return worst


def _median(values: List[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
