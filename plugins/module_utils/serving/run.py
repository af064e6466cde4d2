# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All services of one engine on a host, from the options of the module to the proof on the GPUs.

Everything is decided and checked for all services before the first one is touched. Services that go leave first, as
they may hold what the others are to have.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..converge import run as convergence
from ..converge.model import Change, Outcome, ServiceError, Step, StepError
from ..converge.override import DIRECTORY, Override, as_bytes
from ..gpu.processes import held_by_unit
from ..gpu.select import label
from ..placement import choice, claims
from ..systemd.manager import System
from ..toolbox.errors import Failed, Refused
from . import agent, digest, exposure, gate, instances, summary
from .checks import after_change
from .gate import Proof
from .isolation import Isolation
from .model import STAYING, Engine, Host, Leaving, Plan, Service


class Differs(Exception):
    """In the lean question: the host is not in its declared state."""


def converge(
    engine: Engine,
    base: str,
    params: Mapping[str, Any],
    check_mode: bool,
    warn: Callable[[str], None],
    system: Optional[Any] = None,
    thorough: bool = True,
) -> Dict[str, Any]:
    """Bring all declared services of an engine to their declared states.

    :param base: part of their units' names before the ``@``.
    :param params: the module's parameters.
    :param check_mode: read and compare only.
    :param warn: called with each warning.
    :param thorough: see Host.
    :returns: the module's result.
    :raises Refused: nothing was touched.
    :raises Needed: nothing was touched; call again with the files on this host.
    :raises Differs: not ``thorough``, and something is to be done.
    :raises ServiceError: the previous state of the service is back; those before it are in their declared states.
    """
    host = Host(system or System(), check_mode, warn, params["facts_timeout"], thorough)
    services = instances.services(params, base)
    if any(service.options["generation"] is not None for service in services):
        from . import generations  # only for those that go back

        services = generations.back(services, engine.title)
    leaving = [service for service in services if service.options["state"] == "absent"]
    replaced = [service for service in leaving if service.replaced]  # goes for good once the instances are proven
    halting = [service for service in services if service.options["state"] == "stopped"]
    staying = [service for service in services if service.options["state"] in STAYING]
    # one that falls asleep leaves its GPUs to others
    staying.sort(key=lambda service: service.options["state"] == "present")
    plans = [_named(service, partial(_plan, engine, service, host)) for service in staying]
    going = [service.unit for service in (*leaving, *halting)]
    _check_claims(plans, going, host)
    starting = [plan for plan in plans if _starts(engine, plan, host)]
    stopped: Any = None
    for plan in starting:
        if not thorough:
            raise Differs("%s is not in its declared state" % plan.unit)
        # a converged host does not need it
        from .vacate import Vacated, in_the_way

        stopped = stopped or Vacated(host)
        moving = [other.unit for other in plans if other is not plan and in_the_way(other, plan, host)]
        before = plans[: plans.index(plan)]
        vacated = [*going, *moving, *(other.unit for other in before if other.service.options["state"] == "asleep")]
        _named(plan.service, partial(engine.preflight, plan._replace(vacated=vacated), host))
        for warning in plan.declared.warnings:
            warn(warning)
    results: Dict[str, Dict[str, Any]] = {}
    try:
        for service in halting:
            # few hosts need it
            from .stopped import stop

            results[service.unit] = stop(engine.leave(service, host), service, host)
        for service in leaving:
            if not service.replaced:
                results[service.unit] = leave(engine.leave(service, host), service, host)
            elif starting and not check_mode:
                hooks, options = engine.leave(service, host).hooks, service.options
                stopped.stop(service.unit, hooks, options["timeout"] or 60, options["undrain_command"])
        for number, plan in enumerate(plans):
            if plan in starting and not check_mode:
                stopped.make_room(plan, plans[number + 1 :])
            results[plan.unit] = _carry_out(engine, plan, host)
        for service in replaced:
            if stopped:
                stopped.keep(service.unit)
            results[service.unit] = leave(engine.leave(service, host), service, host)
    except ServiceError as error:
        outcome = error.outcome
        outcome.changed = outcome.changed or any(result["changed"] for result in results.values())
        raise ServiceError(error.message + (stopped.start_again() if stopped else ""), outcome) from error
    except BaseException:  # such as Ctrl-C: nobody else starts again what this run has stopped
        if stopped:
            stopped.start_again()
        raise
    return together(results) if params.get("instances") is not None else results[services[0].unit]


def _named(service: Service, work: Callable[[], Any]) -> Any:
    """A refusal names the instance that it is about."""
    try:
        return work()
    except Refused as error:
        raise Refused("%s: %s" % (service.unit, error) if service.name else str(error)) from None


def _plan(engine: Engine, service: Service, host: Host) -> Plan:
    """Decide everything about one service; what is known to fail is refused here."""
    options = service.options
    facts: Dict[str, Any] = {"devices": [], "count": 0} if options["visible_devices"] == "none" else host.facts
    placed = choice.place(options, facts, service.unit, engine.counts_visible)
    try:
        declared = engine.declare(service, placed, host)
    except Refused as error:  # with fewer GPUs a model may not fit, or not be split
        raise Refused("; ".join([str(error), *_sick(options["visible_devices"], placed, facts)])) from None
    if options["state"] == "present" and agent.marked(service.unit):  # a run was killed, or found it unfit
        from .drain import MarkStep

        declared.steps.append(MarkStep(service.unit))
    declared.steps += _ready_unit(service, declared.ready if options["ready_unit"] else "", host)
    if declared.listen:
        allowed = options["allow_unauthenticated"] or bool(options["clients"])
        exposure.check(declared.listen, engine.open_to, allowed, host.warn)
    used: List[Dict[str, Any]] = [] if placed.cpu else placed.devices or facts["devices"]
    claim = claims.Claim(
        service.unit,
        {device["uuid"]: declared.share for device in used if device["uuid"]},
        exclusive=not options["share_gpus"],
        ports=(*((declared.listen.port,) if declared.listen else ()), *declared.ports),
    )
    isolation = Isolation(options, used, bool(facts["count"]) and not placed.cpu, engine.title)
    settings = dict(declared.settings, **isolation.settings(service.unit, declared))
    if options["clients"] and declared.listen:
        settings.update(exposure.settings(declared.listen, options["clients"]))
        declared.checks.append(exposure.closed(declared.listen, options["clients"]))
    if options["fingerprints"] and declared.asks:
        declared.checks.append(after_change(partial(_compare_answers, service, declared.asks, host)))
    if declared.together:
        declared.checks.append(declared.together)
    environment = dict(declared.environment)
    texts = {path: text for path, text in declared.files.items() if text is not None}
    if texts and "ExecStart" in settings:
        settings["ExecStart"] = [command and digest.reporting(command, texts) for command in settings["ExecStart"]]
        environment[digest.VARIABLE] = digest.of(texts)
        settings.setdefault("SyslogIdentifier", [service.unit.partition("@")[0].partition(".")[0]])  # else it is "sh"
    change = Change(
        unit=service.unit,
        environment=environment,
        secret_environment=declared.secret_environment,
        credentials=declared.credentials,
        files=declared.files,
        settings=dict({"Service": settings} if settings else {}, **claims.lines(claim)),
        enabled=options["enabled"] and options["state"] == "present",
        started=True,
        restart=declared.restart,
        prove=options["prove"] == "now",
        install_hint=declared.install_hint,
        timeout=declared.timeout,
        unit_check=isolation.check(),
        pre_change_check=declared.pre_change_check,
    )
    proof = gate.gate(declared.checks, devices=placed.devices, facts=facts, gather=host.gather, explain=engine.explain)
    return Plan(service, placed, declared, claim, change, proof)


def _ready_unit(service: Service, url: str, host: Host) -> List[Step]:
    """The step for the unit that waits for a service; one without a URL has none."""
    path = "%s/%s" % (DIRECTORY, re.sub(r"(?=@|\.service\Z)", "-ready", service.unit, count=1))
    if not url and host.system.read(path) is None:
        return []
    # most services have no such unit
    from .ready import ReadyStep, text

    return [ReadyStep(path, text(service.unit, url) if url else None, host.system.root)]


def _compare_answers(service: Service, asks: Callable[[Proof], Tuple[Any, str]], host: Host, proof: Proof) -> None:
    if proof.figures.get("asleep"):  # it has no weights to answer with
        return
    # a converged host does not need it
    from . import fingerprint

    endpoint, model = asks(proof)
    fingerprint.compare(service, endpoint, model, host.warn, proof)


def _check_claims(plans: Sequence[Plan], leaving: Sequence[str], host: Host) -> None:
    """No two services may have the same GPU or port; and each claim is checked again when it is written."""
    names = {device["uuid"]: label(device) for plan in plans for device in plan.gate.proof.facts["devices"]}

    def named(uuid: str) -> str:
        return names.get(uuid, uuid)

    try:
        claims.check([plan.claim for plan in plans], host.system, leaving, named)
    except StepError as conflict:
        there = [plan for plan in plans if not _missing(plan, host)]
        if len(there) < len(plans):  # a unit that does not exist claims nothing; the convergence reports it
            return _check_claims(there, leaving, host)
        raise Refused(str(conflict)) from None
    for number, plan in enumerate(plans):
        later = [*leaving, *(other.unit for other in plans[number + 1 :])]  # their claims still change
        plan.change.while_writing = partial(claims.claiming, plan.claim, host.system, later, named)


def _missing(plan: Plan, host: Host) -> bool:
    """Whether a unit neither exists nor is about to be written."""
    if any(step.needed() for step in plan.declared.steps):
        return False
    return bool(host.system.show(plan.unit).get("LoadState") == "not-found")


def _starts(engine: Engine, plan: Plan, host: Host) -> bool:
    """Whether the files, or no memory on its GPUs, say that there is something to start."""
    if plan.change.restart or any(step.needed() for step in plan.declared.steps):
        return True
    override = Override(plan.unit, plan.change)
    drop_in = (override.content(override.drop_in) or b"").decode("utf-8", "surrogateescape")
    texts = dict(plan.change.files, **{override.drop_in: drop_in})
    if any(host.system.read(path) != (None if text is None else as_bytes(text)) for path, text in texts.items()):
        return True
    return engine.loads_at_start and bool(plan.placed.devices) and not held_by_unit(plan.placed.devices, plan.unit)


def _carry_out(engine: Engine, plan: Plan, host: Host) -> Dict[str, Any]:
    """Have the convergence change what differs, and prove it."""
    recorded: List[int] = []
    plan.change.accepted = partial(_accept, engine, plan, recorded)
    try:
        outcome = convergence.converge(
            plan.change,
            gate=plan.gate,
            steps=plan.declared.steps,
            hooks=plan.declared.hooks,
            check_mode=host.check_mode,
            system=host.system,
        )
    except ServiceError as error:
        raise _settled(plan, error, host) from error
    if plan.service.options["state"] == "present" and agent.marked(plan.unit) and not host.check_mode:
        _put_back(plan, outcome, host)
    finish(plan.declared.steps, outcome, host)
    if not host.check_mode:
        _keep_answers(plan, host.warn)  # of a proof without a change
    gpus = plan.gate.gpus()
    parts, more = engine.describe(plan, plan.gate.proof, outcome)
    unproven = _unproven(plan, outcome, host)
    parts = [*_sick(plan.service.options["visible_devices"], plan.placed, plan.gate.proof.facts), *parts]
    program = summary.Program(engine.title, more.get("version"), plan.declared.installs)
    parts += ["not proven (%s)" % unproven] if unproven else []
    parts += [plan.service.held] if plan.service.held else []
    answers = plan.gate.proof.figures.get("fingerprint", {})
    kept = "answers would be recorded" if host.check_mode else "answers recorded"
    parts += {"same": ["answers as recorded"], "recorded": [kept]}.get(answers.get("state"), [])
    message = summary.line(outcome, gpus, plan.placed.cpu, parts, host.check_mode, program)
    more.update(drain=_drained(plan), fingerprint=answers, generation=recorded[0] if recorded else None)
    return dict(outcome.as_result(), msg=message, gpus=gpus, unproven=unproven, **more)


def _accept(engine: Engine, plan: Plan, recorded: List[int], outcome: Outcome) -> None:
    """Record the generation that was just proven; ``recorded`` gets its number."""
    from . import generations

    figures, version = plan.gate.proof.figures, engine.describe(plan, plan.gate.proof, outcome)[1].get("version")
    installed = plan.declared.installs is not None
    found = generations.accept(plan.service, engine.title, figures, version, installed, outcome)
    recorded += [one["number"] for one in found]
    _keep_answers(plan, outcome.warnings.append)


def _keep_answers(plan: Plan, warn: Callable[[str], None]) -> None:
    """Record the answers that were just accepted, once."""
    accepted, plan.gate.proof.accepted = plan.gate.proof.accepted, None
    if accepted:
        from . import fingerprint

        fingerprint.keep(plan.unit, accepted, warn)


def _forget(unit: str, outcome: Outcome) -> None:
    """Remove what was recorded of a service that leaves, or a later one of its name would be measured by it."""
    from ..toolbox import record
    from . import fingerprint, generations

    for part in generations, fingerprint:
        try:
            record.forget(part.place_of(unit))
        except OSError as error:
            outcome.warnings.append("%s is not removed: %s" % (part.place_of(unit), error))


def _drained(plan: Plan) -> Dict[str, Any]:
    """What came of the drain of a service; empty where there was none."""
    return dict(getattr(plan.declared.hooks, "drained", {}))


def _put_back(plan: Plan, outcome: Outcome, host: Host) -> None:
    """Have a service that is proven take requests again."""
    from . import drain

    try:
        drain.put_back(plan.unit, plan.service.options["undrain_command"], host.warn)
    except (Failed, OSError) as error:
        raise ServiceError(str(error), outcome) from error


def _settled(plan: Plan, error: ServiceError, host: Host) -> ServiceError:
    """The error of a service, once its load balancers know what has become of it."""
    if host.check_mode:
        return error
    from . import drain

    command, drained = plan.service.options["undrain_command"], getattr(plan.declared.hooks, "draining", False)
    problem = drain.after_failure(plan.unit, error.outcome, plan.gate.said, drained, command, host.warn)
    return ServiceError("%s %s." % (error.message, problem), error.outcome) if problem else error


def _sick(wanted: Any, placed: choice.Placed, facts: Mapping[str, Any]) -> List[str]:
    """What is known against the GPUs of a service, and against those that its wish has left out."""
    used = [] if placed.cpu else placed.devices or facts["devices"]
    return [
        "GPU %s %s: %s"
        % (gpu["index"], "is not healthy" if gpu in used else "left out", ", ".join(gpu["health"]["reasons"]))
        for gpu in facts["devices"]
        if not gpu["health"]["ok" if gpu in used else "fit"]
        and (gpu in used or wanted == "all" or isinstance(wanted, dict))
    ]


def _unproven(plan: Plan, outcome: Outcome, host: Host) -> str:
    """Why the service's model did not answer in this run; empty where it did, or was about to."""
    proof, declared = plan.gate.proof, plan.declared
    if "answer" in proof.figures or not declared.listen or (host.check_mode and (outcome.changed or outcome.remedied)):
        return ""
    if proof.figures.get("asleep"):
        return "asleep"
    return declared.unproven or ("" if proof.changed else "nothing changed")


def leave(leaving: Leaving, service: Service, host: Host) -> Dict[str, Any]:
    """Stop and disable an instance, or a service that instances replace, and remove its files.

    Of a service that is neither, our override is removed.
    """
    change = Change(unit=service.unit, state="absent", files=leaving.files)
    stops = bool(service.name or service.replaced)
    if stops and host.system.show(service.unit).get("LoadState") == "loaded":
        # without its override it would be one more server at the default port: it is stopped, too
        change = Change(unit=service.unit, files=leaving.files, enabled=False, started=False)
    change.accepted = partial(_forget, service.unit)
    steps = [*leaving.steps, *_ready_unit(service, "", host)]
    outcome = convergence.converge(
        change, steps=steps, hooks=leaving.hooks, check_mode=host.check_mode, system=host.system
    )
    if agent.marked(service.unit) and not host.check_mode:  # no load balancer is to get it back
        from . import drain

        drain.forget(service.unit)
    finish(steps, outcome, host)
    if not outcome.changed:
        said = "disabled" if service.replaced else "not there" if service.name else "no override"
    else:
        done = "disabled" if service.replaced else "removed"
        said = "stopped and %s" % done if stops else "override removed"
        said = "would be " + said if host.check_mode else said
    return dict(outcome.as_result(), msg="%s: %s" % (service.unit, said))


def finish(steps: Sequence[Step], outcome: Outcome, host: Host) -> None:
    """Have the steps remove what was kept until the service was proven; report the warnings."""
    for step in steps:
        try:
            getattr(step, "finish", lambda: None)()
        except (StepError, OSError) as error:  # the service is proven without it
            outcome.warnings.append("what was there before is not all removed: %s; the next run resumes" % error)
    for warning in outcome.warnings:
        host.warn(warning)


def together(results: Mapping[str, Dict[str, Any]]) -> Dict[str, Any]:
    """The result of all instances."""
    said = (
        result["msg"] if result["msg"].startswith(unit) else "%s: %s" % (unit[: -len(".service")], result["msg"])
        for unit, result in results.items()
    )
    return {
        "changed": any(result["changed"] for result in results.values()),
        "msg": " | ".join(said),
        "diff": [result["diff"] for result in results.values() if result["diff"]],
        "instances": dict(results),
    }
