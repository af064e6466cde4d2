# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a canary does worse: HAProxy's figures, and pretended fleets under load, honest and not."""

from __future__ import annotations

import heapq
import random

import pytest

from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout import compare
from ansible_collections.gpufleet.inference.plugins.plugin_utils.rollout.compare import Counters, Load

METRICS = """# TYPE haproxy_process_start_time_seconds gauge
haproxy_process_start_time_seconds 1796036151
haproxy_server_current_sessions{proxy="chat",server="gpu1:ollama:11434"} 3
haproxy_server_limit_sessions{proxy="chat",server="gpu1:ollama:11434"} NaN
haproxy_server_sessions_total{proxy="chat",server="gpu1:ollama:11434"} 40
haproxy_server_connection_errors_total{proxy="chat",server="gpu1:ollama:11434"} 1
haproxy_server_response_errors_total{proxy="chat",server="gpu1:ollama:11434"} 2
haproxy_server_retry_warnings_total{proxy="chat",server="gpu1:ollama:11434"} 4
haproxy_server_status{proxy="chat",server="gpu1:ollama:11434",state="UP"} 1
haproxy_server_http_responses_total{proxy="chat",server="gpu1:ollama:11434",code="2xx"} 20
haproxy_server_http_responses_total{proxy="chat",server="gpu1:ollama:11434",code="5xx"} 8
haproxy_server_sessions_total{proxy="embed",server="gpu1:ollama:11434"} 7
"""


def test_the_figures_of_haproxy():
    found = compare.sample(2.0, METRICS)
    assert found.started == "1796036151" and found.at == 2.0
    assert found.counters["chat", "gpu1:ollama:11434"] == Counters(36, 15, 3)
    assert found.counters["embed", "gpu1:ollama:11434"] == Counters(7)
    assert compare.sample(2.0, "words").counters == {}


def samples(*rows, server="gpu1:ollama:11434"):
    return [compare.Sample(at, started, {("chat", server): Counters(*own)}) for at, started, own in rows]


def test_requests_that_are_open_at_an_end_count_half():
    found = compare.watched(samples((0, "1", (10, 0, 0)), (5, "1", (20, 0, 2)), (10, "1", (30, 1, 4))), {"gpu1"}, set())
    assert found == {"chat": [Load(18.0, 1, 20.0), Load()]}


def test_a_gateway_that_restarts_counts_again_from_then_on():
    rows = (0, "1", (1000, 9, 4)), (5, "2", (0, 0, 0)), (10, "2", (8, 1, 0))
    assert compare.watched(samples(*rows), {"gpu1"}, set()) == {"chat": [Load(8, 1, 0.0), Load()]}


def test_a_host_whose_name_begins_alike_is_another_one():
    rows = samples((0, "1", (0, 0, 0)), (5, "1", (9, 0, 0)), server="gpu10:ollama:11434")
    assert compare.watched(rows, {"gpu1"}, {"gpu2"}) == {} and compare.watched([], {"gpu1"}, {"gpu2"}) == {}
    assert compare.watched(rows, {"gpu10"}, {"gpu2"}) == {"chat": [Load(9, 0, 0.0), Load()]}


@pytest.mark.parametrize(
    ("canary", "others", "worse"),
    [
        ((60, 0, 60), (300, 0, 300), []),
        ((60, 9, 60), (300, 0, 300), ["15 % of its requests for chat failed; at the others, 0 %"]),
        ((60, 3, 60), (300, 0, 300), []),
        ((60, 9, 60), (300, 30, 300), []),
        ((60, 999, 60), (300, 0, 300), ["100 % of its requests for chat failed; at the others, 0 %"]),
        ((60, 0, 120), (300, 0, 300), ["a request for chat takes 2.00 s; at the others, 1.00 s"]),
        ((60, 0, 1.2), (300, 0, 3), []),  # 20 ms more than the others' 10 ms
        ((49, 49, 490), (300, 0, 300), []),
        ((60, 60, 600), (49, 0, 49), []),
    ],
)
def test_what_is_worse(canary, others, worse):
    found, unknown = compare.judged([{"chat": [canary, others]}])
    assert found == worse
    assert bool(unknown) == (min(canary[0], others[0]) < 50)


def test_the_gateways_are_added_up():
    few = {"chat": [(30, 20, 30), (30, 0, 30)], "embed": [(7, 0, 7), (90, 0, 90)]}
    found, unknown = compare.judged([few, {}, few])
    assert found == ["67 % of its requests for chat failed; at the others, 0 %"]
    assert unknown == ["too few requests for embed to compare: 14 there, 180 at the others, and 50 are needed"]


class Server:
    """Answers requests at a given speed; some fail."""

    def __init__(self, slow, failing):
        self.slow, self.failing, self.total, self.failed, self.ends = slow, failing, 0, 0, []

    def counters(self):
        return Counters(self.total, self.failed, len(self.ends))


def soak(chance, slow=1.0, failing=0.0, seconds=60, spread=1.0, base=0.0):
    """Four hosts behind a gateway, which gives each request to the one with the fewest open; the canary comes back."""
    fleet = [Server(slow, failing), *(Server(1.0, base) for _number in range(3))]
    now, found, rate = -20.0, [], chance.uniform(4, 20)
    looks = [seconds * number / 20 for number in range(21)]
    while looks:
        now += chance.expovariate(rate)
        while looks and looks[0] <= now:
            at = looks.pop(0)
            for server in fleet:
                while server.ends and server.ends[0] <= at:
                    heapq.heappop(server.ends)
            servers = {("chat", "gpu%d:x:1" % number): server.counters() for number, server in enumerate(fleet)}
            found.append(compare.Sample(at, "1", servers))
        for server in fleet:
            while server.ends and server.ends[0] <= now:
                heapq.heappop(server.ends)
        server = min(fleet[now < 0 :], key=lambda server: (len(server.ends), chance.random()))
        server.total += 1
        server.failed += chance.random() < server.failing
        heapq.heappush(server.ends, now + server.slow * chance.lognormvariate(0, spread))
    return compare.judged([compare.watched(found, {"gpu0"}, {"gpu1", "gpu2", "gpu3"})])


def test_honest_canaries_raise_few_alarms_and_bad_ones_many():
    honest = [soak(random.Random(seed), failing=0.01, base=0.01) for seed in range(300)]
    assert sum(bool(worse) for worse, _unknown in honest) <= 3
    slow = [soak(random.Random(seed), slow=2.5) for seed in range(60)]
    failing = [soak(random.Random(seed), failing=0.2) for seed in range(60)]
    for found in (slow, failing):
        assert sum(bool(worse) for worse, _unknown in found) >= 50
        assert sum(not worse and not unknown for worse, unknown in found) <= 1, "it says so where it cannot tell"
