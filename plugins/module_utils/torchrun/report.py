# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From each host's report on a job to one verdict on the whole job. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from . import logs

LATE = 8
"""The most processes to name that were behind."""


def of_job(
    results: Mapping[str, Mapping[str, Any]],
    plan: Mapping[str, Any],
    gpus: Optional[Mapping[str, Mapping[str, Any]]] = None,
    floor_gbps: float = 0.0,
) -> Dict[str, Any]:
    """The verdict on a job.

    :param results: per host the result of torchrun_job; a host without one was not reached.
    :param plan: the job's plan.
    :param gpus: per host ``nvlink`` and ``rdma``, whether its GPUs have NVLinks and it has RDMA ports in use.
    :param floor_gbps: the bus bandwidth in GB/s that the last all-reduce must reach.
    :returns: ``name`` (``ok`` or what is wrong), ``text``, ``first_failure``, ``restarts``, ``nodes`` (at its end),
        ``transports``, ``allreduce`` (figures of the largest), ``outlier``, ``late`` (processes that were
        behind when an operation timed out) and ``lines``, all for a person.
    """
    failed = {host: one for host, one in results.items() if one.get("verdict") != "ok"}
    failures = [failure for one in results.values() for failure in one.get("failures") or ()]
    last = max([failure["attempt"] for failure in failures] or [0])
    decisive = [one for one in failures if not failed or one["attempt"] == last or one["host"] in failed]
    figures = max(
        (one for result in results.values() for one in result.get("allreduce") or ()),
        key=lambda one: one["MiB"],
        default=None,
    )
    rounds = [result["rounds"][-1] for result in results.values() if result.get("rounds")]
    found = {
        "name": "ok",
        "text": "",
        "first_failure": logs.first_failure(decisive),
        "restarts": max([result.get("restarts") or 0 for result in results.values()] or [0]),
        "nodes": rounds[0]["nodes"] if rounds else None,
        "transports": _transports(results, gpus or {}),
        "allreduce": figures,
        "outlier": _outlier(results, plan),
        "late": _late(results, plan) if failed else [],
    }  # type: Dict[str, Any]
    elastic = len(results) - len(failed) >= plan["min_nodes"]
    if failed and not (elastic and plan["min_nodes"] < plan["nnodes"]):
        found.update(_failed(failed, found["first_failure"]))
    elif figures and not figures.get("sum_ok", True):
        found.update(name="wrong_sum", text="the processes do not agree on the sum")
    elif figures and figures["busbw"] < floor_gbps:
        text = "bus bandwidth %.1f GB/s, expected at least %.1f GB/s" % (figures["busbw"], floor_gbps)
        found.update(name="slow", text="; ".join([text, *_why_slow(results, gpus or {}, found["outlier"])]))
    found["lines"] = _lines(found, results, failed)
    return found


def _failed(failed: Mapping[str, Mapping[str, Any]], first: Optional[Dict[str, Any]]) -> Dict[str, str]:
    """The name and text of a failure: of the host whose process failed first, else of one that names a cause."""

    def order(host: str) -> Any:
        one = failed[host]
        verdict = one.get("verdict") or "unreachable"
        # a host that still runs may only be slower than the one that has ended
        return (
            first is not None and host != first["host"],
            verdict in logs.CONSEQUENCES,
            bool(one.get("running")),
            host,
        )

    host = sorted(failed, key=order)[0]
    one = failed[host]
    text = "%s: %s" % (host, one.get("msg") or "not reached")
    if first and first["host"] == host:
        text = "%s: first failed %s" % (host, logs.describe(first))
        if one.get("fault"):
            text += "; %s" % one["fault"]["text"]
    return {"name": one.get("verdict") or "unreachable", "text": text}


def _transports(results: Mapping[str, Any], gpus: Mapping[str, Any]) -> Dict[str, List[str]]:
    """Per host, the paths that its data took; Gloo does not report it, and always uses sockets."""
    found = {}
    for host, one in results.items():
        ways = logs.transport(one["nccl"], bool(gpus.get(host, {}).get("nvlink"))) if one.get("nccl") else []
        if ways:
            found[host] = ways
        elif any(
            figures.get("backend") == "gloo" for other in results.values() for figures in other.get("allreduce") or ()
        ):
            found[host] = ["socket"]
    return found


def _why_slow(results: Mapping[str, Any], gpus: Mapping[str, Any], outlier: Optional[Mapping[str, Any]]) -> List[str]:
    said = []
    if outlier:
        said.append(_say(outlier))
    for host, one in results.items():
        of_host = gpus.get(host, {})
        if one.get("nccl"):
            why = logs.suspicious(
                one["nccl"], bool(of_host.get("nvlink")), bool(of_host.get("rdma")), len(results) == 1
            )
            said += ["%s: %s" % (host, why)] if why else []
    return said


def _outlier(results: Mapping[str, Any], plan: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    by_rank = {node["node_rank"]: host for host, node in plan["nodes"].items()}
    pairs = [
        {"a": by_rank.get(int(one["a"]), one["a"]), "b": by_rank.get(int(one["b"]), one["b"]), "gbps": one["gbps"]}
        for result in results.values()
        for one in result.get("pairs") or ()
    ]
    return logs.outlier(pairs)


def _late(results: Mapping[str, Any], plan: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The processes that were behind when an operation timed out; none where all had come equally far.

    A process that reported nothing may have been ended before it could: it counts only where nobody is known to be
    behind.

    :returns: each ``rank``, ``host``, ``work`` (the number of its last operation, None for a silent one) and ``others``
        (that of the others).
    """
    hosts = {one["rank"]: one["host"] for one in plan["ranks"]}
    for host, one in results.items():  # as torchrun gave them out last
        hosts.update((rank, host) for last in (one.get("rounds") or [])[-1:] for rank in last["ranks"])
    came = {int(rank): work for one in results.values() for rank, work in (one.get("enqueued") or {}).items()}
    if not came:
        return []
    most = max(came.values())
    late = [rank for rank in sorted(came) if came[rank] < most] or sorted(set(hosts) - set(came))
    return [{"rank": rank, "host": hosts.get(rank), "work": came.get(rank), "others": most} for rank in late]


def _behind(one: Mapping[str, Any]) -> str:
    if one["work"] is None:
        return "rank {rank} on {host} reported no operation, the others had come to {others}".format(**one)
    text = "rank {rank} on {host} was behind: its last operation was {work}, the others had come to {others}"
    return text.format(**one)


def _say(outlier: Mapping[str, Any]) -> str:
    return "the outlier is %s: %.2f GB/s to the others, which have %.2f GB/s among them" % (
        outlier["host"],
        outlier["gbps"],
        outlier["others"],
    )


def _lines(found: Mapping[str, Any], results: Mapping[str, Any], failed: Mapping[str, Any]) -> List[str]:
    lines = ["verdict: %s%s" % (found["name"], " · " + found["text"] if found["text"] else "")]
    figures = found["allreduce"]
    if figures:
        lines.append(
            "all-reduce of %g MiB: %.3f ms, algorithm %.2f GB/s, bus %.2f GB/s, over %s"
            % (
                figures["MiB"],
                1000 * figures["s"],
                figures["algbw"],
                figures["busbw"],
                ", ".join(sorted({way for ways in found["transports"].values() for way in ways})) or "an unknown way",
            )
        )
    if found["outlier"]:
        lines.append(_say(found["outlier"]))
    lines += map(_behind, found["late"][:LATE])
    if found["restarts"]:
        first = found["first_failure"]
        because = " after %s on %s" % (logs.describe(first), first["host"]) if first and not failed else ""
        lines.append("restarted %d time%s%s" % (found["restarts"], "s"[: found["restarts"] != 1], because))
    if found["nodes"] is not None and found["nodes"] < len(results):
        lines.append("ended with %d of %d hosts" % (found["nodes"], len(results)))
    for host, one in results.items():
        lines.append("%s: %s" % (host, one.get("msg") or "not reached"))
    return lines
