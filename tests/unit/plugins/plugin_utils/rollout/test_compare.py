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
haproxy_server_total_time_average_seconds{proxy="chat",server="gpu1:ollama:11434"} 1.500000
haproxy_server_status{proxy="chat",server="gpu1:ollama:11434",state="UP"} 1
haproxy_server_http_responses_total{proxy="chat",server="gpu1:ollama:11434",code="2xx"} 20
haproxy_server_http_responses_total{proxy="chat",server="gpu1:ollama:11434",code="5xx"} 8
haproxy_server_sessions_total{proxy="embed",server="gpu1:ollama:11434"} 7
"""


def test_the_figures_of_haproxy():
    found = compare.sample(2.0, METRICS)
    assert found.started == "1796036151" and found.at == 2.0
    assert found.counters["chat", "gpu1:ollama:11434"] == Counters(36, 15, 3, 1.5)
    assert found.counters["embed", "gpu1:ollama:11434"] == Counters(7)
    assert compare.sample(2.0, "words").counters == {}


def samples(*rows, server="gpu1:ollama:11434"):
    return [compare.Sample(at, started, {("chat", server): Counters(*own)}) for at, started, own in rows]


def test_requests_that_are_open_at_an_end_count_half():
    found = compare.watched(
        samples((0, "1", (10, 0, 0, 3)), (5, "1", (20, 0, 2, 4)), (10, "1", (30, 1, 4, 4))), {"gpu1"}, set()
    )
    assert found == {"chat": [Load(18.0, 1, 20.0, 10, 30.0), Load()]}


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
        ((49, 49, 490), (300, 0, 300), []),
        ((60, 60, 600), (49, 0, 49), []),
    ],
)
def test_what_is_worse(canary, others, worse):
    found, unknown = compare.judged([{"chat": [(*canary, 99, 99), (*others, 99, 99)]}])
    assert found == worse
    assert bool(unknown) == (min(canary[0], others[0]) < 50)


SLOW = "a request for chat takes 2.00 s; expected, from the others now and both before: %.2f s"


@pytest.mark.parametrize(
    ("canary", "others", "worse"),
    [
        ((60, 0, 120, 99, 99), (300, 0, 300, 99, 99), [SLOW % 1.0]),
        ((60, 0, 120, 99, 198), (300, 0, 300, 99, 99), []),  # its hardware is slower
        ((60, 0, 120, 99, 99), (300, 0, 600, 99, 198), [SLOW % 1.0]),  # its hardware is faster
        ((60, 0, 120, 99, 99), (300, 0, 600, 99, 99), []),  # all requests are longer now
        ((60, 0, 1.2, 99, 1), (300, 0, 3, 99, 1), []),  # 20 ms instead of 10 ms
        ((60, 0, 120, 49, 49), (300, 0, 300, 99, 99), None),
        ((60, 0, 120, 99, 99), (300, 0, 300, 0, 0), None),
        ((60, 0, 120, 99, 99), (300, 0, 300, 99, 0), [SLOW % 1.0]),
    ],
)
def test_what_is_slower_than_before(canary, others, worse):
    found, unknown = compare.judged([{"chat": [canary, others]}])
    assert found == (worse or [])
    said = ["too few requests for chat before the change to compare the speed"]
    assert unknown == (said if worse is None else [])


def test_the_gateways_are_added_up():
    same = (60, 60)
    few = {"chat": [(30, 20, 30, *same), (30, 0, 30, *same)], "embed": [(7, 0, 7, *same), (90, 0, 90, *same)]}
    found, unknown = compare.judged([few, {}, few])
    assert found == ["67 % of its requests for chat failed; at the others, 0 %"]
    assert unknown == ["too few requests for embed to compare: 14 there, 180 at the others; 50 are needed"]


class Server:
    """Answers requests at a given speed; some fail."""

    def __init__(self, slow):
        self.slow, self.failing, self.total, self.failed, self.whole, self.ends = slow, 0.0, 0, 0, 0.0, []

    def take(self, now, seconds, failed):
        self.total += 1
        self.failed += failed
        self.whole += seconds
        heapq.heappush(self.ends, now + seconds)

    def open(self, now):
        while self.ends and self.ends[0] <= now:
            heapq.heappop(self.ends)
        return len(self.ends)

    def counters(self, now):
        return Counters(self.total, self.failed, self.open(now), self.whole / max(1, self.total))


def soak(chance, slow=1.0, failing=0.0, seconds=60, spread=1.0, base=0.0, hardware=1.0):
    """Four hosts behind a gateway, which gives each request to the one with the fewest open; the canary comes back."""
    fleet = [Server(hardware), *(Server(1.0) for _number in range(3))]
    now, found, rate = -120.0, [], chance.uniform(4, 20)
    looks = [seconds * number / 20 for number in range(21)]
    while looks:
        now += chance.expovariate(rate)
        while looks and looks[0] <= now:
            at = looks.pop(0)
            servers = {("chat", "gpu%d:x:1" % number): server.counters(at) for number, server in enumerate(fleet)}
            found.append(compare.Sample(at, "1", servers))
        away = -10 < now < 0
        server = min(fleet[away:], key=lambda server: (server.open(now), chance.random()))
        changed = server is fleet[0] and now >= 0
        time = server.slow * (slow if changed else 1) * chance.lognormvariate(0, spread)
        server.take(now, time, chance.random() < (failing if changed else base))
    return compare.judged([compare.watched(found, {"gpu0"}, {"gpu1", "gpu2", "gpu3"})])


def test_honest_canaries_raise_few_alarms_and_bad_ones_many():
    honest = [soak(random.Random(seed), failing=0.01, base=0.01) for seed in range(100)]
    honest += [soak(random.Random(seed), hardware=2.0) for seed in range(50)]
    assert sum(bool(worse) for worse, _unknown in honest) <= 3, "of 150"
    slow = [soak(random.Random(seed), slow=2.5) for seed in range(30)]
    failing = [soak(random.Random(seed), failing=0.2) for seed in range(30)]
    for found in (slow, failing):
        assert sum(bool(worse) for worse, _unknown in found) >= 24
        assert sum(not worse and not unknown for worse, unknown in found) <= 2, "it says so where it cannot tell"
