# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of each pool at each step, and what becomes of its requests."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import capacity
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.plan import Pool, Unit
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.state import Planned

METRICS = """# TYPE haproxy_process_uptime_seconds gauge
haproxy_process_uptime_seconds 100
haproxy_frontend_http_requests_total{proxy="chat"} 9
haproxy_backend_http_requests_total{proxy="chat"} 400
haproxy_backend_total_time_average_seconds{proxy="chat"} 1.500000
haproxy_backend_http_requests_total{proxy="hf.co_a_b-42c6ad"} 50
"""


def test_the_figures_of_haproxy():
    names = ["chat", "hf.co/a/b", "the gateways"]
    figures = METRICS.replace("hf.co_a_b-42c6ad", capacity.slug("hf.co/a/b"))
    assert capacity.traffic(figures, names) == {"chat": [4.0, 1.5], "hf.co/a/b": [0.5, 0.0]}
    assert capacity.traffic("words", names) == {} == capacity.traffic(METRICS.replace(" 100", " 0"), names)


def test_the_gateways_are_added_up():
    both = [{"chat": [3.0, 1.0]}, {"chat": [1.0, 3.0], "embed": [0.0, 0.0]}, {}]
    assert capacity.together(both) == {"chat": [4.0, 1.5], "embed": [0.0, 0.0]}


def row(seconds, **more):
    return {"service": "x", "why": "X changes", "restart": True, "predicted": seconds, "restarts": [], **more}


@pytest.mark.parametrize(
    ("hosts", "seconds", "pool"),
    [
        ("abcd", 6.0, {"ready": 3, "hosts": 4, "minimum": 0, "seconds": 6.0, "drained": 1.5, "moved": 6.0}),
        ("a", 6.0, {"ready": 0, "hosts": 1, "minimum": 0, "seconds": 6.0, "drained": 6.0, "unserved": 24.0}),
        ("b", 6.0, None),
    ],
)
def test_what_becomes_of_requests(hosts, seconds, pool):
    planned = Planned(
        [Unit(("a",), ("chat",))],
        [],
        {"chat": Pool(tuple(hosts), 0)},
        1,
        0,
        None,
        [],
        {"a": [row(seconds)]},
        [],
        {"chat": [4.0, 1.5]},
    )
    assert capacity.steps(planned) == [{"hosts": ["a"], "canary": False, "pools": {"chat": pool} if pool else {}}]
    unknown = dict(planned.__dict__, traffic={})
    left = {name: value for name, value in (pool or {}).items() if name in ("ready", "hosts", "minimum", "seconds")}
    assert capacity.steps(Planned(**unknown))[0]["pools"] == ({"chat": left} if pool else {})


def test_the_canary_renews_the_seconds():
    planned = Planned([], [], {}, 1, 0, None, [], {"a": [row(6.0, renewed=2.5), row(1.0)]}, [])
    assert capacity.seconds_of(planned, "a") == 3.5 and capacity.seconds_of(planned, "b") == 0.0
