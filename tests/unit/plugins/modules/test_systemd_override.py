# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module hands its options to the engine as text, and the engine's outcome to Ansible."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import override_module
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Change,
    Outcome,
    ServiceError,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.modules import systemd_override


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> List[Any]:
    """Takes the place of the engine; [(change, check_mode)], and an outcome or error to give in its last place."""
    calls: List[Any] = [Outcome(changed=True, restarted=True, reasons=["x"], diff={"before": "a", "after": "b"})]

    def converge(change: Change, *, check_mode: bool) -> Outcome:
        calls.insert(0, (change, check_mode))
        if isinstance(calls[-1], Exception):
            raise calls[-1]
        return calls[-1]

    monkeypatch.setattr(override_module, "converge_unit", converge)
    return calls


def test_options_become_a_change(run_module: Callable[..., Dict[str, Any]], engine: List[Any]) -> None:
    result = run_module(
        systemd_override.main,
        {
            "unit": "ollama",
            "environment": {"N": 4, "F": 0.5, "S": " x "},
            "secret_environment": {"T": "sesame-1"},
            "credentials": {"k": "sesame-2"},
            "settings": {"Service": {"LimitNOFILE": 65535, "ExecStart": ["", "/x"], "NoNewPrivileges": True}},
            "enabled": True,
            "timeout": 5,
        },
        check=True,
    )
    change, check_mode = engine[0]
    assert check_mode and change == Change(
        unit="ollama",
        environment={"N": "4", "F": "0.5", "S": " x "},
        secret_environment={"T": "sesame-1"},
        credentials={"k": "sesame-2"},
        settings={"Service": {"LimitNOFILE": ["65535"], "ExecStart": ["", "/x"], "NoNewPrivileges": ["yes"]}},
        enabled=True,
        timeout=5,
    )
    assert result["changed"] and result["verdict"] == "ok" and result["reasons"] == ["x"]


def test_defaults(run_module: Callable[..., Dict[str, Any]], engine: List[Any]) -> None:
    run_module(systemd_override.main, {"unit": "x.timer", "state": "absent"})
    assert engine[0] == (Change(unit="x.timer", state="absent"), False)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"environment": {"A": True}}, "environment: A is true or false"),
        ({"environment": {"A": None}}, "environment: A is a NoneType"),
        ({"secret_environment": {"A": ["sesame"]}}, "secret_environment: A is a list"),
        ({"credentials": {"A": {"b": "sesame"}}}, "credentials: A is a dict"),
        ({"settings": {"Service": "x"}}, "settings: Service is a str"),
        ({"settings": {"Service": {"Nice": None}}}, "[Service] Nice is a NoneType"),
        ({"settings": {"Service": {"Nice": [{}]}}}, "[Service] Nice is a dict"),
    ],
)
def test_values_of_the_wrong_type(
    run_module: Callable[..., Dict[str, Any]], engine: List[Any], options: Dict[str, Any], says: str
) -> None:
    result = run_module(systemd_override.main, dict(options, unit="x"))
    assert result["failed"] and says in result["msg"] and "nothing was changed" in result["msg"]
    assert "sesame" not in result["msg"] and len(engine) == 1


def test_an_error_carries_the_outcome(run_module: Callable[..., Dict[str, Any]], engine: List[Any]) -> None:
    outcome = Outcome(rolled_back=True, verdict=Verdict("crash_loop", "m", {"n_restarts": 1}))
    engine.append(ServiceError("ollama.service: crash_loop: it died", outcome))
    result = run_module(systemd_override.main, {"unit": "ollama"})
    assert result["failed"] and result["msg"] == "ollama.service: crash_loop: it died"
    assert result["rolled_back"] and result["verdict"] == "crash_loop" and result["evidence"] == {"n_restarts": 1}


def test_warnings_are_passed_on(run_module: Callable[..., Dict[str, Any]], engine: List[Any]) -> None:
    engine.append(Outcome(warnings=["systemd stops reading at x.conf:2"]))
    assert not run_module(systemd_override.main, {"unit": "x"}, warnings=("stops reading at x.conf:2",))["changed"]


def test_the_documentation_names_every_option_and_every_key() -> None:
    options = yaml.safe_load(systemd_override.DOCUMENTATION)["options"]
    assert set(options) == set(systemd_override.argument_spec())
    for name, argument in systemd_override.argument_spec().items():
        assert options[name].get("default") == argument.get("default"), name
        assert options[name]["type"] == argument["type"], name
    assert set(yaml.safe_load(systemd_override.RETURN)) | {"changed", "diff"} == set(Outcome().as_result())
    assert all(example["gpufleet.inference.systemd_override"] for example in yaml.safe_load(systemd_override.EXAMPLES))
