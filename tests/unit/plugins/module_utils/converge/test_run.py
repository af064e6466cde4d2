# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A convergence end to end, on a systemd in memory (conftest.py): what it does, leaves alone, and puts back."""

from __future__ import annotations

import errno
import json
from typing import Any, Dict, List, Optional

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import atomic, undo
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Change,
    Outcome,
    Running,
    ServiceError,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError

D = "/etc/systemd/system/ollama.service.d"
OURS = D + "/zz-gpufleet.conf"
ENV = "/etc/gpufleet/ollama.service.env"
KEY = "/etc/gpufleet/credentials/ollama.service/key"
SESAME = "open-sesame-4711"


def change(**more: Any) -> Change:
    return Change(**dict({"unit": "ollama", "environment": {"A": "1"}}, **more))


def go(system: Any, gate: Any = None, steps: Any = (), check: bool = False, hooks: Any = None, **more: Any) -> Outcome:
    return converge(change(**more), gate=gate, steps=steps, hooks=hooks, check_mode=check, system=system)


def fails(system: Any, **more: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        go(system, **more)
    return caught.value


class Step:
    """Writes a file, as the installation of a unit would."""

    writes_unit = True

    def __init__(self, system: Any, path: str, text: str, restarts: bool = True, breaks: bool = False) -> None:
        self.system, self.path, self.text, self.restarts, self.breaks = system, path, text, restarts, breaks
        self.before: Optional[bytes] = None

    def needed(self) -> bool:
        return self.system.read(self.path) != self.text.encode()

    def diff(self) -> Dict[str, str]:
        return {"before": "%s: no" % self.path, "after": "%s: yes" % self.path}

    def apply(self) -> None:
        self.system._write("apply")
        self.before = self.system.read(self.path)
        self.system.write(self.path, self.text)
        if self.breaks:
            raise OSError(errno.EIO, "Input/output error", self.path)

    def undo(self) -> None:
        self.system._write("undo")
        if self.before is not None:
            self.system.write(self.path, self.before.decode())
        else:
            self.system.write(self.path, "").unlink()


# --- the way of a change


def test_a_change_is_written_loaded_and_proven(system: Any) -> None:
    outcome = go(system)
    assert outcome.changed and outcome.restarted and outcome.reloaded and outcome.verdict.ok
    assert outcome.reasons == ["the value in force changes: A"]
    assert outcome.environment == {"A": "1"} and system.environment["A"] == "1"
    assert outcome.drift == {"A": {"declared": "1", "on_disk": None, "running": None, "file": None}}
    assert outcome.unit_state["drop_in_paths"] == [OURS] and outcome.unit_state["active_state"] == "active"
    assert 'Environment="A=1"' in outcome.diff["after"] and outcome.diff["before"] == "active: active\n"
    assert system.read(OURS).decode() in outcome.diff["after"]
    assert system.calls == ["lock", "show", "reload", "show", "reset-failed", "restart", "show", "show", "unlock"]
    assert system.waited == [2]  # watched while settling


def test_a_converged_unit_costs_one_call_and_no_write(system: Any) -> None:
    go(system)
    before = system.tree()
    system.calls.clear()
    outcome = go(system)
    assert not outcome.changed and not outcome.diff and not outcome.drift and outcome.environment == {"A": "1"}
    assert system.calls == ["lock", "show", "unlock"] and system.tree() == before


def test_the_pre_change_check_runs_only_where_there_is_a_change(system: Any) -> None:
    before = system.tree()
    for check in (True, False):
        with pytest.raises(ServiceError, match="it does not fit .nothing was changed."):
            go(system, check=check, pre_change_check=lambda: "it does not fit")
    assert system.tree() == before
    go(system, pre_change_check=lambda: None)
    assert not go(system, pre_change_check=lambda: "never asked").changed


@pytest.mark.parametrize(
    "before, declared",
    [
        ({}, {}),
        ({"environment": {"A": "0"}}, {}),
        ({}, {"secret_environment": {"T": SESAME}, "credentials": {"key": SESAME}}),
        ({"secret_environment": {"T": SESAME}, "credentials": {"key": SESAME}}, {"state": "absent", "environment": {}}),
        ({}, {"enabled": True, "started": False}),
        ({}, {"settings": {"Service": {"Nice": ["1"]}}}),
    ],
)
def test_check_mode_writes_nothing_and_predicts_the_change(
    system: Any, monkeypatch: pytest.MonkeyPatch, before: Dict[str, Any], declared: Dict[str, Any]
) -> None:
    if before:
        go(system, **before)
    tree, state = system.tree(), dict(system.state)
    with monkeypatch.context() as patched:
        for name in ("stage", "commit", "undo", "discard", "finish"):
            patched.setattr(atomic.Files, name, lambda *_: pytest.fail("a write in check mode"))
        system.forbidden = True
        predicted = go(system, check=True, **declared)
    assert (system.tree(), system.state) == (tree, state)
    system.forbidden = False
    done = go(system, **declared)
    for field in ("changed", "restarted", "reloaded", "diff", "drift", "reasons"):
        assert getattr(predicted, field) == getattr(done, field), field
    assert done.changed


@pytest.mark.parametrize(
    "before, declared, hooked",
    [
        ({}, {}, False),
        ({}, {}, True),
        ({"environment": {"A": "1"}}, {}, False),
        ({}, {"secret_environment": {"T": SESAME}, "credentials": {"key": SESAME}, "enabled": True}, False),
        ({"credentials": {"a": "1111", "b": "2222"}, "enabled": True}, {"state": "absent", "enabled": False}, False),
        ({"enabled": True}, {"enabled": False, "started": False}, True),
        ({"started": False}, {"started": True}, True),
    ],
)
def test_a_run_does_what_it_planned_and_nothing_else(
    system: Any, before: Dict[str, Any], declared: Dict[str, Any], hooked: bool
) -> None:
    go(system, **before)
    step = Step(system, "/opt/x", "new")
    hooks = StopHooks(system) if hooked else None
    predicted = go(system, check=True, steps=[step], hooks=hooks, **declared)
    tree = system.tree()
    system.calls.clear()
    done = go(system, steps=[step], hooks=hooks, **declared)
    assert predicted.planned == done.planned and done.as_result()["planned"] == done.planned
    verbs = [line.split()[1] for line in done.planned if line.startswith("systemctl ")]
    ignored = ("lock", "unlock", "show", "sync", "apply", "before_stop", "after_stop")
    assert [call for call in system.calls if call not in ignored] == [
        {"daemon-reload": "reload"}.get(verb, verb) for verb in verbs
    ]
    files = [line.split()[1] for line in done.planned if line.split()[0] in ("write", "remove")]
    assert sorted(files) == changed_files(tree, system) and ("apply Step" in done.planned) == ("apply" in system.calls)
    assert done.planned and not go(system, steps=[step], **declared).planned


def changed_files(tree: Dict[str, Any], system: Any) -> List[str]:
    """What a run has written and removed, without the file of its step."""
    after = system.tree()
    paths = {path for path in {*tree, *after} if tree.get(path) != after.get(path)} - {"/opt/x"}
    return sorted(path for path in paths if isinstance((after.get(path) or tree.get(path))[0], bytes))


def test_the_fake_forbids_writes(no_writes: Any) -> None:
    with pytest.raises(AssertionError, match="in check mode"):
        go(no_writes)


def test_no_write_happens_in_check_mode(no_writes: Any) -> None:
    step = Step(no_writes, "/opt/x", "new")
    outcome = go(no_writes, check=True, steps=[step], enabled=True, secret_environment={"T": SESAME})
    assert outcome.changed and outcome.restarted and "/opt/x: yes" in outcome.diff["after"]


# --- when a unit is restarted, and when not


def test_a_change_of_form_alone_restarts_nothing(system: Any) -> None:
    go(system)
    pid = system.state["MainPID"]
    system.write(OURS, "# another header\n[Service]\nEnvironment=A=0\nEnvironment=A=1\n")
    system.reload()
    outcome = go(system)
    assert outcome.changed and not outcome.restarted and outcome.reloaded and not outcome.reasons
    assert system.state["MainPID"] == pid and "another header" not in system.read(OURS).decode()


def test_what_systemd_does_itself_restarts_nothing(system: Any) -> None:
    go(system)
    outcome = go(system, settings={"Service": {"Restart": ["on-failure"]}, "Unit": {"StartLimitBurst": ["3"]}})
    assert outcome.changed and not outcome.restarted and outcome.reloaded
    assert system.loaded_settings[("Service", "Restart")] == ["on-failure"]


def test_a_running_process_with_other_values_is_restarted(system: Any) -> None:
    go(system)
    system.environment["A"] = "old"
    outcome = go(system)
    assert outcome.restarted and not outcome.reloaded
    assert outcome.reasons == ["the running process has other values: A"]
    assert outcome.drift == {"A": {"declared": "1", "on_disk": "1", "running": "old", "file": OURS + ":5"}}
    assert system.environment["A"] == "1"


@pytest.mark.parametrize("line", ["Environment=A=1", "EnvironmentFile=/etc/ollama.env"])
@pytest.mark.parametrize("more", [{}, {"settings": {"X-Gpufleet": {"Claim": ["gpus"]}}}], ids=["", "X-"])
def test_what_other_files_have_put_in_force_is_not_written_again(system: Any, line: str, more: Any) -> None:
    system.write("/etc/ollama.env", "A=1\n")
    system.write(D + "/override.conf", "[Service]\n%s\n" % line)
    system.reload()
    system.restart("ollama.service", 1, 1)
    before, process = system.tree(), system.state["MainPID"]
    outcome = go(system, **more)
    assert not outcome.changed and not outcome.reloaded and not outcome.restarted and not outcome.diff
    assert outcome.environment == {"A": "1"}
    assert system.tree() == before and system.state["MainPID"] == process
    outcome = go(system, enabled=True, **more)
    assert outcome.changed and not outcome.restarted and not system.read(D + "/zz-gpufleet.conf")
    system.write(D + "/override.conf", "[Service]\n")
    system.reload()
    outcome = go(system, **more)
    assert outcome.changed
    assert b"A=1" in system.read(D + "/zz-gpufleet.conf")


def test_what_others_give_does_not_stand_for_a_setting(system: Any) -> None:
    system.write(D + "/override.conf", "[Service]\nEnvironment=A=1\n")
    system.reload()
    system.restart("ollama.service", 1, 1)
    assert go(system, settings={"Service": {"Restart": ["no"]}}).changed
    assert b"Restart=no" in system.read(D + "/zz-gpufleet.conf")


def test_a_unit_that_does_not_run_is_not_started(system: Any) -> None:
    system.stop("ollama.service", 1)
    outcome = go(system)
    assert outcome.changed and not outcome.restarted and not outcome.environment
    assert system.state["ActiveState"] == "inactive"
    assert outcome.drift == {"A": {"declared": "1", "on_disk": None, "running": None, "file": None}}


def test_started_and_enabled(system: Any) -> None:
    system.stop("ollama.service", 1)
    outcome = go(system, started=True, enabled=True)
    assert outcome.changed and not outcome.restarted and system.state["UnitFileState"] == "enabled"
    assert outcome.environment == {"A": "1"} and outcome.downtime_ms == 0
    assert "enabled: yes\nactive: active\n" in outcome.diff["after"]
    outcome = go(system, started=False, enabled=False)
    assert outcome.changed and system.state["ActiveState"] == "inactive"
    assert system.state["UnitFileState"] == "disabled" and "active: inactive" in outcome.diff["after"]
    assert not go(system, started=False, enabled=False).changed


def test_a_unit_at_its_start_limit_is_reset_before_it_is_started(system: Any) -> None:
    system.processes.clear()
    system.state.update(ActiveState="failed", SubState="failed", Result="start-limit-hit", MainPID="0")
    go(system, started=True)
    assert system.calls.index("reset-failed") < system.calls.index("start")


def test_a_drop_in_that_systemd_has_not_read_is_loaded(system: Any) -> None:
    go(system)
    system.write(D + "/50-local.conf", "[Service]\nEnvironment=B=1\n")
    outcome = go(system)
    assert outcome.changed and outcome.reloaded and not outcome.restarted
    assert not go(system).changed


def test_a_foreign_file_that_is_broken_is_warned_about_and_reloads_nothing(system: Any) -> None:
    go(system)
    system.write(
        D + "/50-local.conf", "[Service]\nEnvironment=B=\udcff\n"
    )  # NeedDaemonReload stays yes with such a file
    outcome = go(system)
    assert not outcome.changed and "50-local.conf:2: the line is not valid UTF-8" in outcome.warnings[0]


def test_nothing_declared_writes_nothing(system: Any) -> None:
    before = system.tree()
    assert not go(system, environment={}).changed
    assert system.tree() == before


# --- what foreign files override


@pytest.mark.parametrize(
    "text, says, effective",
    [
        ("[Service]\nEnvironment=A=2\n", "zzz.conf:2 sets '2'", "2"),
        ("[Service]\nUnsetEnvironment=A\n", "zzz.conf:2 removes it", None),
    ],
)
def test_a_later_drop_in_that_shadows_is_named(system: Any, text: str, says: Any, effective: Any) -> None:
    system.write(D + "/zzz.conf", text)
    before = system.tree()
    error = fails(system)
    assert error.outcome.verdict.name == "shadowed" and "nothing was changed" in error.message
    assert "A is declared '1'" in error.message and (says is None or says in error.message)
    assert error.outcome.shadowed[0]["effective"] == effective and error.outcome.shadowed[0]["name"] == "A"
    assert system.tree() == before and "restart" not in system.calls and "reload" not in system.calls
    assert not error.outcome.changed


def test_an_environment_file_shadows_too(system: Any) -> None:
    system.write("/etc/default/ollama", "# local\nA=2\n")
    system.write(D + "/10.conf", "[Service]\nEnvironmentFile=-/etc/default/ollama\n")
    assert "/etc/default/ollama:2 sets '2'" in fails(system).message


def test_a_hand_made_override_is_respected_and_never_written(system: Any) -> None:
    override = system.write(D + "/override.conf", "[Service]\nEnvironment=B=hand A=hand\n")
    stamp = override.stat().st_mtime_ns
    system.reload()
    go(system)
    assert system.environment["A"] == "1" and system.environment["B"] == "hand"
    go(system, state="absent")
    assert system.environment["A"] == "hand" and override.stat().st_mtime_ns == stamp


# --- secrets


def secrets() -> Dict[str, Any]:
    return {"secret_environment": {"TOKEN": SESAME}, "credentials": {"key": SESAME + "-key"}}


def test_secrets_lie_in_files_for_root_alone_and_nowhere_else(system: Any) -> None:
    outcome = go(system, **secrets())
    assert system.environment["TOKEN"] == SESAME
    tree = system.tree()
    assert tree[ENV] == (b'TOKEN="%s"\n' % SESAME.encode(), 0o600)
    assert tree[KEY] == (SESAME.encode() + b"-key", 0o600) and tree[KEY.rpartition("/")[0]][1] == 0o700
    text = json.dumps(outcome.as_result()) + system.read(OURS).decode()
    assert SESAME not in text and "EnvironmentFile=%s\n" % ENV in text + system.read(OURS).decode()
    assert "LoadCredential=key:%s\n" % KEY in system.read(OURS).decode()
    assert outcome.environment == {"A": "1", "TOKEN": "<secret>"}
    assert "TOKEN=<secret>" in outcome.diff["after"]


def test_a_changed_secret_is_reported_but_not_shown(system: Any) -> None:
    go(system, **secrets())
    system.calls.clear()
    outcome = go(system, secret_environment={"TOKEN": "other-4712", "B2": "x"}, credentials={"key": "other"})
    assert outcome.restarted and not outcome.reloaded, "the files are read at each start"
    assert "TOKEN=<secret, changed>\nB2=<secret>\n" in outcome.diff["after"]
    assert "TOKEN=<secret>\n" in outcome.diff["before"] and "<secret, changed>" not in outcome.diff["before"]
    assert SESAME not in json.dumps(outcome.as_result()) and "other" not in outcome.diff["after"]
    assert outcome.drift["TOKEN"] == {
        "declared": "<secret>",
        "on_disk": "<secret>",
        "running": "<secret>",
        "file": ENV + ":1",
    }


def test_a_secret_file_that_others_may_read_is_closed(system: Any) -> None:
    go(system, **secrets())
    system.write(ENV, 'TOKEN="%s"\n' % SESAME, 0o644)
    outcome = go(system, **secrets())
    assert outcome.changed and system.tree()[ENV][1] == 0o600 and not outcome.restarted
    assert "mode 0644" in outcome.diff["before"] and "mode 0600" in outcome.diff["after"]


def test_credentials_that_are_no_longer_declared_go(system: Any) -> None:
    go(system, credentials={"key": "1111", "old": "2222"})
    go(system, credentials={"key": "1111"})
    assert system.names(KEY.rpartition("/")[0]) == ["key"]


def test_a_credential_is_proven_on_the_running_process(system: Any) -> None:
    outcome = go(system, credentials={"key": "1111"})
    assert outcome.verdict.ok and system.credentials == {"key": b"1111"}
    outcome = go(system, credentials={"key": "2222"})
    assert outcome.restarted and outcome.reasons == ["the running process has other values: credential key"]
    system.credentials.clear()
    assert go(system, credentials={"key": "2222"}).restarted, "the process does not see it"
    system.credential = lambda pid, environ, name: None
    error = fails(system, credentials={"key": "3333"})
    assert error.outcome.verdict.name == "unproven" and "credential key is not what was declared" in error.message


def test_secrets_are_taken_out_of_journal_and_evidence(system: Any) -> None:
    system.fails = lambda environment, settings: environment.get("TOKEN") and "bad token " + environment["TOKEN"]
    error = fails(system, **secrets())
    assert "bad token <secret>" in error.message
    assert SESAME not in error.message + json.dumps(error.outcome.as_result())


def test_a_gate_cannot_give_a_secret_away(system: Any) -> None:
    def gate(running: Running, changed: bool) -> Verdict:
        return Verdict("misread", "TOKEN is " + SESAME, {"seen": [{"x": SESAME}], "n": 1})

    error = fails(system, gate=gate, **secrets())
    assert SESAME not in error.message + json.dumps(error.outcome.as_result())
    assert error.outcome.verdict.evidence["seen"] == [{"x": "<secret>"}]


def test_what_lies_in_the_environment_files_of_others_is_not_shown(system: Any) -> None:
    system.write("/etc/others.conf", "HF_TOKEN=%s\n" % SESAME)
    system.write(D + "/10.conf", "[Service]\nEnvironmentFile=/etc/others.conf\n")
    system.reload()
    outcome = go(system, settings={"Service": {"UnsetEnvironment": ["HF_TOKEN"]}})
    assert outcome.drift["HF_TOKEN"] == {
        "declared": None,
        "on_disk": "<secret>",
        "running": None,
        "file": "/etc/others.conf:1",
    }
    assert SESAME not in json.dumps(outcome.as_result())


def test_the_value_of_another_file_is_shown_only_where_everybody_may_read_it(system: Any) -> None:
    place = system.write("/etc/private.conf", "A=%s\n" % SESAME)
    system.write(D + "/10.conf", "[Service]\nEnvironmentFile=/etc/private.conf\n")
    system.reload()
    system.restart("ollama.service", 1, 1)
    assert "sets '%s'" % SESAME in fails(system).message
    for mode in (0o640, 0o600):
        place.chmod(mode)
        error = fails(system)
        assert "A is declared '1', but /etc/private.conf:1 sets '<secret>'" in error.message
        assert SESAME not in error.message + json.dumps(error.outcome.as_result())


def test_a_drop_in_for_root_alone_is_not_shown(system: Any) -> None:
    system.write(D + "/zzz.conf", "[Service]\nEnvironment=A=%s\n" % SESAME, 0o600)
    system.reload()
    system.restart("ollama.service", 1, 1)
    error = fails(system)
    assert error.outcome.shadowed and SESAME not in error.message + json.dumps(error.outcome.as_result())
    outcome = go(system, environment={}, settings={"Service": {"UnsetEnvironment": ["A"]}})
    assert outcome.drift["A"]["on_disk"] == outcome.drift["A"]["running"] or outcome.drift["A"]["running"] is None
    assert outcome.drift["A"]["on_disk"] == "<secret>" and SESAME not in json.dumps(outcome.as_result())


HARD = "pa%ss\"w\\ord $x'1"


@pytest.mark.parametrize("later, running", [(HARD, True), ("rotated-4711", True), ("rotated-4711", False)])
def test_a_secret_that_was_once_declared_as_plain_is_not_shown(system: Any, later: str, running: bool) -> None:
    go(system, environment={"A": "1", "TOKEN": HARD})
    if not running:
        system.stop("ollama.service", 1)
    spellings = (HARD, "pa%%ss\\\"w\\\\ord $x'1", repr(HARD)[1:-1], json.dumps(HARD)[1:-1])
    for check in (True, False):
        outcome = go(system, check=check, secret_environment={"TOKEN": later})
        assert outcome.changed and "TOKEN=<secret>" in outcome.diff["before"]
        for spelling in (*spellings, later):
            assert not any(spelling in text for text in strings(outcome.as_result())), (check, spelling)


def test_a_secret_in_any_spelling_is_taken_out_of_what_is_said(system: Any) -> None:
    key = "-----BEGIN KEY-----\nAbCdEfGhIj\nKlMnOpQrSt\n-----END KEY-----\n"

    def gate(running: Running, changed: bool) -> Verdict:
        said = [HARD, repr(HARD), json.dumps(HARD), 'Environment="T=pa%%ss\\"w\\\\ord $x\'1"', *key.splitlines()]
        return Verdict("misread", "; ".join(said), {"seen": said, repr(HARD): 1})

    error = fails(system, gate=gate, secret_environment={"T": HARD}, credentials={"key": key})
    for text in (error.message, *strings(error.outcome.verdict.evidence)):
        assert "ss" not in text.replace("<secret>", "").replace("message", ""), text
        assert "AbCd" not in text and "KlMn" not in text


def test_each_key_of_a_secret_with_several_is_taken_out_of_what_is_said(system: Any) -> None:
    """As a server may log the one that a client has sent."""

    def gate(running: Running, changed: bool) -> Verdict:
        return Verdict("misread", "web-sesame is no key of batch-sesame")

    error = fails(system, gate=gate, secret_environment={"T": "batch-sesame web-sesame"})
    assert "<secret> is no key of <secret>" in error.message and "sesame" not in error.message


def strings(value: Any) -> List[str]:
    """All text in data of any depth, as it is."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_a_value_of_an_unproven_run_is_not_shown_as_that_of_the_process(system: Any) -> None:
    """It may have been a secret, and the file that it came from be replaced already."""
    go(system, secret_environment={"T": SESAME})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(system, "restart", lambda *_: (_ for _ in ()).throw(Killed()))
        patched.setattr(undo.Done, "put_back", lambda self: None)
        with pytest.raises(Killed):
            go(system, environment={"A": "1", "T": "plain"})
    outcome = go(system, environment={"A": "1", "T": "plain"})
    assert outcome.drift["T"] == {"declared": "plain", "on_disk": "plain", "running": "<secret>", "file": OURS + ":6"}


def test_a_value_of_the_process_that_no_file_sets_any_more_is_not_shown(system: Any) -> None:
    """Its file may have been private, and removed without a restart."""
    system.environment["A"] = SESAME
    assert go(system, check=True).drift["A"] == {"declared": "1", "on_disk": None, "running": "<secret>", "file": None}
    assert SESAME not in json.dumps(go(system).as_result())


def test_the_environment_file_of_a_unit_with_a_backslash_in_its_name(system: Any, tmp_path: Any) -> None:
    name = "x\\x2dy.service"
    other = type(system)(tmp_path / "other", name)
    other.write("/usr/lib/systemd/system/" + name, "[Service]\nExecStart=/x\n")
    other.boot()
    declared = {"unit": name, "secret_environment": {"TOKEN": SESAME}}
    assert go(other, **declared).changed and other.environment["TOKEN"] == SESAME
    text = other.read("/etc/systemd/system/%s.d/zz-gpufleet.conf" % name).decode()
    assert "EnvironmentFile=/etc/gpufleet/x\\\\x2dy.service.env\n" in text
    assert not go(other, **declared).changed


# --- removal


def test_absent_leaves_nothing_behind(system: Any) -> None:
    before = system.tree()
    go(system, **secrets())
    outcome = go(system, state="absent", environment={})
    assert outcome.changed and outcome.restarted and outcome.verdict.ok
    after = system.tree()
    for path in ("/etc", "/etc/systemd", "/etc/systemd/system"):
        after.pop(path)
    assert after == before and "A" not in system.environment and "TOKEN" not in system.environment
    assert not go(system, state="absent").changed


def test_absent_of_a_unit_that_is_gone(system: Any) -> None:
    system.write(OURS, "[Service]\nEnvironment=A=1\n")
    system.state["LoadState"] = "not-found"
    assert go(system, state="absent").changed
    assert system.read(OURS) is None


# --- failures: the previous state is restored


def crash(environment: Dict[str, str], settings: Any) -> Optional[str]:
    return "listen tcp 127.0.0.1:11434: bind: address already in use" if environment.get("A") == "bad" else None


def test_a_crash_loop_is_rolled_back(system: Any) -> None:
    go(system)
    before = system.tree()
    system.fails = crash
    system.calls.clear()
    system.waited.clear()
    error = fails(system, environment={"A": "bad"}, enabled=True)
    outcome = error.outcome
    assert outcome.verdict.name == "crash_loop" and outcome.rolled_back and not outcome.changed
    assert "address already in use" in error.message and "The previous state is restored." in error.message
    assert "exited with status 1" in error.message and "The unit runs again" in error.message
    assert outcome.verdict.evidence["journal"][-1].startswith("Error: listen")
    assert system.tree() == before and system.environment["A"] == "1" and system.state["UnitFileState"] == "disabled"
    assert system.calls.count("restart") == 2 and system.calls.count("reload") == 2
    assert system.waited == [2], "nothing but the former unit is waited for"
    assert not go(system).changed


def test_a_failure_without_restarts_is_called_failed(system: Any) -> None:
    system.fails = crash
    error = fails(system, environment={"A": "bad"}, settings={"Service": {"Restart": ["no"]}})
    assert error.outcome.verdict.name == "failed" and error.outcome.rolled_back
    assert "A" not in system.environment


def test_a_process_that_is_gone_while_execstoppost_runs(system: Any) -> None:
    system.fails = crash
    error = fails(system, environment={"A": "bad"}, settings={"Service": {"ExecStopPost": ["/bin/true"]}})
    assert "its main process ended" in error.message and error.outcome.rolled_back


def test_a_process_that_dies_while_settling(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = type(system.process(1)).ended_within

    def dies(self: Any, limit: float) -> bool:
        if limit == 2 and system.environment.get("A") == "1":
            system.processes.clear()
            system.state.update(SubState="auto-restart", ActiveState="activating", NRestarts="1", MainPID="0")
        return wait(self, limit)

    monkeypatch.setattr(type(system.process(1)), "ended_within", dies)
    error = fails(system)
    assert error.outcome.verdict.name == "crash_loop" and error.outcome.rolled_back


def test_another_invocation_than_the_proven_one(system: Any) -> None:
    def gate(running: Running, changed: bool) -> Verdict:
        if changed:
            system.state["InvocationID"] = "f" * 32
        return Verdict("ok")

    error = fails(system, gate=gate)
    assert "its main process ended" in error.message


def test_a_failing_gate_is_rolled_back(system: Any) -> None:
    seen: List[Any] = []

    def gate(running: Running, changed: bool) -> Verdict:
        seen.append((running.environ["A"], changed, running.alive(), running.pids, running.journal(5), running.unit))
        return Verdict("cpu_fallback", "the server found no GPU", {"devices": []})

    error = fails(system, gate=gate)
    assert seen == [("1", True, True, [1002], ["Started ollama.service."], "ollama.service")]
    assert error.outcome.verdict.name == "cpu_fallback" and error.outcome.rolled_back
    assert error.message.startswith(
        "ollama.service: cpu_fallback: the server found no GPU. The previous state is restored."
    )
    assert system.read(OURS) is None and "A" not in system.environment


def test_a_journal_that_cannot_be_read_does_not_hide_what_was_done(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_arguments: Any) -> Any:
        raise ManagerError("systemctl show failed: no bus")

    monkeypatch.setattr(system, "journal", refuses)
    error = fails(system, gate=lambda running, changed: Verdict("not_ready", "no answer"))
    assert "not_ready: no answer. The previous state is restored." in error.message and error.outcome.rolled_back


def test_a_gate_that_breaks_is_rolled_back(system: Any) -> None:
    def gate(running: Running, changed: bool) -> Verdict:
        raise KeyError("x")

    error = fails(system, gate=gate)
    assert error.outcome.verdict.name == "error" and "KeyError" in error.message and error.outcome.rolled_back


def test_an_interrupt_is_rolled_back_and_goes_on(system: Any) -> None:
    def gate(running: Running, changed: bool) -> Verdict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(system, gate=gate)
    assert system.read(OURS) is None and "A" not in system.environment


def test_without_a_change_the_gate_reads_alone(system: Any) -> None:
    verdicts = [Verdict("ok"), Verdict("ok"), Verdict("wrong_gpu", "on GPU 3")]
    calls: List[bool] = []

    def gate(running: Running, changed: bool) -> Verdict:
        calls.append(changed)
        return verdicts[len(calls) - 1]

    go(system, gate=gate)
    assert not go(system, gate=gate).changed
    system.calls.clear()
    error = fails(system, gate=gate)
    assert calls == [True, False, False] and "Nothing was changed." in error.message
    assert not error.outcome.rolled_back and "restart" not in system.calls


@pytest.mark.parametrize("check", [True, False])
def test_a_proof_on_request_restarts_nothing(system: Any, check: bool) -> None:
    calls: List[bool] = []
    verdicts = [Verdict("ok"), Verdict("ok"), Verdict("ok"), Verdict("stalled", "no token")]

    def gate(running: Running, changed: bool) -> Verdict:
        calls.append(changed)
        return verdicts.pop(0)

    go(system)
    system.calls.clear()
    assert not go(system, check=check, gate=gate, prove=True).changed
    error = fails(system, check=check, gate=gate, prove=True)
    assert calls == [False, True, False, True] and "stalled: no token" in error.message
    assert not {"restart", "stop", "start"} & set(system.calls)


class Unhealthy:
    """A gate that finds a fault until the unit is fixed in the way that its verdict asks for."""

    def __init__(self, system: Any, remedy: str, fixed_by: str = "") -> None:
        self.system, self.remedy, self.fixed_by = system, remedy, fixed_by or remedy
        self.invocation: Optional[str] = None
        self.calls: List[bool] = []

    def __call__(self, running: Running, changed: bool) -> Verdict:
        self.calls.append(changed)
        self.invocation = self.invocation or running.invocation_id
        fixed = changed if self.fixed_by == "proof" else running.invocation_id != self.invocation
        return Verdict("ok") if fixed else Verdict("idle", "on no GPU", remedy=self.remedy)


def test_a_unit_that_a_restart_may_fix_is_restarted_and_proven(system: Any) -> None:
    go(system, started=True)
    before, gate = system.tree(), Unhealthy(system, "restart")
    system.calls.clear()
    outcome = go(system, gate=gate, started=True)
    assert outcome.changed and outcome.restarted and outcome.verdict.ok and outcome.remedied == "idle"
    assert outcome.reasons == ["idle: on no GPU"] and gate.calls == [False, True]
    assert outcome.diff["before"] == "active: active\nproof: idle\n"
    assert outcome.diff["after"] == "active: active, restarted\nproof: ok\n"
    assert system.calls.count("restart") == 1 and "reload" not in system.calls and system.tree() == before
    again = go(system, gate=gate, started=True)
    assert not again.changed and not again.remedied


def test_a_unit_that_its_own_work_may_fix_is_proven_without_a_restart(system: Any) -> None:
    go(system, started=True)
    gate = Unhealthy(system, "proof")
    system.calls.clear()
    outcome = go(system, gate=gate, started=True)
    assert outcome.changed and not outcome.restarted and outcome.verdict.ok and outcome.remedied == "idle"
    assert gate.calls == [False, True] and "restart" not in system.calls and outcome.downtime_ms == 0
    assert outcome.diff["before"] == "proof: idle\n" and outcome.diff["after"] == "proof: ok\n"


@pytest.mark.parametrize("remedy", ["restart", "proof"])
def test_check_mode_predicts_a_remedy(system: Any, remedy: str) -> None:
    go(system, started=True)
    system.forbidden, gate = True, Unhealthy(system, remedy)
    outcome = go(system, gate=gate, started=True, check=True)
    assert outcome.changed and outcome.remedied == "idle" and outcome.verdict.name == "idle"
    assert outcome.restarted == (remedy == "restart") and gate.calls == [False]


@pytest.mark.parametrize("remedy", ["restart", "proof"])
def test_an_unhealthy_unit_is_fixed_along_with_a_change_that_needs_no_restart(system: Any, remedy: str) -> None:
    go(system, started=True)
    gate = Unhealthy(system, remedy)
    outcome = go(system, gate=gate, started=True, settings={"X-Gpufleet": {"Port": ["1"]}})
    assert outcome.changed and outcome.restarted == (remedy == "restart") and outcome.verdict.ok
    assert gate.calls == [False, True] and outcome.reasons == ["idle: on no GPU"]
    assert "Port=1" in system.read(OURS).decode()


@pytest.mark.parametrize("remedy", ["restart", "proof"])
def test_check_mode_predicts_a_remedy_along_with_a_change(system: Any, remedy: str) -> None:
    go(system, started=True)
    system.forbidden, gate = True, Unhealthy(system, remedy)
    outcome = go(system, gate=gate, started=True, check=True, settings={"X-Gpufleet": {"Port": ["1"]}})
    assert outcome.changed and outcome.restarted == (remedy == "restart") and outcome.reasons == ["idle: on no GPU"]
    assert gate.calls == [False] and "Port=1" in outcome.diff["after"]


def test_check_mode_fails_where_the_change_would_be_taken_back(system: Any) -> None:
    go(system, started=True)
    system.forbidden = True
    error = fails(
        system,
        gate=lambda running, changed: Verdict("idle", "on no GPU"),
        started=True,
        check=True,
        settings={"X-Gpufleet": {"Port": ["1"]}},
    )
    assert error.message.endswith("idle: on no GPU. Nothing was changed.") and not error.outcome.changed


def test_check_mode_of_a_change_that_restarts_does_not_ask_about_what_goes(system: Any) -> None:
    go(system, started=True)
    system.forbidden, gate = True, Unhealthy(system, "restart")
    outcome = go(system, gate=gate, started=True, check=True, environment={"A": "2"})
    assert outcome.changed and outcome.restarted and gate.calls == []


def test_a_restart_that_did_not_happen_is_not_reported(system: Any) -> None:
    go(system, started=True)

    class Stays(StopHooks):
        def before_stop(self, running: Running) -> None:
            raise ManagerError("requests do not end")

    error = fails(
        system,
        gate=Unhealthy(system, "restart"),
        hooks=Stays(system),
        started=True,
        settings={"X-Gpufleet": {"Port": ["1"]}},
    )
    assert "requests do not end" in error.message and not error.outcome.restarted


def test_a_change_whose_remedy_fails_is_rolled_back(system: Any) -> None:
    go(system, started=True)
    before = system.tree()
    error = fails(
        system,
        gate=lambda running, changed: Verdict("idle", "on no GPU", remedy="restart"),
        started=True,
        settings={"X-Gpufleet": {"Port": ["1"]}},
    )
    assert "The previous state is restored. The unit runs again" in error.message and error.outcome.rolled_back
    assert system.tree() == before and not error.outcome.changed


@pytest.mark.parametrize("check", [True, False])
def test_no_secret_is_in_the_reason_for_a_remedy(system: Any, check: bool) -> None:
    secret = {"secret_environment": {"T": SESAME}, "started": True}
    go(system, **secret)

    def gate(running: Running, changed: bool) -> Verdict:
        words = "it says " + SESAME
        return Verdict("ok") if changed else Verdict("idle", words, {"words": words}, remedy="proof")

    outcome = go(system, gate=gate, check=check, **secret)
    assert outcome.reasons and SESAME not in repr(outcome)


def test_a_unit_that_ends_while_it_is_proven_again_is_not_fixed(system: Any) -> None:
    go(system, started=True)

    def gate(running: Running, changed: bool) -> Verdict:
        if changed:
            system.state["InvocationID"] = "another"
        return Verdict("ok") if changed else Verdict("idle", "on no GPU", remedy="proof")

    assert "its main process ended" in fails(system, gate=gate, started=True).message


def test_a_restart_that_does_not_help_is_tried_once(system: Any) -> None:
    go(system, started=True)
    before = system.tree()
    system.calls.clear()
    error = fails(system, gate=lambda running, changed: Verdict("idle", "on no GPU", remedy="restart"), started=True)
    assert "idle: on no GPU." in error.message and "which did not fix it, and keeps running." in error.message
    assert system.calls.count("restart") == 1 and system.tree() == before
    assert error.outcome.changed and not error.outcome.rolled_back
    assert system.state["ActiveState"] == "active"


def test_a_proof_that_does_not_help_changes_nothing(system: Any) -> None:
    go(system, started=True)
    system.calls.clear()
    error = fails(system, gate=lambda running, changed: Verdict("idle", "on no GPU", remedy="proof"), started=True)
    assert error.message.endswith("idle: on no GPU. Nothing was changed.") and "restart" not in system.calls
    assert not error.outcome.changed and not error.outcome.rolled_back


def test_a_unit_that_goes_down_during_a_remedy_is_started_again(system: Any) -> None:
    go(system, started=True)
    starts: List[int] = []

    def ends(environment: Any, settings: Any) -> Optional[str]:
        starts.append(1)
        return "exit 1" if len(starts) == 1 else None

    system.fails, system.restarts_itself = ends, False
    error = fails(system, gate=Unhealthy(system, "restart"), started=True)
    assert "The unit runs again" in error.message and system.state["ActiveState"] == "active"
    assert not error.outcome.rolled_back


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"started": None}, "idle: on no GPU. Nothing was changed."),
        (
            {"started": True, "pre_change_check": lambda: "it does not fit"},
            "idle: on no GPU; this run cannot fix it: it does not fit. Nothing was changed.",
        ),
    ],
)
def test_what_is_not_to_be_fixed_is_reported(system: Any, more: Dict[str, Any], words: str) -> None:
    go(system, started=True)
    for check in (True, False):
        error = fails(system, gate=Unhealthy(system, "restart"), check=check, **more)
        assert error.message.endswith(words) and error.outcome.verdict.name == "idle"
        assert not error.outcome.changed and error.outcome.remedied == ""


def test_check_mode_of_a_converged_unit_asks_the_gate(system: Any) -> None:
    go(system)
    asked: List[bool] = []
    go(system, check=True, gate=lambda running, changed: asked.append(changed) or Verdict("ok"))
    assert asked == [False]


def test_a_process_that_does_not_have_what_is_declared(system: Any) -> None:
    system.changes_environment = lambda environment: {n: v for n, v in environment.items() if n != "A"}
    error = fails(system)
    assert error.outcome.verdict.name == "unproven" and "A is missing" in error.message and error.outcome.rolled_back
    system.changes_environment = lambda environment: dict(environment, A="9") if "A" in environment else environment
    assert "A is '9', expected '1'" in fails(system).message


def test_a_program_that_is_executed_with_other_values_by_what_was_started_first(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as env A=other PROGRAM: for a moment the process is env, which has what is declared."""
    environ, looks = system.environ, []

    def executes(pid: int) -> Any:
        found = environ(pid)
        if not found or "A" not in found:
            return found
        looks.append(pid)
        return found if len(looks) == 1 else dict(found, **now)

    now = {"A": "other"}
    monkeypatch.setattr(system, "environ", executes)
    error = fails(system)
    assert error.outcome.verdict.name == "unproven" and "A is 'other', expected '1'" in error.message
    assert error.outcome.rolled_back
    now["INVOCATION_ID"] = "ost"
    looks.clear()
    assert go(system).changed, "the title of the process lies over its environment"


def test_what_systemd_has_read_is_checked_before_the_unit_is_touched(system: Any) -> None:
    system.misreads = lambda environment: {name: text + "?" for name, text in environment.items()}
    error = fails(system)
    assert error.outcome.verdict.name == "not_loaded" and "restart" not in system.calls and system.read(OURS) is None


def test_a_unit_that_systemd_cannot_load(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    show = system.show
    monkeypatch.setattr(
        system, "show", lambda unit: dict(show(unit), **({"LoadState": "bad-setting"} if system.read(OURS) else {}))
    )
    error = fails(system)
    assert "bad-setting" in error.message and error.outcome.rolled_back and "restart" not in system.calls
    monkeypatch.setattr(system, "show", lambda unit: dict(show(unit), LoadState="error", LoadError="x", MainPID="0"))
    error = fails(system, environment={})
    assert error.outcome.verdict.name == "not_loaded" and "Nothing was changed." in error.message


@pytest.mark.parametrize(
    "call, number, says",
    [
        ("open", errno.ENOSPC, "free space"),
        ("write", errno.ENOSPC, "etc/gpufleet/ollama.service.env: it does not work: free space"),
        ("mkdir", errno.EROFS, "read-only"),
        ("mkdir", errno.EACCES, "become"),
        ("symlink", errno.ENOSPC, "free space"),
        ("rename", errno.EIO, "cannot change"),
    ],
)
def test_a_file_that_cannot_be_written(
    system: Any, monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
) -> None:
    before = system.tree()
    real = getattr(atomic.os, call)
    broken = [True]

    def breaks(path: str, *arguments: Any, **more: Any) -> Any:
        writes = call != "open" or arguments[0] & atomic.os.O_CREAT
        if broken and writes and "gpufleet" in str(path) + str(arguments) + OURS:
            broken.clear()
            raise OSError(number, "it does not work", path if isinstance(path, str) else None)
        return real(path, *arguments, **more)

    monkeypatch.setattr(atomic.os, call, breaks)
    error = fails(system, **secrets())
    assert error.outcome.verdict.name == "not_written" and says in error.message
    assert system.tree() == before or call == "rename"
    assert system.read(OURS) is None and system.read(ENV) is None and "restart" not in system.calls
    assert not error.outcome.changed


def test_a_unit_that_was_down_is_down_again(system: Any) -> None:
    system.stop("ollama.service", 1)
    system.fails = crash
    error = fails(system, environment={"A": "bad"}, started=True)
    assert "was not running before" in error.message and error.outcome.rolled_back
    assert system.state["ActiveState"] == "inactive" and error.outcome.downtime_ms == 0


def test_a_unit_that_was_failing_is_left_failing(system: Any) -> None:
    system.fails = lambda environment, settings: "always broken"
    system.restart("ollama.service", 1, 1)
    error = fails(system)
    assert "failing before" in error.message and error.outcome.rolled_back and system.read(OURS) is None


def test_a_failing_unit_is_not_left_with_a_process_that_was_not_proven(system: Any) -> None:
    system.fails = lambda environment, settings: None if environment.get("A") == "1" else "needs A"
    system.restart("ollama.service", 1, 1)
    error = fails(system, gate=lambda running, changed: Verdict("cpu_fallback", "on no GPU"))
    assert "failing before" in error.message and error.outcome.rolled_back
    assert system.state["SubState"] == "auto-restart" and not system.processes


def test_a_change_may_fix_a_unit_that_is_failing(system: Any) -> None:
    system.fails = lambda environment, settings: None if environment.get("A") == "1" else "needs A"
    system.restart("ollama.service", 1, 1)
    outcome = go(system)
    assert outcome.restarted and system.environment["A"] == "1" and outcome.downtime_ms == 0


def test_a_unit_that_fails_as_it_is(system: Any) -> None:
    go(system)
    system.fails = lambda environment, settings: "broken since"
    system.restart("ollama.service", 1, 1)
    system.calls.clear()
    error = fails(system)
    assert error.outcome.verdict.name == "crash_loop" and "Nothing was changed." in error.message
    assert "Error: broken since" in error.message and "restart" not in system.calls


def test_a_rollback_that_fails_is_reported(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    system.fails = lambda environment, settings: "it never comes back"
    error = fails(system)
    assert "The previous files are restored. THE UNIT IS DOWN" in error.message and not error.outcome.rolled_back
    assert "does not start with its previous configuration either (" in error.message and error.outcome.changed
    assert system.read(OURS) is None

    system.fails = lambda environment, settings: None
    system.restart("ollama.service", 1, 1)
    system.fails = crash
    monkeypatch.setattr(atomic.Files, "undo", lambda self: (_ for _ in ()).throw(OSError(errno.EIO, "bad disk", OURS)))
    error = fails(system, environment={"A": "bad"})
    assert "files: cannot change %s: bad disk" % OURS in error.message and error.outcome.changed


def test_a_job_that_fails(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    restart, words = system.restart, ["Job for ollama.service failed because a timeout was exceeded."]

    def once(unit: str, stop_limit: float, start_limit: float) -> Any:
        restart(unit, stop_limit, start_limit)
        if not words:
            return None
        system.state.update(Result="timeout", ActiveState="failed", SubState="failed", MainPID="0")
        return words.pop()

    monkeypatch.setattr(system, "restart", once)
    error = fails(system)
    assert error.outcome.verdict.name == "timeout" and "a timeout was exceeded" in error.message
    assert error.outcome.rolled_back


def test_a_unit_that_does_not_stop(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "stop", lambda unit, limit: "it did not finish within %d s" % limit)
    error = fails(system, started=False)
    assert error.outcome.verdict.name == "not_stopped" and "within 95 s" in error.message


def test_systemd_that_does_not_answer(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(unit: str) -> Any:
        raise ManagerError("systemctl show failed: no bus")

    monkeypatch.setattr(system, "show", refuses)
    error = fails(system)
    assert "no bus (nothing was changed)" in error.message and error.outcome.verdict.name == "refused"


def test_reload_fails(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = system.reload, [1]

    def once() -> None:
        if times:
            times.clear()
            raise ManagerError("systemctl daemon-reload failed: busy")
        real()

    monkeypatch.setattr(system, "reload", once)
    error = fails(system)
    assert error.outcome.verdict.name == "not_done" and error.outcome.rolled_back and system.read(OURS) is None


# --- an earlier run that was killed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["stage", "commit", "reload", "restart", "finish"])
def test_after_a_run_that_was_killed_the_next_one_converges(
    system: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    go(system, environment={"A": "0"})
    owner = system if at in ("reload", "restart") else atomic.Files
    real = getattr(owner, at)

    def dies(*arguments: Any) -> None:
        real(*arguments) if at in ("stage", "commit") else None
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owner, at, dies)
        patched.setattr(undo.Done, "put_back", lambda self: None)
        with pytest.raises(Killed):
            go(system, environment={"A": "2"}, settings={"Service": {"Nice": ["1"]}})
    outcome = go(system, environment={"A": "2"}, settings={"Service": {"Nice": ["1"]}})
    assert outcome.changed and outcome.restarted and system.environment["A"] == "2"
    assert system.loaded_settings[("Service", "Nice")] == ["1"]
    assert not go(system, environment={"A": "2"}, settings={"Service": {"Nice": ["1"]}}).changed
    assert system.names(D) == ["zz-gpufleet.conf"]


def test_after_a_killed_run_a_failure_restores_the_last_proven_state(system: Any) -> None:
    go(system, environment={"A": "0"})
    before = system.tree()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(system, "restart", lambda *_: (_ for _ in ()).throw(Killed()))
        patched.setattr(undo.Done, "put_back", lambda self: None)
        with pytest.raises(Killed):
            go(system, environment={"A": "bad"})
    assert "bad" in system.read(OURS).decode()
    system.fails = crash
    error = fails(system, environment={"A": "bad"})
    assert "interrupted" in error.outcome.reasons[0] and error.outcome.rolled_back
    assert system.tree() == before and system.environment["A"] == "0"


def leave(system: Any, at: str, **declared: Any) -> None:
    """A run that is killed at the end of one of the steps of a change."""
    real = getattr(atomic.Files, at)

    def dies(files: Any) -> None:
        real(files)
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(atomic.Files, at, dies)
        patched.setattr(undo.Done, "put_back", lambda self: None)
        with pytest.raises(Killed):
            go(system, **declared)


@pytest.mark.parametrize("following", [{}, {"state": "absent", "environment": {}}])
def test_secrets_that_a_killed_run_had_only_staged_are_removed(system: Any, following: Dict[str, Any]) -> None:
    system.write("/etc/systemd/system/other.service", "")
    go(system, **following)
    before = system.tree()
    leave(system, "stage", **secrets())
    left = [path for path in system.tree() if path.endswith(".new")]
    assert len(left) == 3 or following == {}
    system.calls.clear()
    predicted = go(system, check=True, **following)
    assert predicted.changed and not predicted.restarted and not predicted.reloaded
    assert "/etc/gpufleet/.ollama.service.env.new, left by an interrupted run" in predicted.diff["before"]
    assert [path for path in system.tree() if path.endswith(".new")] == left
    outcome = go(system, **following)
    assert outcome.diff == predicted.diff and outcome.changed and "restart" not in system.calls
    assert system.tree() == before and "reload" not in system.calls
    assert not go(system, **following).changed


def test_what_is_left_of_a_proven_change_is_removed_without_a_restart(system: Any) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(atomic.Files, "sweep", lambda files: None)
        go(system, **secrets())
    system.calls.clear()
    assert any(path.endswith(".proven") for path in system.tree())
    outcome = go(system, **secrets())
    assert outcome.changed and not outcome.restarted and "reload" not in system.calls
    assert not any(path.endswith((".proven", ".previous")) for path in system.tree())
    assert not go(system, **secrets()).changed


def test_a_credential_that_was_half_gone_comes_back(system: Any) -> None:
    go(system, credentials={"a": "key-a", "b": "key-b"})
    before = system.tree()
    leave(system, "commit", credentials={"a": "key-a"})
    error = fails(system, credentials={"a": "key-a"}, gate=lambda running, changed: Verdict("not_ready"))
    assert error.outcome.rolled_back and system.tree() == before and system.credentials["b"] == b"key-b"
    leave(system, "commit", credentials={"a": "key-a"})
    go(system, credentials={"a": "key-a"})
    assert system.names("/etc/gpufleet/credentials/ollama.service") == ["a"]


def test_a_drop_in_of_ours_that_is_masked_manually_is_put_back(system: Any) -> None:
    (system.write(D + "/x", "").parent / "zz-gpufleet.conf").symlink_to("/dev/null")
    system.reload()
    before = system.tree()
    system.fails = crash
    assert fails(system, environment={"A": "bad"}).outcome.rolled_back
    assert system.tree() == before
    assert go(system).changed and b"A=1" in system.read(OURS)


# --- a restart that systemd makes by itself


def died(system: Any, times: int) -> None:
    """Have the process die; so many of those that systemd starts then die at once."""
    left = [0] * times
    system.fails = lambda environment, settings: "told to" if left and not left.pop() else None
    system.restart("ollama.service", 1, 1)
    assert system.state["SubState"] == "auto-restart"
    system.calls.clear()


@pytest.mark.parametrize("check", [False, True])
def test_a_restart_that_systemd_is_making_is_waited_for(system: Any, check: bool) -> None:
    go(system, started=True)
    died(system, 1)
    asked: List[bool] = []
    outcome = go(
        system, started=True, check=check, gate=lambda running, changed: asked.append(changed) or Verdict("ok")
    )
    assert not outcome.changed and outcome.verdict.ok and asked == [False]
    assert "restart" not in system.calls and "start" not in system.calls and system.waited[-1] == 2


@pytest.mark.parametrize("check", [False, True])
def test_one_that_ends_again_is_a_crash_loop(system: Any, check: bool) -> None:
    go(system, started=True)
    died(system, 2)
    error = fails(system, started=True, check=check, timeout=300)
    assert error.outcome.verdict.name == "crash_loop" and error.message.endswith("Nothing was changed.")
    assert "Error: told to" in error.message and "restart" not in system.calls


def test_one_that_ends_again_is_a_crash_loop_though_the_next_one_runs_already(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(system, started=True)
    died(system, 1)
    wait, seen = type(system.process(1)).ended_within, []

    def ends(self: Any, limit: float) -> bool:
        if seen:
            return wait(self, limit)
        seen.append(system.state["InvocationID"])
        system.lines[seen[0]] = ["Error: no such disk"]
        system.restart("ollama.service", 1, 1)
        system.state["NRestarts"] = "2"
        return True

    monkeypatch.setattr(type(system.process(1)), "ended_within", ends)
    error = fails(system, started=True)
    assert error.outcome.verdict.name == "crash_loop" and "no such disk" in error.message
    assert error.outcome.verdict.evidence["invocation_id"] == seen[0]


def test_a_change_of_a_unit_that_systemd_is_restarting_is_rolled_back_to_one_that_runs(system: Any) -> None:
    go(system, started=True)
    died(system, 1)
    error = fails(system, started=True, environment={"A": "2"}, gate=lambda running, changed: Verdict("not_ready"))
    assert "The unit runs again" in error.message and error.outcome.rolled_back and system.environment["A"] == "1"


def test_a_change_without_a_restart_waits_for_that_of_systemd(system: Any) -> None:
    go(system, started=True)
    died(system, 1)
    outcome = go(system, started=True, settings={"X-Gpufleet": {"Port": ["1"]}})
    assert outcome.changed and not outcome.restarted and "restart" not in system.calls


def test_a_unit_that_fails_with_what_systemd_has_read_before_is_restarted(system: Any) -> None:
    """A run killed while it rolled back, between its files and the reload."""
    go(system, started=True)
    before = system.read(OURS).decode()
    system.fails = crash
    system.write(OURS, before.replace("A=1", "A=bad"))
    system.reload()
    system.restart("ollama.service", 1, 1)
    system.write(OURS, before)
    outcome = go(system, started=True)
    assert outcome.reloaded and outcome.restarted and system.environment["A"] == "1"


# --- a process that has written over its environment


def test_an_environment_that_cannot_be_seen_is_no_drift_and_no_reason(system: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(system, "environ", lambda pid: {})
    first = go(system, credentials={"key": "1111"})
    assert first.changed and first.verdict.ok and first.environment == {}
    again = go(system, credentials={"key": "1111"})
    assert not again.changed and not again.drift and not again.reasons
    system.credentials["key"] = b"other"
    assert go(system, credentials={"key": "1111"}).reasons == ["the running process has other values: credential key"]


# --- steps


def test_what_a_step_leaves_is_reported(system: Any) -> None:
    class Stays(Step):
        def undo(self) -> Any:
            super().undo()
            return "the user ollama remains"

    error = fails(
        system, steps=[Stays(system, "/opt/x", "1")], gate=lambda running, changed: Verdict("not_ready", "no answer")
    )
    assert (
        "no answer. The previous state is restored. But the user ollama remains. The unit runs again" in error.message
    )
    assert error.outcome.rolled_back and error.outcome.changed


def test_steps_are_applied_before_the_reload_and_undone_in_reverse(system: Any) -> None:
    first = Step(system, "/opt/first", "1")
    second = Step(system, "/usr/lib/systemd/system/ollama.service", "[Service]\nExecStart=/new\nRestart=always\n")
    before = system.tree()
    system.fails = crash
    error = fails(system, environment={"A": "bad"}, steps=[first, second])
    assert system.calls.index("apply") < system.calls.index("reload")
    assert error.outcome.rolled_back and system.tree() == {**before, "/opt": ("dir", 0o755)}
    outcome = go(system, steps=[first, second])
    assert outcome.restarted and "Step" in outcome.reasons and system.read("/opt/first") == b"1"
    assert not go(system, steps=[first, second]).changed


def test_a_step_that_breaks_is_undone(system: Any) -> None:
    before = system.tree()
    error = fails(system, steps=[Step(system, "/opt/x", "1", breaks=True)])
    assert error.outcome.verdict.name == "not_written" and "/opt/x" in error.message and "restart" not in system.calls
    assert system.tree() == {**before, "/opt": ("dir", 0o755)} and error.outcome.rolled_back


def test_a_step_may_create_the_unit(tmp_path: Any, system: Any) -> None:
    fresh = type(system)(tmp_path / "fresh")
    fresh.state["LoadState"] = "not-found"
    fresh.snapshot = []
    unit = Step(fresh, "/etc/systemd/system/ollama.service", "[Service]\nExecStart=/x\nRestart=always\n")
    predicted = go(fresh, check=True, steps=[unit], started=True, enabled=True)
    assert predicted.changed
    outcome = go(fresh, steps=[unit], started=True, enabled=True)
    assert outcome.environment == {"A": "1"} and fresh.state["UnitFileState"] == "enabled"


def test_a_step_whose_unit_shadows_is_undone(system: Any) -> None:
    system.write("/etc/default/x", "A=2\n")
    unit = Step(system, "/usr/lib/systemd/system/ollama.service", "[Service]\nEnvironmentFile=/etc/default/x\n")
    error = fails(system, steps=[unit])
    assert error.outcome.verdict.name == "shadowed" and error.outcome.rolled_back and "restart" not in system.calls


def test_enabling_that_does_not_work(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "enable", lambda unit: "")
    error = fails(system, enabled=True)
    assert error.outcome.verdict.name == "not_enabled" and error.outcome.rolled_back


def test_links_that_cannot_be_undone_are_reported(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = system.enable
    monkeypatch.setattr(system, "enable", lambda unit: (real(unit), "in words of a later systemd")[1])
    error = fails(system, enabled=True, gate=lambda running, changed: Verdict("not_ready"))
    assert "FAILED: enable: it was disabled, and is enabled now." in error.message and not error.outcome.rolled_back


# --- what is refused


@pytest.mark.parametrize(
    "declared, state, says",
    [
        ({"unit": "no/unit"}, {}, "not a unit name"),
        ({}, {"LoadState": "masked"}, "masked"),
        ({"environment": {"1A": "x"}}, {}, "variable '1A'"),
        ({"secret_environment": {"A": "x"}}, {}, "declared both"),
        ({"unit": "x.timer"}, {}, "not a service"),
        ({"credentials": {"../x": "y"}}, {}, "credential '../x'"),
        ({"settings": {"Service": {"Nice": ["1\n2"]}}}, {}, "line end"),
    ],
)
def test_refused_before_anything_is_changed(
    no_writes: Any, declared: Dict[str, Any], state: Dict[str, str], says: str
) -> None:
    no_writes.state.update(state)
    error = fails(no_writes, check=True, **declared)
    assert says in error.message and "nothing was changed" in error.message
    assert error.outcome.verdict.name == "refused"


def test_what_systemd_would_ignore_is_refused(system: Any) -> None:
    system.ignored = ["6: Unknown key 'LimitNOFLE' in section [Service], ignoring."]
    assert "LimitNOFLE" in fails(system, settings={"Service": {"LimitNOFLE": ["3"]}}).message
    assert system.read(OURS) is None


def test_files_that_cannot_be_read(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(directory: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", directory)

    monkeypatch.setattr(system, "names", refuses)
    assert "run as root (become)" in fails(system).message


def test_oneshot_units_are_not_expected_to_go_on_running(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(unit: str, limit: float) -> None:
        system.processes.clear()
        system.invocations += 1
        system.state.update(
            MainPID="0", ActiveState="inactive", SubState="dead", InvocationID="%032x" % system.invocations
        )

    monkeypatch.setattr(system, "start", runs)
    system.stop("ollama.service", 1)
    system.state["Type"] = "oneshot"
    assert go(system, started=True).verdict.ok
    system.state["Type"] = "simple"
    assert "it is not running" in fails(system, environment={"A": "2"}, started=True).message


def test_backups_that_cannot_be_removed_are_warned_about(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        atomic.Files, "finish", lambda self: (_ for _ in ()).throw(OSError(errno.EIO, "bad disk", OURS))
    )
    outcome = go(system)
    assert outcome.verdict.ok and "bad disk" in outcome.warnings[0]


def test_the_new_process_is_waited_for_until_it_is_executed(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environ, early = system.environ, [None, {"INVOCATION_ID": "of systemd itself"}]

    def slow(pid: int) -> Any:
        return environ(pid) if "A" not in system.environment else early.pop(0) if early else environ(pid)

    monkeypatch.setattr(system, "environ", slow)
    assert go(system).environment == {"A": "1"} and not early
    assert system.waited == [0.005, 0.005, 2]


def test_a_process_that_is_never_executed(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = system.environ
    monkeypatch.setattr(system, "environ", lambda pid: None if "A" in system.environment else environ(pid))
    error = fails(system, timeout=0)
    assert error.outcome.verdict.name == "timeout" and "was not executed within 0 s" in error.message
    assert error.outcome.rolled_back


def test_systemd_is_given_the_time_to_notice_a_death(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    show, polled = system.show, []

    def late(unit: str) -> Any:
        state = show(unit)
        if "A" in system.loaded and not system.processes:
            polled.append(state["MainPID"])
            return dict(state, MainPID="0" if len(polled) > 2 else "77", SubState="failed", ActiveState="failed")
        return state

    def dies(running: Running, changed: bool) -> Verdict:
        system.processes.clear()
        return Verdict("ok")

    monkeypatch.setattr(system, "show", late)
    error = fails(system, gate=dies)
    assert error.outcome.verdict.name == "failed" and len(polled) > 2 and error.outcome.rolled_back


def before_main(system: Any, monkeypatch: pytest.MonkeyPatch, when: Any, looks: int = 2) -> List[str]:
    """For so many looks, once ``when()``, ExecStartPre= of the unit still runs."""
    show, seen = system.show, []

    def early(unit: str) -> Any:
        state = show(unit)
        if len(seen) == looks or not when():
            return state
        seen.append("start-pre")
        return dict(state, ActiveState="activating", SubState="start-pre", MainPID="0")

    monkeypatch.setattr(system, "show", early)
    return seen


def test_a_unit_without_a_main_process_yet_is_not_taken_for_one_that_has_none(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: List[bool] = []
    seen = before_main(system, monkeypatch, lambda: "restart" in system.calls)
    go(system, gate=lambda running, changed: asked.append(changed) or Verdict("ok"))
    assert asked == [True] and len(seen) == 2, "a restart by systemd after the first death comes by there"
    seen = before_main(system, monkeypatch, lambda: True)
    assert not go(system, gate=lambda running, changed: asked.append(changed) or Verdict("ok")).changed
    assert asked == [True, False] and len(seen) == 2, "somebody else starts it just now"
    before_main(system, monkeypatch, lambda: True, 99)
    error = fails(system, timeout=0)
    assert "was not started within 0 s" in error.message and "Nothing was changed." in error.message


def test_a_unit_that_was_just_starting_is_not_left_stopped(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = before_main(system, monkeypatch, lambda: True, 1)
    system.fails = crash
    error = fails(system, environment={"A": "bad"})
    assert seen and error.outcome.rolled_back and "The unit runs again" in error.message
    assert system.state["ActiveState"] == "active"


def test_a_restart_of_a_failing_unit_is_not_mixed_up_with_one_by_systemd(system: Any) -> None:
    system.fails = lambda environment, settings: None if environment.get("A") == "1" else "needs A"
    system.restart("ollama.service", 1, 1)
    system.state["SubState"] = "auto-restart-queued"
    system.calls.clear()
    go(system)
    assert [call for call in system.calls if call in ("stop", "restart")] == ["stop", "restart"]


def test_the_last_words_are_of_the_invocation_that_ended(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd may have started the next one by the time at which it is asked how the first one ended."""
    environ = system.environ

    def dies(pid: int) -> Any:
        if "A" not in system.environment or not system.processes:
            return environ(pid)
        system.lines[system.state["InvocationID"]].append("Error: no such disk")
        system.processes.clear()
        system.state.update(InvocationID="f" * 32, NRestarts="1", MainPID="77", ActiveState="active")
        system.processes[77] = {"INVOCATION_ID": "f" * 32}
        return None

    monkeypatch.setattr(system, "environ", dies)
    error = fails(system)
    assert error.outcome.verdict.name == "crash_loop" and "no such disk" in error.message


def test_steps_that_touch_the_same_thing_are_undone_in_reverse(system: Any) -> None:
    system.write("/opt/x", "0")
    system.fails = crash
    steps = [Step(system, "/opt/x", "1"), Step(system, "/opt/x", "2")]
    assert fails(system, environment={"A": "bad"}, steps=steps).outcome.rolled_back
    assert system.read("/opt/x") == b"0"


def test_after_a_killed_run_systemd_reads_its_files_whatever_it_says(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared: Dict[str, Any] = {"environment": {}, "settings": {"Service": {"Nice": ["1"]}}}
    with monkeypatch.context() as patched:
        patched.setattr(system, "reload", lambda: (_ for _ in ()).throw(Killed()))
        patched.setattr(undo.Done, "put_back", lambda self: None)
        with pytest.raises(Killed):
            go(system, **declared)
    show = system.show
    monkeypatch.setattr(system, "show", lambda unit: dict(show(unit), NeedDaemonReload="no"))
    assert go(system, **declared).reloaded and system.loaded_settings[("Service", "Nice")] == ["1"]


# --- files that the process reads at its start

CONFIG = "/etc/gpufleet/vllm/chat.yaml"


def test_a_file_of_the_unit_is_written_and_restarts_it(system: Any) -> None:
    outcome = go(system, files={CONFIG: "port: 8000\n"})
    assert system.read(CONFIG) == b"port: 8000\n" and CONFIG in outcome.diff["after"]
    assert "files that it reads change: " + CONFIG in outcome.reasons
    system.calls.clear()
    assert not go(system, files={CONFIG: "port: 8000\n"}).changed and system.calls == ["lock", "show", "unlock"]
    outcome = go(system, files={CONFIG: "port: 8001\n"})
    assert outcome.restarted and outcome.reasons == ["files that it reads change: " + CONFIG]
    assert "restart" in system.calls and "reload" not in system.calls, "systemd reads nothing of it"
    assert not go(system, state="absent", files={CONFIG: "port: 8001\n"}).diff["after"].count("port")
    assert system.read(CONFIG) is None and "/etc/gpufleet/vllm" not in system.tree()


def test_a_file_that_breaks_the_unit_is_put_back(system: Any) -> None:
    go(system, files={CONFIG: "port: 8000\n"})
    before = system.tree()
    error = fails(system, gate=lambda running, changed: Verdict("not_ready", "no answer"), files={CONFIG: "port: 9\n"})
    assert error.outcome.rolled_back and "The unit runs again" in error.message
    assert system.tree() == before


def test_a_file_of_the_unit_is_not_written_in_check_mode(no_writes: Any) -> None:
    assert go(no_writes, check=True, files={CONFIG: "port: 8000\n"}).restarted


# --- a unit that reads its files again


RELOADED = {"files": {CONFIG: "port: 8001\n"}, "reloads": True, "started": True}


def test_a_file_is_put_in_force_by_a_reload(system: Any) -> None:
    go(system, files={CONFIG: "port: 8000\n"})
    invocation = system.state["InvocationID"]
    system.calls.clear()
    outcome = go(system, **RELOADED)
    assert (outcome.changed, outcome.restarted, outcome.downtime_ms) == (True, False, 0)
    assert outcome.planned[-1] == "systemctl reload ollama.service"
    assert outcome.reasons == ["files that it reads change: " + CONFIG]
    assert "reload the unit" in system.calls and "restart" not in system.calls
    assert system.state["InvocationID"] == invocation
    assert not go(system, **RELOADED).changed


def test_other_changes_restart_a_unit_that_could_be_reloaded(system: Any) -> None:
    go(system, files={CONFIG: "port: 8000\n"})
    assert go(system, environment={"B": "2"}, **RELOADED).restarted


@pytest.mark.parametrize("wrong", ["gate", "reload"])
def test_a_reload_that_fails_is_rolled_back_by_a_reload(system: Any, wrong: str) -> None:
    go(system, files={CONFIG: "port: 8000\n"})
    before, invocation = system.tree(), system.state["InvocationID"]
    gate: Any = None
    if wrong == "gate":
        gate = lambda running, changed: Verdict("not_ready", "no answer") if changed else Verdict("ok")  # noqa: E731
    else:
        answers = ["exit 1", None]
        system.reload_unit = lambda unit, limit: answers.pop(0)
    error = fails(system, gate=gate, **RELOADED)
    assert error.outcome.verdict.name == {"gate": "not_ready", "reload": "not_reloaded"}[wrong]
    assert error.outcome.rolled_back and "was serving all the time" in error.message
    assert system.tree() == before and system.state["InvocationID"] == invocation


def test_a_reload_can_be_the_remedy(system: Any) -> None:
    go(system, **RELOADED)
    system.calls.clear()
    old = [True]

    def gate(running: Any, changed: bool) -> Verdict:
        if not changed and old.pop():
            return Verdict("old_configuration", "it runs the one before", remedy="reload")
        return Verdict("ok")

    outcome = go(system, gate=gate, **RELOADED)
    assert outcome.remedied == "old_configuration" and "reload the unit" in system.calls and not outcome.restarted


# --- hooks around a stop


class StopHooks:
    """Notes when it was called; `released` is what it finds after the stops."""

    def __init__(self, system: Any, *released: Verdict) -> None:
        self.system, self.released, self.served = system, list(released), []

    def before_stop(self, running: Running) -> None:
        self.served.append(running.environ.get("A"))
        self.system.calls.append("before_stop")

    def after_stop(self) -> Verdict:
        assert not self.system.processes
        self.system.calls.append("after_stop")
        return self.released.pop(0) if self.released else Verdict("ok")


def test_the_hooks_are_called_around_a_restart(system: Any) -> None:
    go(system, environment={"A": "0"})
    hooks = StopHooks(system)
    system.calls.clear()
    outcome = go(system, hooks=hooks)
    assert outcome.restarted and hooks.served == ["0"], "the process that is stopped is asked"
    assert [call for call in system.calls if call not in ("lock", "show", "unlock", "reset-failed")] == [
        "reload",
        "before_stop",
        "stop",
        "after_stop",
        "start",
    ]


def test_no_hook_is_called_for_a_unit_that_is_down(system: Any) -> None:
    system.stop("", 1)
    hooks = StopHooks(system)
    go(system, started=True, hooks=hooks)
    assert hooks.served == [] and "after_stop" not in system.calls


def test_a_stop_calls_the_hooks_too(system: Any) -> None:
    hooks = StopHooks(system, Verdict("vram_held", "5 GiB are still held"))
    outcome = go(system, started=False, hooks=hooks)
    assert hooks.served == [None] and outcome.warnings == ["5 GiB are still held"]


def test_what_is_not_released_fails_the_change_and_the_former_is_started(system: Any) -> None:
    held = Verdict("vram_held", "5 GiB are still held", {"pids": [7]})
    error = fails(system, hooks=StopHooks(system, held, held))
    assert error.outcome.verdict.name == "vram_held" and error.outcome.verdict.evidence["pids"] == [7]
    assert error.outcome.rolled_back and "A" not in system.environment
    assert system.calls.count("start") == 1 and "restart" not in system.calls


def test_a_failing_hook_stops_nothing(system: Any) -> None:
    hooks = StopHooks(system)
    hooks.before_stop = lambda running: (_ for _ in ()).throw(RuntimeError("no"))
    error = fails(system, hooks=hooks)
    assert error.outcome.rolled_back and "stop" not in system.calls and system.read(OURS) is None


# --- the unit check


def no_nice(unit: Any) -> Optional[str]:
    lines = unit.in_force("Service", "Nice")
    return "%s:%d sets Nice" % (lines[-1].path, lines[-1].line) if lines else None


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("converged", [False, True])
def test_the_unit_check_stops_before_any_write(system: Any, converged: bool, check: bool) -> None:
    if converged:
        go(system, unit_check=no_nice)
    system.write(D + "/local.conf", "[Service]\nNice=5\n")
    before = system.tree()
    error = fails(system, unit_check=no_nice, check=check)
    assert "ollama.service: %s/local.conf:2 sets Nice (nothing was changed)" % D in error.message
    assert error.outcome.verdict.name == "refused" and not error.outcome.changed and system.tree() == before


def test_what_the_steps_wrote_is_undone_if_it_fails_the_unit_check(system: Any) -> None:
    unit = Step(system, "/usr/lib/systemd/system/ollama.service", "[Service]\nNice=5\n")
    error = fails(system, steps=[unit], unit_check=no_nice)
    assert "sets Nice" in error.message and error.outcome.rolled_back and "restart" not in system.calls
    go(system, state="absent", unit_check=no_nice)


# --- accepted changes


def test_a_change_is_accepted_once_it_is_proven_and_before_the_way_back_is_gone(system: Any) -> None:
    told: List[Any] = []

    def accepted(outcome: Outcome) -> None:
        told.append((outcome.verdict.name, bool(system.read(D + "/.zz-gpufleet.conf.previous"))))

    go(system)
    go(system, environment={"A": "2"}, check=True, accepted=accepted)
    assert told == [], "check mode accepts nothing"
    go(system, environment={"A": "2"}, accepted=accepted)
    assert told == [("ok", True)]
    go(system, environment={"A": "2"}, accepted=accepted)
    assert len(told) == 1, "nothing was changed"
    system.fails = lambda environment, settings: environment.get("A") == "3" and "no"
    fails(system, environment={"A": "3"}, accepted=accepted)
    assert len(told) == 1, "what was rolled back was not accepted"
