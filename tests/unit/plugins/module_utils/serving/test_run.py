# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All services of an engine on a host: decided and checked before the first is touched, and in which order."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Outcome,
    ServiceError,
    StepError,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import Override
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.fingerprint import Recorded, Token
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import (
    agent,
    drain,
    fingerprint,
    generations,
    model,
    run,
    stopped,
    vacate,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Cause, Declared, Leaving, Listen
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import record
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Needed, Refused

GIB = 1 << 30


class Step:
    restarts, wanted, fails = True, True, False

    def needed(self):
        return self.wanted

    def finish(self):
        if self.fails:
            raise StepError("no space")


class Engine:
    """One that listens where it is told, and writes down what it is asked."""

    title, counts_visible, loads_at_start, open_to = "Engine", False, True, "use the model"

    def __init__(self, does):
        self.does = does
        self.steps, self.refuses, self.asks, self.together = [], {}, None, None

    def declare(self, service, placed, host):
        if service.unit in self.refuses:
            raise self.refuses[service.unit]
        self.does.append("declare " + service.unit)
        listen = Listen("127.0.0.1", service.options["port"])
        more = {"steps": self.steps, "warnings": ["look out"], "asks": self.asks, "together": self.together}
        return Declared("root", listen, {"A": "1"}, **more)

    def preflight(self, plan, host):
        self.does.append("preflight " + plan.unit)
        if "preflight" in self.refuses:
            raise self.refuses["preflight"]

    def leave(self, service, host):
        return Leaving(files={"/etc/" + service.unit: None})

    def explain(self, lines):
        return Cause()

    def describe(self, plan, proof, outcome):
        return ["at :%d" % plan.declared.listen.port], {"own": True}


class System:
    """No unit has files of ours but those that are given."""

    def __init__(self):
        self.files, self.states = {}, {}

    def read(self, path):
        return self.files.get(path)

    def names(self, folder):
        return [path.split("/")[4] for path in self.files if path.count("/") > 4]

    def listener(self, port):
        return None

    def show(self, unit):
        return {"LoadState": self.states.get(unit, "loaded")}

    def lock(self, unit, limit):
        return nullcontext()


OPTIONS = {
    "state": "present",
    "port": 80,
    "visible_devices": None,
    "share_gpus": False,
    "isolate": False,
    "sandbox": False,
    "allow_unauthenticated": False,
    "enabled": True,
    "ready_unit": False,
    "environment": {},
    "secret_environment": {},
    "facts_timeout": 1.0,
    "prove": "change",
    "main": "kept",
    "timeout": None,
    "instances": None,
    "undrain_command": [],
    "fingerprints": [],
    "new_answers": False,
    "clients": [],
    "generation": None,
}


@pytest.fixture
def converge(monkeypatch, fakes, tmp_path):
    """`converge(*instances, **options)` converges; `.does` is what happened, in order, `.changes` those by unit."""

    def carry_out(change, steps=(), check_mode=False, **more):
        if call.converges:
            return call.converges(change, **more)
        call.does.append("converge " + change.unit)
        call.changes[change.unit] = change
        if change.unit in call.fails:
            raise ServiceError(change.unit + " failed", Outcome())
        outcome = Outcome(changed=call.changed)
        if call.changed and not check_mode:
            change.accepted(outcome)
        return outcome

    def call(*instances, check_mode=False, thorough=True, **options):
        call.does[:], call.warnings[:] = [], []
        params = dict(OPTIONS, **options)
        if instances:
            params["instances"] = [dict(dict.fromkeys(OPTIONS), **one) for one in instances]
        return run.converge(call.engine, "e", params, check_mode, call.warnings.append, call.system, thorough)

    call.does, call.warnings, call.changes, call.fails, call.changed = [], [], {}, (), False
    call.converges = None
    call.engine, call.system, call.facts = Engine(call.does), System(), fakes.facts()
    monkeypatch.setattr(run.convergence, "converge", carry_out)
    monkeypatch.setattr(generations, "FOLDER", str(tmp_path / "generations"))
    monkeypatch.setattr(fingerprint, "FOLDER", str(tmp_path / "fingerprints"))
    monkeypatch.setattr(model.gpu_facts, "gather", lambda timeout, python_paths: call.facts)
    return call


def as_on_disk(converge, unit):
    """What was declared of a unit is on disk by now."""
    override = Override(unit, converge.changes[unit])
    converge.system.files[override.drop_in] = override.content(override.drop_in)


A, B = {"name": "a", "visible_devices": [0]}, {"name": "b", "visible_devices": [1], "port": 81}
UNITS = ["e@a.service", "e@b.service"]


def test_one_service(converge):
    result = converge(visible_devices=[0])
    assert converge.does == ["declare e.service", "preflight e.service", "converge e.service"]
    assert converge.warnings == ["look out"]
    assert (result["msg"], result["own"], result["changed"]) == (
        "ok · 1× H200 · at :80 · not proven (nothing changed)",
        True,
        False,
    )
    assert [gpu["index"] for gpu in result["gpus"]] == [0]
    change = converge.changes["e.service"]
    assert change.settings["X-Gpufleet"]["Port"] == ["80"] and change.enabled and change.started


SICK = {"ok": False, "fit": False, "lost": False, "reasons": ["3 memory errors", "reset it"]}


@pytest.mark.parametrize(
    "wanted, said",
    [
        ("all", "3× H200 · GPU 2 left out: 3 memory errors, reset it · at"),
        ({"count": 2}, "2× H200 · GPU 2 left out: 3 memory errors, reset it · at"),
        ([0, 1], "2× H200 · at"),
        ([2], "1× H200 · GPU 2 is not healthy: 3 memory errors, reset it · at"),
        (None, "4× H200 · GPU 2 is not healthy: 3 memory errors, reset it · at"),
        ("none", "CPU · at"),
    ],
)
def test_a_sick_gpu_is_named(converge, wanted, said):
    converge.facts["devices"][2]["health"] = SICK
    assert converge(visible_devices=wanted)["msg"].startswith("ok · %s" % said)


@pytest.mark.parametrize(
    ("wanted", "said"), [({"count": 2}, "2× H200 · at"), ("all", "4× H200 · GPU 2 is not healthy: it is hot · at")]
)
def test_a_slow_gpu_is_left_out_of_nothing(converge, wanted, said):
    converge.facts["devices"][2]["health"] = {"ok": False, "fit": True, "lost": False, "reasons": ["it is hot"]}
    assert converge(visible_devices=wanted)["msg"].startswith("ok · %s" % said)


def test_what_is_refused_for_want_of_gpus_names_those_left_out(converge):
    converge.facts["devices"][2]["health"] = SICK
    converge.engine.refuses["e.service"] = Refused("it cannot be split over 3 GPUs")
    with pytest.raises(Refused, match="over 3 GPUs; GPU 2 left out: 3 memory errors, reset it"):
        converge(visible_devices="all")


def test_everything_is_decided_and_checked_before_the_first_change(converge):
    result = converge(A, B)
    assert converge.does == [what + unit for what in ("declare ", "preflight ", "converge ") for unit in UNITS]
    assert result["msg"] == (
        "e@a: ok · 1× H200 · at :80 · not proven (nothing changed)"
        " | e@b: ok · 1× H200 · at :81 · not proven (nothing changed)"
    )
    assert list(result["instances"]) == UNITS


def test_a_refusal_names_its_instance_and_nothing_is_changed(converge):
    converge.engine.refuses = {UNITS[1]: Refused("no such model")}
    with pytest.raises(Refused, match=r"^e@b.service: no such model$"):
        converge(A, B)
    converge.engine.refuses = {"preflight": StepError("no zstd")}
    with pytest.raises(Refused, match=r"^e@a.service: no zstd$"):
        converge(A, B)
    with pytest.raises(Refused, match=r"^no zstd$"):
        converge()
    converge.engine.refuses = {"preflight": Needed(["/a.tgz"])}
    with pytest.raises(Needed):
        converge(A, B)
    assert not converge.changes


def test_services_that_leave_come_first(converge):
    converge.changed = True
    result = converge(A, dict(B, state="absent"))
    assert converge.does == [
        "declare " + UNITS[0],
        "preflight " + UNITS[0],
        "converge " + UNITS[1],
        "converge " + UNITS[0],
    ]
    left = converge.changes[UNITS[1]]
    assert (left.state, left.started, left.enabled, left.files) == ("present", False, False, {"/etc/e@b.service": None})
    assert "e@b.service: stopped and removed" in result["msg"]
    converge.system.states[UNITS[1]] = "not-found"
    converge(dict(B, state="absent"))
    assert converge.changes[UNITS[1]].state == "absent", "there is nothing to stop"


def test_a_stopped_service_is_not_planned(converge, monkeypatch):
    monkeypatch.setattr(stopped, "stop", lambda leaving, service, host: {"changed": True, "msg": "stopped", "diff": {}})
    result = converge(A, dict(B, state="stopped"), state="present")
    assert "declare " + UNITS[1] not in converge.does and UNITS[1] not in converge.changes
    assert result["changed"] and result["msg"].startswith("e@b: stopped")


def test_a_service_that_is_no_instance_runs_on_without_its_override(converge):
    assert converge(state="absent")["msg"] == "e.service: no override"
    assert (converge.changes["e.service"].state, converge.changes["e.service"].started) == ("absent", None)
    converge.changed = True
    assert converge(state="absent")["msg"] == "e.service: override removed"


def test_one_that_falls_asleep_comes_first_and_leaves_its_memory_to_the_others(converge, monkeypatch):
    vacated = {}
    monkeypatch.setattr(
        converge.engine, "preflight", lambda plan, host: vacated.update({plan.unit: list(plan.vacated)})
    )
    converge(A, dict(B, state="asleep"), state="present")
    assert converge.does == ["declare " + unit for unit in UNITS[::-1]] + ["converge " + unit for unit in UNITS[::-1]]
    assert vacated[UNITS[0]] == [UNITS[1]]
    assert [converge.changes[unit].enabled for unit in UNITS] == [True, False]


def test_one_that_is_asleep_stays_marked(converge, monkeypatch):
    monkeypatch.setattr(agent, "marked", lambda unit: True)
    monkeypatch.setattr(run, "_put_back", lambda plan, outcome, host: put_back.append(plan.unit))
    put_back = []
    converge(dict(A, state="asleep"), B, state="present")
    assert put_back == [UNITS[1]]


MAIN = "e.service"


@pytest.mark.parametrize("check", [True, False])
def test_instances_take_the_place_of_the_main_service(converge, monkeypatch, check):
    does = converge.does
    monkeypatch.setattr(vacate.Vacated, "stop", lambda self, unit, *more: does.append("stop " + unit))
    converge.changed = True
    result = converge(A, main="disabled", check_mode=check)
    stop = [] if check else ["stop " + MAIN]
    assert does[2:] == [*stop, "converge e@a.service", "converge " + MAIN]
    change = converge.changes[MAIN]
    assert (change.state, change.enabled, change.started, change.environment) == ("present", False, False, {})
    said = "would be stopped and disabled" if check else "stopped and disabled"
    assert result["msg"].endswith(" | e.service: " + said)
    as_on_disk(converge, "e@a.service")
    converge.engine.loads_at_start = False
    converge.changed = False
    assert converge(A, main="disabled")["msg"].endswith(" | e.service: disabled")
    assert "stop " + MAIN not in does


def test_the_main_service_runs_again_where_an_instance_fails(converge, monkeypatch):
    monkeypatch.setattr(vacate.Vacated, "stop", lambda self, unit, *more: self.units.update({unit: more}))
    monkeypatch.setattr(vacate.Vacated, "start_again", lambda self: " %s runs again." % ", ".join(self.units))
    converge.fails = ("e@a.service",)
    with pytest.raises(ServiceError, match="e@a.service failed e.service runs again"):
        converge(A, main="disabled")
    assert MAIN not in converge.changes


@pytest.mark.parametrize("error", [ServiceError("it cannot be disabled"), OSError("no space"), KeyboardInterrupt()])
def test_the_main_service_does_not_run_again_next_to_proven_instances(converge, monkeypatch, error):
    monkeypatch.setattr(vacate.Vacated, "stop", lambda self, unit, *more: self.units.update({unit: more}))
    left = []
    monkeypatch.setattr(vacate.Vacated, "start_again", lambda self: left.append(list(self.units)) or "")

    def fails(leaving, service, host):
        raise error

    monkeypatch.setattr(run, "leave", fails)
    with pytest.raises(type(error)):
        converge(A, main="disabled")
    assert left == [[]]


@pytest.mark.parametrize(
    "second, words", [({"visible_devices": [0]}, "both claim GPU 0"), ({"port": 80}, "both listen")]
)
def test_two_that_are_in_each_others_way(converge, second, words):
    with pytest.raises(Refused, match=words):
        converge(A, dict(B, **second))
    assert not converge.changes


def test_that_a_unit_is_missing_is_left_to_the_convergence_to_say(converge):
    converge.system.states[UNITS[0]] = "not-found"
    converge(A, dict(B, port=80))
    assert UNITS[0] in converge.changes
    third = {"name": "c", "port": 80}
    with pytest.raises(Refused, match="both listen"):
        converge(A, dict(B, port=80), dict(A, **third))
    converge.engine.steps = [Step()]  # it is about to be written
    with pytest.raises(Refused, match="both listen"):
        converge(A, dict(B, port=80))


def test_an_interrupted_run_starts_again_what_it_has_stopped(converge, monkeypatch):
    started = []
    monkeypatch.setattr(vacate.Vacated, "start_again", lambda self: started.append(True) or "")

    def interrupted(*_words, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.convergence, "converge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converge(A, B)
    assert started == [True]


def test_what_happened_before_a_failure_counts(converge):
    converge.changed, converge.fails = True, (UNITS[1],)
    with pytest.raises(ServiceError) as failed:
        converge(A, B)
    assert failed.value.outcome.changed and str(failed.value) == "e@b.service failed"
    converge.changed = False
    with pytest.raises(ServiceError) as failed:
        converge(A, B)
    assert not failed.value.outcome.changed


def test_what_a_start_runs_into_is_examined_only_where_there_is_one(converge, fakes):
    converge(visible_devices=[0])
    as_on_disk(converge, "e.service")
    converge(visible_devices=[0])
    assert "preflight e.service" in converge.does, "it uses no memory of its GPUs, so it does not run"
    converge.engine.loads_at_start = False
    converge(visible_devices=[0])
    assert "preflight e.service" not in converge.does and converge.warnings == []
    converge.engine.loads_at_start, converge.facts = True, fakes.facts((GIB, 0, 0, 0), unit="e.service")
    converge(visible_devices=[0])
    assert "preflight e.service" not in converge.does
    converge.engine.steps = [Step()]
    converge(visible_devices=[0])
    assert "preflight e.service" in converge.does


def test_a_lean_question_ends_with_the_first_difference(converge, fakes):
    with pytest.raises(run.Differs, match="e.service is not in its declared state"):
        converge(visible_devices=[0], thorough=False, check_mode=True)
    assert converge.does == ["declare e.service"]
    converge(visible_devices=[0])
    as_on_disk(converge, "e.service")
    converge.facts = fakes.facts((GIB, 0, 0, 0), unit="e.service")
    assert converge(visible_devices=[0], thorough=False, check_mode=True)["changed"] is False


def test_what_cannot_be_cleaned_up_after_the_proof_is_a_warning(converge):
    step = Step()
    step.wanted, step.fails = False, True
    converge.engine.steps = [step]
    converge()
    assert "what was there before is not all removed: no space; the next run resumes" in converge.warnings


def test_without_gpus_no_facts_are_read(converge):
    converge.facts = None
    result = converge(visible_devices="none")
    assert result["msg"] == "ok · CPU · at :80 · not proven (nothing changed)" and result["gpus"] == []
    assert "GPU" not in converge.changes["e.service"].settings["X-Gpufleet"]


# --- load balancers


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The mark of e.service; ``mark.leave(**said)`` writes one, ``mark.said()`` is what it says."""
    monkeypatch.setattr(agent, "MARKS", str(tmp_path / "marks"))
    monkeypatch.setattr(agent, "CONFIG", str(tmp_path / "agent.json"))

    class Mark:
        path = tmp_path / "marks/e.service"

        def leave(self, **said):
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(said))

        def said(self):
            return json.loads(self.path.read_text()) if self.path.exists() else None

    (tmp_path / "agent.json").write_text("{}")
    return Mark()


@pytest.mark.parametrize("said", [{"state": "drain"}, {"state": "down", "verdict": "cpu_fallback"}])
def test_a_service_that_is_proven_takes_requests_again(converge, mark, said):
    mark.leave(**said)
    assert converge()["msg"].startswith("ok") and mark.said() is None


def test_check_mode_leaves_a_mark_and_says_so(converge, mark):
    converge(check_mode=True)
    as_on_disk(converge, "e.service")
    converge(check_mode=True, thorough=False)
    mark.leave(state="drain")
    converge(check_mode=True)
    assert mark.said() == {"state": "drain"}
    with pytest.raises(run.Differs):
        converge(check_mode=True, thorough=False)


def test_a_service_that_is_found_unfit_is_marked_and_no_other_one(converge, mark):
    def unfit(change, gate=None, **more):
        gate.said = Verdict("cpu_fallback")
        raise ServiceError("it serves on the CPU", Outcome(verdict=gate.said))

    converge.converges = unfit
    with pytest.raises(ServiceError):
        converge(check_mode=True)
    assert mark.said() is None
    with pytest.raises(ServiceError):
        converge()
    assert mark.said() == {"state": "down", "verdict": "cpu_fallback"}


def test_a_service_that_leaves_is_not_put_back(converge, mark, monkeypatch):
    mark.leave(state="drain", command=True)
    for name in ("run_command", "_await_return"):
        monkeypatch.setattr(drain, name, lambda *words: pytest.fail("it is gone"))
    converge(state="absent", undrain_command=["/bin/true"])
    assert mark.said() is None


def test_a_service_that_cannot_be_put_back_fails_and_stays_marked(converge, mark, monkeypatch):
    mark.leave(state="drain", command=True)
    monkeypatch.setattr(drain, "run_command", lambda *words: "status 1")
    with pytest.raises(ServiceError, match="e.service is proven, but takes no requests yet: undrain_command: status 1"):
        converge(undrain_command=["/bin/false"])
    assert mark.said() == {"state": "drain", "command": True}


# --- generations


def test_a_change_is_recorded_once_it_is_accepted(converge):
    assert converge()["generation"] is None
    converge.changed = True
    assert converge(check_mode=True)["generation"] is None
    converge.fails = ("e.service",)
    with pytest.raises(ServiceError):
        converge()
    assert generations.read("e.service") == []
    converge.fails = ()
    assert converge()["generation"] == 1
    assert converge(port=81)["generation"] == 2
    assert converge(port=81)["generation"] is None
    assert [one["options"]["port"] for one in generations.read("e.service", "Engine")] == [80, 81]


def test_a_service_goes_back_to_a_generation_and_says_so(converge):
    converge.changed = True
    converge()
    converge(port=81)
    result = converge(port=82, generation="1")
    assert converge.changes["e.service"].settings["X-Gpufleet"]["Port"] == ["80"]
    assert "at :80" in result["msg"] and result["generation"] == 3
    assert result["msg"].endswith("generation 1, not as declared: port")
    converge.fails = ("e.service",)
    with pytest.raises(ServiceError):
        converge(generation="2")
    assert [one["options"]["port"] for one in generations.read("e.service")] == [80, 81, 80]
    with pytest.raises(Refused, match="e.service has no generation 9"):
        converge(generation="9")


def test_each_instance_has_its_own_generations(converge):
    converge.changed = True
    converge(A, B)
    converge(A, dict(B, port=82), share_gpus=True)
    converge(A, dict(B, port=83, generation="1"))
    assert converge.changes[UNITS[1]].settings["X-Gpufleet"]["Port"] == ["81"]
    assert [len(generations.read(unit)) for unit in UNITS] == [3, 3]


def test_a_service_that_leaves_takes_its_generations_with_it(converge):
    converge.changed = True
    converge(A, B)
    converge(A, dict(B, state="absent"), check_mode=True)
    assert generations.read(UNITS[1])
    converge(A, dict(B, state="absent"))
    assert generations.read(UNITS[0]) and not generations.read(UNITS[1])


def test_a_converged_host_does_not_look_at_generations(converge, monkeypatch):
    monkeypatch.setitem(sys.modules, generations.__name__, None)
    monkeypatch.delattr(sys.modules[run.__package__], "generations")
    converge()
    converge(A, B, check_mode=True)


# --- fingerprints


@pytest.fixture
def answers(converge, monkeypatch):
    """The model answers with "yes"; `.asked` is how often. `.figures` is what the checks before have found."""

    class Answers:
        asked, figures, accepts = 0, {}, True

    def compare(service, endpoint, model, warn, proof):
        Answers.asked += 1
        proof.figures["fingerprint"] = {"state": "recorded"}
        proof.accepted = Recorded(model, service.options["fingerprints"], [[Token("yes", -0.1, {})]], 0.1)

    def convergence(change, gate=None, check_mode=False, **more):
        outcome = Outcome(changed=Answers.accepts)
        if gate:
            gate.proof.figures.update(Answers.figures)
            assert gate(SimpleNamespace(invocation_id="1"), changed=True).ok
            if Answers.accepts:
                assert fingerprint.read(change.unit) is None, "it is not proven yet"
                change.accepted(outcome)
                assert fingerprint.read(change.unit), "a run that is killed from now on is complete"
        elif not check_mode:
            change.accepted(outcome)
        return outcome

    monkeypatch.setattr(fingerprint, "compare", compare)
    monkeypatch.setattr(run.convergence, "converge", convergence)
    converge.engine.asks = lambda proof: (None, "m")
    return Answers


def test_answers_are_recorded_before_the_way_back_is_given_up(converge, answers):
    assert "answers recorded" in converge(fingerprints=["Hi"])["msg"]
    assert answers.asked == 1


def test_answers_of_a_proof_without_a_change_are_recorded_too(converge, answers):
    answers.accepts = False
    assert "answers would be recorded" in converge(check_mode=True, fingerprints=["Hi"])["msg"]
    assert fingerprint.read("e.service") is None
    assert "answers recorded" in converge(fingerprints=["Hi"])["msg"]
    assert fingerprint.read("e.service").model == "m"


def test_other_hosts_are_waited_for_once_everything_is_found_right(converge, answers):
    """Wrong answers of the first host have to be known before the others keep the change."""
    waited = []
    converge.engine.together = lambda proof: waited.append(answers.asked)
    converge(fingerprints=["Hi"])
    assert waited == [1]


def test_a_model_that_sleeps_is_not_asked(converge, answers):
    answers.accepts, answers.figures = False, {"asleep": True}
    assert "fingerprint" not in converge(fingerprints=["Hi"])["msg"] and not answers.asked


def test_a_service_that_leaves_takes_its_answers_with_it(converge, answers):
    one = dict(A, fingerprints=["Hi"])
    converge(one)
    converge(dict(one, state="absent"), check_mode=True)
    assert fingerprint.read(UNITS[0])
    rest = "%s/.%s.json.new" % (fingerprint.FOLDER, UNITS[0])
    with open(rest, "w", encoding="utf-8"):
        pass
    answers.accepts = False  # as after a kill: the unit itself is gone already
    converge(dict(one, state="absent"))
    assert not os.path.exists(fingerprint.FOLDER)


def test_what_cannot_be_removed_of_a_service_that_leaves_is_a_warning(converge, monkeypatch):
    def fails(path):
        raise OSError(16, "busy")

    monkeypatch.setattr(record, "forget", fails)
    converge.changed = True
    converge(dict(A, state="absent"))
    for part in generations, fingerprint:
        assert "%s is not removed: [Errno 16] busy" % part.place_of(UNITS[0]) in converge.warnings
