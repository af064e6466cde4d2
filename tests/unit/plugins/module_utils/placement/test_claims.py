# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two services and the same GPU or port: what is refused, and whose claims count."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import run as convergence
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, ServiceError, StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.placement import claims
from ansible_collections.gpufleet.inference.plugins.module_utils.placement.claims import Claim
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd import render
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import System

A, B = "GPU-aaaaaaaa-0000-4000-8000-000000000000", "GPU-bbbbbbbb-0000-4000-8000-000000000000"
UP = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "disabled"}


class Host:
    """Overrides that lie on a host, and the state of their units."""

    def __init__(self, **held):
        self.files, self.states, self.asked = {}, {}, []
        self.listeners, self.groups = {}, {}
        for name, claim in held.items():
            self.add(Claim(name + ".service", **claim))

    def add(self, claim, state=UP):
        path = "/etc/systemd/system/%s.d/zz-gpufleet.conf" % claim.unit
        text = render.drop_in(claim.unit, {"A": "1"}, claims.lines(claim))
        self.files[path] = text.encode()
        self.states[claim.unit] = state

    def names(self, directory):
        assert directory == "/etc/systemd/system"
        return [*{path.split("/")[4] for path in self.files}, "multi-user.target.wants", "empty.service.d", "x.service"]

    def read(self, path):
        return self.files.get(path)

    def show(self, unit):
        self.asked.append(unit)
        return dict(self.states.get(unit, {}), ControlGroup="/system.slice/" + unit)

    def listener(self, port):
        return self.listeners.get(port)

    def pids(self, control_group):
        return self.groups.get(control_group, [])


@pytest.mark.parametrize(
    "claim",
    [
        Claim("a.service", {A: None, B: 0.45}, ports=(8000, 8001)),
        Claim("vllm@chat.service", {A: 0.9}, exclusive=False),
        Claim("p.service", ports=(1,)),
    ],
)
def test_a_claim_is_read_back_as_it_was_written(claim):
    host = Host()
    host.add(claim)
    assert claims.held(host) == [claim]
    render.check_settings(claims.lines(claim))


def test_no_claim_leaves_no_lines():
    assert claims.lines(Claim("a.service")) == {}
    host = Host(a={})
    assert claims.held(host) == []


MEET = [
    (
        {"gpus": {A: None}},
        {"gpus": {A: None, B: None}},
        "a.service and b.service both claim GPU a, and each for itself",
    ),
    ({"gpus": {A: None}, "exclusive": False}, {"gpus": {A: 0.1}}, "both claim GPU a, and b.service for itself alone"),
    ({"ports": (80, 81)}, {"ports": (81,)}, "a.service and b.service both listen on port 81"),
    (
        {"gpus": {A: 0.6}, "exclusive": False},
        {"gpus": {A: 0.45}, "exclusive": False},
        "a.service and b.service share GPU a, but claim 60 % and 45 % of its memory",
    ),
]
APART = [
    ({"gpus": {A: None}}, {"gpus": {B: None}}),
    ({"ports": (80,)}, {"ports": (81,)}),
    ({"gpus": {A: 0.5}, "exclusive": False}, {"gpus": {A: 0.5}, "exclusive": False}),
    ({"gpus": {A: 0.9}, "exclusive": False}, {"gpus": {A: None}, "exclusive": False}),
]


@pytest.mark.parametrize("one, two, words", MEET)
def test_who_meets_is_refused_with_both_names(one, two, words):
    label = {A: "a", B: "b"}.get
    both = [Claim("a.service", **one), Claim("b.service", **two)]
    with pytest.raises(StepError, match=words):
        claims.check(both, Host(), label=label)
    host = Host(b=two)
    with pytest.raises(StepError, match=words) as error:
        claims.check(both[:1], host, label=label)
    assert "systemctl disable --now b.service" in str(error.value) or "share" in words
    assert host.asked == ["b.service"]


@pytest.mark.parametrize("one, two", APART)
def test_who_does_not_meet_is_left_alone_and_costs_no_look_at_systemd(one, two):
    host = Host(b=two)
    claims.check([Claim("a.service", **one)], host)
    claims.check([Claim("a.service", **one), Claim("c.service", **two)], Host())
    assert host.asked == []


def test_three_that_share_may_take_no_more_than_there_is():
    host = Host(**{name: {"gpus": {A: 0.4}, "exclusive": False} for name in ("b", "c")})
    with pytest.raises(StepError, match="a.service and b.service and c.service share .* 40 % and 40 % and 40 %"):
        claims.check([Claim("a.service", {A: 0.4}, exclusive=False)], host)
    host.states["c.service"] = {"LoadState": "not-found"}
    claims.check([Claim("a.service", {A: 0.4}, exclusive=False)], host)


def test_lines_that_a_person_spoiled_are_passed_over():
    text = b"[X-Gpufleet]\nGPU=%s much\nPort=x\nPort=80\n[Service]\nPort=81\n" % A.encode()
    assert claims.read("a.service", text) == Claim("a.service", {A: None}, ports=(80,))


def test_a_unit_is_not_in_its_own_way():
    host = Host(a={"gpus": {A: None}, "ports": (80,)})
    claims.check([Claim("a.service", {A: None, B: None}, ports=(80,))], host)


def test_a_unit_that_the_same_run_takes_away_is_in_nobodys_way():
    host = Host(b={"gpus": {A: None}})
    claims.check([Claim("a.service", {A: None})], host, leaving=["b.service"])


def test_a_declared_claim_counts_in_place_of_the_one_on_the_host():
    host = Host(b={"gpus": {A: None}})
    claims.check([Claim("a.service", {A: None}), Claim("b.service", {B: None})], host)


STATES = [
    ({"LoadState": "not-found", "ActiveState": "inactive"}, False),
    ({"LoadState": "masked", "ActiveState": "inactive", "UnitFileState": "masked"}, False),
    ({"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"}, False),
    ({"LoadState": "loaded", "ActiveState": "failed", "UnitFileState": "static"}, False),
    ({"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "enabled"}, True),
    ({"LoadState": "loaded", "ActiveState": "activating", "UnitFileState": "disabled"}, True),
    (UP, True),
]


@pytest.mark.parametrize("state, holds", STATES)
def test_a_unit_that_was_removed_or_switched_off_by_hand_holds_nothing(state, holds):
    host = Host()
    host.add(Claim("b.service", {A: None}), state)
    if holds:
        with pytest.raises(StepError):
            claims.check([Claim("a.service", {A: None})], host)
    else:
        claims.check([Claim("a.service", {A: None})], host)


def test_a_port_on_which_a_stranger_listens_is_refused_with_its_name():
    host = Host()
    host.listeners[80] = (42, "nginx")
    with pytest.raises(StepError, match=r"port 80, on which a.service is to listen, is taken by process 42 \(nginx\)"):
        claims.check([Claim("a.service", ports=(80,))], host)


def test_a_port_that_a_unit_of_this_run_gives_up_is_free():
    host = Host()
    host.listeners[80] = (42, "ollama")
    host.groups["/system.slice/b.service"] = [41, 42]
    claims.check([Claim("a.service", ports=(80,)), Claim("b.service", ports=(81,))], host)
    claims.check([Claim("a.service", ports=(80,))], host, leaving=["b.service"])


def test_a_port_that_the_unit_had_before_is_not_looked_at():
    host = Host(a={"ports": (80,)})
    host.listeners[80] = (42, "a")
    claims.check([Claim("a.service", ports=(80,))], host)
    assert host.asked == []


# --- two runs at once


class Down(System):
    """A host whose units exist, and are neither running nor enabled, as they are while a run brings them up."""

    def show(self, unit):
        return {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"}

    def write(self, claim):
        path = Path("%s/etc/systemd/system/%s.d/zz-gpufleet.conf" % (self.root, claim.unit))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render.drop_in(claim.unit, {"A": "1"}, claims.lines(claim)))


@pytest.mark.parametrize("number", range(20))
def test_of_two_runs_at_once_one_gets_the_gpu(tmp_path, number):
    """Both found it free; neither unit is up before the other one asks again."""
    system, both_checked, both_done = Down(str(tmp_path)), threading.Barrier(2), threading.Barrier(2)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)

    def run(claim):
        claims.check([claim], system)
        both_checked.wait(30)
        try:
            with system.lock(claim.unit, 1):
                try:
                    with claims.claiming(claim, system):
                        system.write(claim)
                finally:
                    both_done.wait(30)  # the proof takes longer than the other run's check
        except StepError as conflict:
            return str(conflict)

    two = [Claim("a.service", {A: None}), Claim("b.service", {A: 0.2}, exclusive=False)]
    with ThreadPoolExecutor(2) as runs:
        found = list(runs.map(run, two))
    assert sorted(map(bool, found)) == [False, True], found
    assert "both claim GPU" in "".join(filter(None, found))
    assert len(claims.held(system)) == 1


def test_a_claim_that_a_killed_run_left_holds_nothing(tmp_path):
    system = Down(str(tmp_path))
    system.write(Claim("a.service", {A: None}))
    with claims.claiming(Claim("b.service", {A: None}), system):
        system.write(Claim("b.service", {A: None}))
    with system.lock("b.service", 0), pytest.raises(StepError), claims.claiming(Claim("a.service", {A: None}), system):
        pass


def test_the_ledger_is_free_again_after_a_conflict_and_holds_no_unit(tmp_path):
    system = Down(str(tmp_path))
    system.write(Claim("a.service", {A: None}))
    with system.lock("a.service", 0), pytest.raises(StepError), claims.claiming(Claim("b.service", {A: None}), system):
        pass
    with claims.claiming(Claim("b.service", {A: None}), system, leaving=["a.service"]), system.lock("a.service", 0):
        pass


class Install:
    restarts = False
    undone = 0

    def needed(self):
        return True

    def diff(self):
        return {"before": "", "after": ""}

    def apply(self):
        pass

    def undo(self):
        self.undone += 1


def test_a_run_that_was_too_slow_puts_everything_back(system):
    """The engine asks after its steps, which take long, and before its files."""
    before, step = system.tree(), Install()

    def claiming():
        raise StepError("a and b both claim GPU 0")

    change = Change("ollama.service", environment={"A": "1"}, started=True, while_writing=claiming)
    with pytest.raises(ServiceError, match="not_done: a and b both claim GPU 0. The previous state") as error:
        convergence.converge(change, steps=[step], system=system)
    assert error.value.outcome.rolled_back and step.undone == 1
    assert system.tree() == before and "restart" not in system.calls


def test_the_ledger_is_held_while_the_override_is_written_and_no_longer(system):
    seen = []

    class Claiming:
        def __enter__(self):
            seen.append(system.read("/etc/systemd/system/ollama.service.d/zz-gpufleet.conf"))

        def __exit__(self, *_error):
            seen.append(system.read("/etc/systemd/system/ollama.service.d/zz-gpufleet.conf"))
            assert "reload" not in system.calls

    change = Change("ollama.service", environment={"A": "1"}, started=True, while_writing=Claiming)
    convergence.converge(change, system=system)
    assert seen[0] is None and b"A=1" in seen[1]
    convergence.converge(change, system=system)
    assert len(seen) == 2
