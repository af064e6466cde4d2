# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host reports of itself: metrics, the verdict, the line for the journal."""

from __future__ import annotations

import re
from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.self_check import words

OK = {"changed": False, "verdict": "ok", "unit_state": {"n_restarts": 2}}
SERVICE = ["a.plugins.module_utils.ollama.service", "service", {"name": "ollama"}]
INSTANCES = ["a.plugins.module_utils.vllm.service", "service", {}]


def converged(**result: Any) -> Dict[str, Any]:
    return {"state": "converged", "why": "", "result": {"changed": False, **result}}


def test_a_converged_host() -> None:
    answers = [converged(**OK), converged(instances={"vllm@a.service": OK, "vllm@b.service": OK})]
    checks = words.judge([SERVICE, INSTANCES], answers, [])
    assert words.line(checks) == "<5>as declared: 2 checks"
    text = words.metrics(checks, {"ollama.service": 7}, 1796036653.5, 0.061)
    assert "gpufleet_as_declared 1\n" in text
    assert 'gpufleet_check_as_declared{check="ollama.service"} 1\n' in text
    assert 'gpufleet_service_verdict_info{unit="vllm@b.service",verdict="ok"} 1\n' in text
    assert 'gpufleet_service_restarts_total{unit="vllm@a.service"} 2\n' in text
    assert re.findall("^gpufleet_service_generation.*", text, re.MULTILINE) == [
        'gpufleet_service_generation{unit="ollama.service"} 7'
    ]
    assert text.endswith("gpufleet_self_check_cpu_seconds 0.061\n")


def test_findings_drift_and_certificates_are_metrics() -> None:
    """Two GPUs unlike their twins in two ways are two rows: a row twice would cost node_exporter the whole file."""
    keys = {"check": "unlike_twins", "effect": "note", "action": "look", "line": "GPU 2: unlike_twins: its VBIOS"}
    twice = [dict(keys, gpu=2), dict(keys, gpu=2, line="GPU 2: unlike_twins: its ECC"), dict(keys, gpu=3)]
    answers = [
        converged(ansible_facts={"gpu": {"findings": twice}}),
        {"state": "differs", "why": "would restart it", "result": {**OK, "changed": True, "differs": ["process"]}},
        converged(certificates={"/etc/a.pem": 1798761600}),
    ]
    checks = words.judge([["a.gpu.facts", "report", {}], SERVICE, ["a.gateway.service", "check", {}]], answers, [])
    text = words.metrics(checks, {}, 1.0, 0.1)
    row = 'gpufleet_finding{action="look",check="unlike_twins",effect="note",gpu="%d"} 1\n'
    assert text.count(row % 2) == text.count(row % 3) == 1
    assert 'gpufleet_drift{kind="process",unit="ollama.service"} 1\n' in text
    assert 'gpufleet_certificate_not_after_seconds{file="/etc/a.pem"} 1798761600\n' in text
    assert words.line(checks).startswith("<4>not as declared: ollama.service differs: would restart it; found: GPU 2: ")
    clean = words.judge([["a.gpu.facts", "report", {}]], [converged(ansible_facts={"gpu": {"findings": []}})], [])
    assert "gpufleet_finding" not in words.metrics(clean, {}, 1.0, 0.1) and words.line(clean)[:3] == "<5>"
    assert words.verdict(checks) != words.verdict(words.judge([SERVICE], answers[1:2], []))


def test_the_text_is_that_of_the_exposition_format() -> None:
    """Each name once has help and type, then its rows; nothing else."""
    result = {**OK, "verdict": 'odd"\\\nname'}
    text = words.metrics(words.judge([SERVICE], [converged(**result)], []), {}, 1.0, 0.1)
    assert 'verdict="odd\\"\\\\\\nname"' in text
    row = r'(?P<name>[a-z_]+)(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? -?[0-9.]+'
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            assert line.split()[2] > ""
            assert line.split()[2] != name
            name = line.split()[2]
        elif line.startswith("# TYPE "):
            assert line in ("# TYPE %s gauge" % name, "# TYPE %s counter" % name)
            assert line.endswith("counter") == name.endswith("_total")
        else:
            found = re.fullmatch(row, line)
            assert found and found["name"] == name, line


@pytest.mark.parametrize(
    "answer, why",
    [
        ({"state": "differs", "why": "would restart", "result": {"changed": True}}, "differs: would restart"),
        ({"state": "refused", "why": "no\nGPU 9", "result": None}, "refused: no GPU 9"),
        (
            {"state": "failed", "why": "Traceback (most\n  File x\nKeyError: 'a'\n", "result": None},
            "failed: KeyError: 'a'",
        ),
        (converged(needs=["Qwen/Qwen3-8B"]), "differs: missing: Qwen/Qwen3-8B"),
        (converged(proof_due=True), "differs: the service is not verified yet"),
        (converged(), ""),
    ],
)
def test_what_counts_as_a_difference(answer: Dict[str, Any], why: str) -> None:
    checks = words.judge([SERVICE], [answer], [])
    assert checks[0].why == why
    assert ("gpufleet_as_declared %d\n" % (not why)) in words.metrics(checks, {}, 1.0, 0.1)


def test_secrets_are_masked() -> None:
    answer = {"state": "refused", "why": "key sk-abc-def is short", "result": None}
    (check,) = words.judge([SERVICE], [answer], ["sk-abc", "sk-abc-def"])
    assert check.why == "refused: key ******** is short"


def test_a_reason_alone_is_no_new_verdict() -> None:
    def verdict(state: str, why: str) -> Any:
        return words.verdict(words.judge([SERVICE], [{"state": state, "why": why, "result": None}], []))

    assert verdict("differs", "process 17") == verdict("differs", "process 18")
    assert verdict("differs", "process 17") != verdict("failed", "process 17")
    good, bad = (words.judge([SERVICE], [converged(**{**OK, "verdict": one})], []) for one in ("ok", "stalled"))
    assert words.verdict(good) != words.verdict(bad)
