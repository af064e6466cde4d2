# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules of the role: each has a case in alerts_test.yml, which promtool runs, and says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[5]
RULES = ROOT / "roles/monitoring/files/alerts.yml"
CASES = Path(__file__).with_name("alerts_test.yml")
ALERTS = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
}


def run(*words):
    done = subprocess.run(["promtool", *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def case_of(alert):
    return next(case for case in yaml.safe_load(CASES.read_text("utf-8"))["tests"] if case["name"] == alert)


def test_each_alert_fires_for_its_fault_and_no_other_does():
    assert [case["name"] for case in yaml.safe_load(CASES.read_text("utf-8"))["tests"]] == list(ALERTS)
    assert run("test", "rules", str(CASES)) == (0, "Unit Testing:  %s\n  SUCCESS\n\n" % CASES)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_happened_where_and_what_to_do(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning") and set(rule["labels"]) <= {"severity", "check"}
    assert sorted(rule["annotations"]) == ["description", "summary"]
    (sample,) = case_of(alert)["promql_expr_test"][0]["exp_samples"]
    fired = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
    said = " ".join(rule["annotations"].values())
    named = set(re.findall(r"\$labels\.(\w+)", said))
    assert named <= set(fired), "a label that the alert does not have"
    assert "host" in named and named >= set(fired) & {"unit", "gpu"}


def test_the_table_in_the_docs_has_each_alert():
    rows = re.findall(r"(?m)^\| `(\w+)` \| (critical|warning) \|", (ROOT / "docs/monitoring.md").read_text("utf-8"))
    assert rows == [(name, rule["labels"]["severity"]) for name, rule in ALERTS.items()]


def test_a_case_that_would_not_fire_is_noticed(tmp_path):
    """What the other tests rest on."""
    (tmp_path / "alerts.yml").write_text(RULES.read_text("utf-8").replace('"vllm|llama_server"} == 0', '"vllm"} == 2'))
    (tmp_path / "cases.yml").write_text(
        CASES.read_text("utf-8").replace("../../../../../roles/monitoring/files/alerts.yml", "alerts.yml")
    )
    status, said = run("test", "rules", str(tmp_path / "cases.yml"))
    assert status and 'alertname="EngineDown"' in said and said.count("exp:") == 1
