# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as a table: a unit as observed and what is declared in, the commands of the run and the reasons out."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.compare import View
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Change, Verdict
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.observe import (
    FileChange,
    Observed,
    StepChange,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import Override
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.plan import Plan, Reason, plan, with_remedy
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge

UNIT = "x.service"
D = "/etc/systemd/system/x.service.d/"
OURS = D + "zz-gpufleet.conf"
A1 = "[Service]\nEnvironment=A=1\n"
RELOAD, FORGET = "systemctl daemon-reload", "systemctl reset-failed x.service"
RESTART, START, STOP = ("systemctl %s x.service" % verb for verb in ("restart", "start", "stop"))
DOWN = {"ActiveState": "inactive", "SubState": "dead", "MainPID": "0"}
LOOPING = {"ActiveState": "activating", "SubState": "auto-restart", "MainPID": "0"}
CHANGED = FileChange(OURS, A1.encode(), 0o644, None, 0)
GONE = FileChange(OURS, None, 0o644, A1.encode(), 0o644)
STEP = StepChange("UserStep", True, "", "user x")


def view(drop_ins: Mapping[str, str]) -> View:
    """The unit with drop-ins, by path."""
    paths = sorted(drop_ins, key=lambda path: path.rpartition("/")[2])
    unit = merge(
        [("/usr/lib/systemd/system/" + UNIT, b"[Service]\nExecStart=/x\n")]
        + [(path, drop_ins[path].encode()) for path in paths]
    )
    return View(unit, unit.environment({}))


class Case(NamedTuple):
    """One row. All but ``declared`` says how the unit differs from one that runs with A=1 and needs nothing."""

    declared: Dict[str, Any] = {}
    state: Dict[str, str] = {}
    now: str = A1
    """Our drop-in on the disk."""
    planned: str = A1
    others: Dict[str, str] = {}
    """Foreign drop-ins, by path."""
    environ: Optional[Dict[str, str]] = {"A": "1"}
    more: Dict[str, Any] = {}
    """Further fields of what was observed."""
    hooks: bool = False
    commands: List[str] = []
    reasons: List[Tuple[str, ...]] = []
    refusal: str = ""


def planned_of(case: Case) -> Plan:
    change = Change(UNIT, **dict({"environment": {"A": "1"}}, **case.declared))
    state = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "disabled", "Environment": '"A=1"'}
    observed = Observed(
        unit=UNIT,
        state=dict(state, **case.state),
        now=view(dict(case.others, **({OURS: case.now} if case.now else {}))),
        planned=view(dict(case.others, **({OURS: case.planned} if case.planned else {}))),
        environ=case.environ,
        **case.more,
    )
    return plan(observed, Override(UNIT, change), change, case.hooks)


CASES = {
    "nothing to do": Case(),
    "nothing declared": Case({"environment": {}}, now="", planned=""),
    "down, and may stay so": Case(state=DOWN, environ=None),
    "stopped as declared": Case({"started": False}, DOWN, environ=None),
    "absent, and not there": Case({"state": "absent"}, {"LoadState": "not-found", **DOWN}, now="", planned=""),
    # --- reasons for a restart
    "the value in force changes": Case(
        state={"Environment": ""},
        now="",
        environ={},
        more={"files": (CHANGED,)},
        commands=["write " + OURS, RELOAD, FORGET, RESTART],
        reasons=[("environment", "A")],
    ),
    "the value in force changes for a unit that is down": Case(
        state={"Environment": "", **DOWN},
        now="",
        environ=None,
        more={"files": (CHANGED,)},
        commands=["write " + OURS, RELOAD],
    ),
    "the form alone changes": Case(
        now="# by hand\n" + A1, more={"files": (CHANGED,)}, commands=["write " + OURS, RELOAD]
    ),
    "a setting of the process changes": Case(
        planned=A1 + "LimitNOFILE=9\n",
        more={"files": (CHANGED,)},
        commands=["write " + OURS, RELOAD, FORGET, RESTART],
        reasons=[("settings", "[Service] LimitNOFILE")],
    ),
    "a setting of systemd's own changes": Case(
        planned=A1 + "Restart=no\n", more={"files": (CHANGED,)}, commands=["write " + OURS, RELOAD]
    ),
    "a file that it reads changes": Case(
        {"files": {"/etc/x.yaml": "a"}},
        more={"files": (FileChange("/etc/x.yaml", b"a", 0o644, None, 0),)},
        commands=["write /etc/x.yaml", FORGET, RESTART],
        reasons=[("files", "/etc/x.yaml")],
    ),
    "the process has another value": Case(environ={"A": "0"}, commands=[FORGET, RESTART], reasons=[("process", "A")]),
    "the process does not see a credential": Case(
        more={"wrong_credentials": ("key",)}, commands=[FORGET, RESTART], reasons=[("process", "credential key")]
    ),
    "the environment of the process cannot be known": Case(environ={}),
    "requested": Case({"restart": "asked for"}, commands=[FORGET, RESTART], reasons=[("requested", "asked for")]),
    "requested of a unit that is down": Case({"restart": "asked for"}, DOWN, environ=None),
    "a step that restarts": Case(
        more={"steps": (STEP,)}, commands=["apply UserStep", RELOAD, FORGET, RESTART], reasons=[("step", "UserStep")]
    ),
    "a step that does not": Case(more={"steps": (STEP._replace(restarts=False),)}, commands=["apply UserStep", RELOAD]),
    "interrupted": Case(more={"unfinished": True}, commands=[RELOAD, FORGET, RESTART], reasons=[("interrupted",)]),
    "left by an interrupted run": Case(more={"rubbish": (D + ".x.new",)}, commands=["remove %s.x.new" % D]),
    "systemd has not read a file": Case(state={"NeedDaemonReload": "yes"}, commands=[RELOAD]),
    "systemd has not read a value": Case(state={"Environment": '"A=0"'}, commands=[RELOAD]),
    "others have it in force": Case(
        state={"Environment": ""}, now="", planned="", others={D + "o.conf": A1}, more={"by_others": True}
    ),
    # --- ways to do it
    "with hooks": Case({"restart": "r"}, hooks=True, commands=[FORGET, STOP, START], reasons=[("requested", "r")]),
    "failing": Case(
        {"restart": "r"}, LOOPING, environ=None, commands=[FORGET, STOP, RESTART], reasons=[("requested", "r")]
    ),
    "failing with what systemd has read before": Case(
        state={"NeedDaemonReload": "yes", **LOOPING},
        environ=None,
        commands=[RELOAD, FORGET, STOP, RESTART],
        reasons=[("unread",)],
    ),
    "started": Case({"started": True}, DOWN, environ=None, commands=[FORGET, START]),
    "started, with hooks": Case({"started": True}, DOWN, environ=None, hooks=True, commands=[FORGET, START]),
    "stopped": Case({"started": False}, commands=[FORGET, STOP]),
    "stopped, though there is a reason to restart": Case(
        {"started": False, "restart": "r"}, environ={"A": "0"}, commands=[FORGET, STOP]
    ),
    "enabled": Case({"enabled": True}, commands=["systemctl enable x.service"]),
    "enabled already": Case({"enabled": True}, {"UnitFileState": "enabled"}),
    "enabled until the next boot": Case(
        {"enabled": True}, {"UnitFileState": "enabled-runtime"}, commands=["systemctl enable x.service"]
    ),
    "disabled": Case({"enabled": False}, {"UnitFileState": "enabled"}, commands=["systemctl disable x.service"]),
    "disabled already": Case({"enabled": False}, {"UnitFileState": "static"}),
    "disabled until the next boot too": Case(
        {"enabled": False},
        {"UnitFileState": "enabled-runtime"},
        commands=["systemctl disable x.service", "systemctl disable --runtime x.service"],
    ),
    "absent": Case(
        {"state": "absent"},
        planned="",
        more={"files": (GONE,)},
        commands=["remove " + OURS, RELOAD, FORGET, RESTART],
        reasons=[("environment", "A")],
    ),
    "all in order": Case(
        {"enabled": True, "environment": {"A": "1"}, "files": {"/etc/x.yaml": "a"}},
        now="",
        more={
            "rubbish": (D + ".y.new",),
            "steps": (STEP,),
            "files": (FileChange("/etc/x.yaml", b"a", 0o644, None, 0), CHANGED),
        },
        commands=[
            "remove %s.y.new" % D,
            "apply UserStep",
            "write /etc/x.yaml",
            "write " + OURS,
            RELOAD,
            "systemctl enable x.service",
            FORGET,
            RESTART,
        ],
        reasons=[("environment", "A"), ("files", "/etc/x.yaml"), ("step", "UserStep")],
    ),
    # --- refusals
    "masked": Case(state={"LoadState": "masked"}, refusal="refused: x.service is masked"),
    "absent of a masked unit": Case({"state": "absent"}, {"LoadState": "masked"}),
    "no such unit": Case(state={"LoadState": "not-found"}, refusal="refused: there is no unit x.service"),
    "no such unit, and only another step": Case(
        state={"LoadState": "not-found"},
        more={"steps": (STEP,)},
        commands=["apply UserStep", RELOAD, FORGET, RESTART],
        reasons=[("step", "UserStep")],
        refusal="refused: there is no unit x.service",
    ),
    "transient": Case(state={"Transient": "yes"}, refusal="refused: x.service is transient"),
    "static": Case(
        {"enabled": True},
        {"UnitFileState": "static"},
        refusal="refused: x.service cannot be enabled: it is static",
        commands=["systemctl enable x.service"],
    ),
    "static, but [Install] is declared": Case(
        {"enabled": True, "settings": {"Install": {"WantedBy": ["x.target"]}}},
        {"UnitFileState": "static"},
        planned=A1 + "[Install]\nWantedBy=x.target\n",
        commands=["systemctl enable x.service"],
    ),
    "another value has the last word": Case(
        others={D + "zzz.conf": "[Service]\nEnvironment=A=2\n"},
        environ={"A": "2"},
        refusal="shadowed: what is declared for x.service would not be in force: A is declared '1', but %szzz.conf:2 sets '<secret>'"
        % D,
    ),
    "the value is removed": Case(
        others={D + "zzz.conf": "[Service]\nUnsetEnvironment=A\n"},
        environ={"B": "1"},
        refusal="shadowed: what is declared for x.service would not be in force: A is declared '1', but %szzz.conf:2 removes it"
        % D,
    ),
    "the same value elsewhere": Case(others={D + "zzz.conf": A1}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plan(case: Case) -> None:
    found = planned_of(case)
    refusal = "%s: %s" % (found.refusal.name, found.refusal.message) if found.refusal else ""
    assert found.commands == case.commands
    assert [(reason.kind, *reason.names) for reason in found.reasons] == case.reasons
    assert refusal.startswith(case.refusal) and bool(refusal) == bool(case.refusal)
    assert (found.action == "restart") == bool(found.reasons)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_differs_has_a_name(case: Case) -> None:
    found = planned_of(case)
    asked = {"restart"} & set(case.declared) and not case.more
    assert bool(found.differs) == bool((found.commands and not asked) or found.shadowed or found.action == "stop")


@pytest.mark.parametrize(
    "name, differs",
    [
        ("nothing to do", []),
        ("requested", []),
        ("the value in force changes", ["environment", "override"]),
        ("the value in force changes for a unit that is down", ["override"]),
        ("the form alone changes", ["override"]),
        ("a setting of the process changes", ["settings", "override"]),
        ("a file that it reads changes", ["files"]),
        ("the process has another value", ["process"]),
        ("a step that does not", ["step"]),
        ("interrupted", ["interrupted", "not_loaded"]),
        ("left by an interrupted run", ["leftovers"]),
        ("systemd has not read a file", ["not_loaded"]),
        ("failing with what systemd has read before", ["not_loaded"]),
        ("started", ["stopped"]),
        ("stopped", ["running"]),
        ("enabled", ["disabled"]),
        ("disabled", ["enabled"]),
        ("another value has the last word", ["shadowed"]),
    ],
)
def test_the_names_of_what_differs(name: str, differs: List[str]) -> None:
    assert planned_of(CASES[name]).differs == differs


@pytest.mark.parametrize(
    "line, key, value, shadowed",
    [
        ("Nice=4", "Nice", "5", True),
        ("Nice=5", "Nice", "5", False),
        ("Nice=", "Nice", "5", True),
        ("DeviceAllow=/dev/b", "DeviceAllow", "/dev/a", False),
        ("DeviceAllow=", "DeviceAllow", "/dev/a", True),
    ],
)
def test_settings_are_shadowed_by_the_rules_of_their_kind(line: str, key: str, value: str, shadowed: bool) -> None:
    ours = "%s%s=%s\n" % (A1, key, value)
    declared = {"settings": {"Service": {key: [value]}}}
    found = planned_of(Case(declared, now=ours, planned=ours, others={D + "zzz.conf": "[Service]\n%s\n" % line}))
    assert bool(found.refusal) == shadowed
    if found.refusal:
        assert found.refusal.message.startswith(
            "what is declared for x.service would not be in force: [Service] %s is declared '%s', but %szzz.conf:2"
            % (key, value, D)
        )


@pytest.mark.parametrize(
    "now, environ, drift",
    [
        (A1, {"A": "1"}, {}),
        (A1, None, {}),
        (A1, {"A": "0"}, {"A": {"declared": "1", "on_disk": "1", "running": "0", "file": OURS + ":2"}}),
        ("", {"B": "1"}, {"A": {"declared": "1", "on_disk": None, "running": None, "file": None}}),
        ("", None, {"A": {"declared": "1", "on_disk": None, "running": None, "file": None}}),
    ],
)
def test_drift(now: str, environ: Any, drift: Any) -> None:
    assert planned_of(Case(now=now, environ=environ)).drift == drift


@pytest.mark.parametrize(
    "declared, more, shown",
    [
        ({}, {}, "<secret>"),
        ({}, {"public": frozenset([D + "o.conf"])}, "private?"),
        ({"environment": {}, "secret_environment": {"A": "1"}}, {"public": frozenset([D + "o.conf"])}, "<secret>"),
        ({}, {"public": frozenset([D + "o.conf"]), "unfinished": True}, "private?"),
    ],
)
def test_the_value_of_a_foreign_file_is_shown_only_if_everybody_may_read_it(
    declared: Any, more: Any, shown: str
) -> None:
    others = {D + "o.conf": "[Service]\nEnvironment=A=private?\n"}
    found = planned_of(Case(declared, now="", others=others, environ={"A": "private?"}, more=more))
    assert found.drift["A"]["on_disk"] == found.drift["A"]["running"] == shown


@pytest.mark.parametrize(
    "remedy, hooks, commands",
    [
        ("restart", False, [FORGET, RESTART]),
        ("restart", True, [FORGET, STOP, START]),
        ("proof", False, ["prove x.service"]),
    ],
)
def test_a_remedy_is_planned_after_what_else_there_is_to_do(remedy: str, hooks: bool, commands: List[str]) -> None:
    verdict = Verdict("idle", "on no GPU", remedy=remedy)
    alone = with_remedy(planned_of(Case()), verdict, hooks)
    assert alone.commands == commands and alone.remedied == "idle"
    assert [str(reason) for reason in alone.reasons] == ["idle: on no GPU"]
    along = with_remedy(planned_of(Case({"enabled": True})), verdict, hooks)
    assert along.commands == ["systemctl enable x.service", *commands] and along.remedied == ""


def test_reasons_as_sentences() -> None:
    assert str(Reason("environment", ("A", "B"))) == "the value in force changes: A, B"
    assert str(Reason("interrupted")) == "an earlier run was interrupted before it could prove its change"
    assert str(Reason("requested", ("100 % sure",))) == "100 % sure"


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        planned_of(Case()).action = "stop"  # type: ignore[misc]
