# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Around a stop: requests end before it, and the GPU memory is free after it."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import drain
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.stop import Stop

GIB = 1 << 30
ALL = (GIB, GIB, GIB, GIB)


@pytest.fixture
def hooks_of(web, fakes):
    def make(*looks, drain=5.0, release=0.5):
        said, left = [], list(looks)
        hooks = Stop(
            endpoint_of=lambda environ: Endpoint(web.url, environ.get("VLLM_API_KEY")),
            gather=lambda: left.pop(0) if len(left) > 1 else left[0],
            gpus=True,
            drain=drain,
            release=release,
            warn=said.append,
        )
        hooks.said = said
        return hooks

    return make


def load(running, waiting):
    return 200, "vllm:num_requests_running %d\nvllm:num_requests_waiting %d\n" % (running, waiting)


def test_requests_are_waited_for_with_the_key_of_the_running_process(hooks_of, fakes, web):
    answers = [load(1, 1), load(0, 1), load(0, 0)]
    web.answers["/metrics"] = lambda: answers.pop(0)
    running, hooks = fakes.FakeRunning(), hooks_of(fakes.facts())
    running.environ = {"VLLM_API_KEY": "former-key"}
    hooks.before_stop(running)
    assert answers == [] and hooks.said == []
    assert web.headers[-1]["Authorization"] == "Bearer former-key"


def test_the_port_is_that_of_the_running_process(hooks_of, fakes, web, monkeypatch):
    ports = []
    monkeypatch.setattr(drain, "drain", lambda running, endpoint, port, *words: ports.append(port))
    hooks = hooks_of(fakes.facts())
    hooks.before_stop(fakes.FakeRunning())
    hooks.endpoint_of, hooks.port_of = lambda environ: None, lambda environ: int(environ["PORT"])
    running = fakes.FakeRunning()
    running.environ = {"PORT": "11500"}
    hooks.before_stop(running)
    assert ports == [Endpoint(web.url).port, 11500]


def test_requests_that_do_not_end_are_cut_and_told(hooks_of, fakes, web):
    web.answers["/metrics"] = load(2, 3)
    hooks = hooks_of(fakes.facts(), drain=0.1)
    hooks.before_stop(fakes.FakeRunning())
    assert "2 requests running and 3 waiting" in hooks.said[0] and "they were cut" in hooks.said[0]


def test_who_is_not_asked(hooks_of, fakes, web):
    none = hooks_of(fakes.facts(), drain=0)
    none.before_stop(fakes.FakeRunning())
    unknown = hooks_of(fakes.facts())
    unknown.endpoint_of = lambda environ: None
    unknown.before_stop(fakes.FakeRunning())
    assert web.requests == [] and unknown.pids == [99, 100]


@pytest.mark.parametrize("drain", [0, 5.0])
def test_a_dead_one_is_not_waited_for(hooks_of, fakes, web, drain):
    web.server.server_close()
    hooks = hooks_of(fakes.facts(), drain=drain)
    hooks.before_stop(fakes.FakeRunning())
    assert hooks.said == []


def test_memory_of_the_former_processes_is_waited_for(hooks_of, fakes):
    hooks = hooks_of(fakes.facts(ALL, pid=100), fakes.facts(ALL, pid=100), fakes.facts(ALL, pid=555), release=30)
    hooks.before_stop(fakes.FakeRunning())
    assert hooks.after_stop().ok, "555 is another process: not ours to wait for"


def test_memory_that_is_not_released_is_named(hooks_of, fakes):
    hooks = hooks_of(fakes.facts((GIB, 0, 0, 0), pid=100))
    hooks.before_stop(fakes.FakeRunning())
    verdict = hooks.after_stop()
    assert verdict.name == "vram_held"
    assert "PID 100 (VLLM::Worker) 1.0 GiB on GPU 0" in verdict.message
    assert verdict.evidence == {"holders": ["PID 100 (VLLM::Worker) 1.0 GiB on GPU 0"]}


def test_memory_of_which_not_all_is_known(hooks_of, fakes):
    facts = fakes.facts((GIB, GIB, 0, 0), pid=100)
    facts["devices"][0]["processes"] = None
    facts["devices"][1]["processes"][0]["used_bytes"] = None
    hooks = hooks_of(facts, release=0)
    hooks.before_stop(fakes.FakeRunning())
    assert hooks.after_stop().evidence == {"holders": ["PID 100 (VLLM::Worker) 0.0 GiB on GPU 1"]}


@pytest.mark.parametrize("gpus, stopped", [(False, True), (True, False)])
def test_without_gpus_or_processes_there_is_no_memory_to_wait_for(hooks_of, fakes, gpus, stopped):
    hooks = hooks_of(fakes.facts(ALL))
    hooks.gpus, hooks.gather = gpus, lambda: pytest.fail("nothing is asked")
    if stopped:
        hooks.before_stop(fakes.FakeRunning())
    assert hooks.after_stop().ok
