# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of each pool at each step of a rollout, and what that means for its requests. Pure."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, Mapping

from ...module_utils.gateway.runtime import slug
from .plan import batches, ready
from .state import Planned

_UPTIME = re.compile(r"^haproxy_process_uptime_seconds ([0-9.]+)$", re.MULTILINE)
_POOL = re.compile(
    r'^haproxy_backend_(http_requests_total|total_time_average_seconds)\{proxy="([^"]*)"\} ([0-9.]+)$', re.MULTILINE
)


def traffic(metrics: str, pools: Iterable[str]) -> Dict[str, List[float]]:
    """What a gateway has counted since it was started: pool → requests per second, and seconds for one of them.

    :param metrics: its figures in Prometheus' format.
    """
    uptime, counted = (
        _UPTIME.search(metrics),
        {(name, pool): float(value) for name, pool, value in _POOL.findall(metrics)},
    )
    seconds = float(uptime[1]) if uptime else 0.0
    found = {}
    for pool in pools:
        total = counted.get(("http_requests_total", slug(pool)))
        if total is not None and seconds:
            found[pool] = [total / seconds, counted.get(("total_time_average_seconds", slug(pool)), 0.0)]
    return found


def together(gateways: Iterable[Mapping[str, List[float]]]) -> Dict[str, List[float]]:
    """The same of all gateways: rates add up, and the seconds are their mean by rate."""
    found: Dict[str, List[float]] = {}
    for one in gateways:
        for pool, (rate, seconds) in one.items():
            known, so_far = found.get(pool, (0.0, 0.0))
            whole = known + rate
            mean = (known * so_far + rate * seconds) / whole if whole else 0.0
            found[pool] = [round(whole, 3), round(mean, 3)]
    return found


def steps(planned: Planned) -> List[Dict[str, Any]]:
    """The steps, provided that nothing fails: the canary, then the batches.

    Each has its ``hosts``, whether it is the ``canary``, and the ``pools`` that some of its hosts leave: how many are
    ``ready`` meanwhile, of how many ``hosts``, the ``minimum``, and the predicted ``seconds``. Where gateways count
    requests, also how many of them wait until they end (``drained``), go to other hosts (``moved``), or find none
    (``unserved``).
    """
    canary = [unit for unit in planned.units if set(unit.hosts) & set(planned.canary)]
    rest = [unit for unit in planned.units if unit not in canary]
    everybody = {host for pool in planned.pools.values() for host in pool.hosts}
    found = []
    for chosen in batches(canary, planned.pools, planned.width) + batches(rest, planned.pools, planned.width):
        pools = {}
        for name, pool in planned.pools.items():
            left = len(ready(name, pool, everybody, chosen))
            if left < len(pool.hosts):
                out = [host for unit in chosen for host in unit.hosts if host in pool.hosts]
                seconds = max(seconds_of(planned, host) for host in out)
                pools[name] = {
                    "ready": left,
                    "hosts": len(pool.hosts),
                    "minimum": pool.minimum,
                    "seconds": round(seconds, 2),
                    **_requests(planned.traffic.get(name), 1 - left / len(pool.hosts), seconds),
                }
        hosts = [host for unit in chosen for host in unit.hosts]
        found.append({"hosts": hosts, "canary": set(hosts) <= set(planned.canary), "pools": pools})
    return found


def _requests(traffic: Any, share: float, seconds: float) -> Dict[str, float]:
    """:param share: of the pool that is away."""
    if not traffic:
        return {}
    rate, each = traffic
    away = "unserved" if share == 1 else "moved"
    return {"drained": round(rate * share * each, 1), away: round(rate * share * seconds, 1)}


def seconds_of(planned: Planned, host: str) -> float:
    """The predicted seconds for which services of a host do not serve."""
    rows = planned.services.get(host, ())
    return float(sum(row.get("renewed", row["predicted"]) for row in rows))
