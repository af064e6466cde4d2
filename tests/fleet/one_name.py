# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults made by hand on two hosts have the same names in the views of verify, plan, report, self check and alerts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Set, Tuple

RULES = Path(__file__).resolve().parents[2] / "roles/monitoring/files/alerts.yml"
METRICS = "systemctl start gpufleet-self-check && cat /var/lib/prometheus/*/gpufleet.prom"
JOURNAL = "journalctl --sync; journalctl -q --no-pager -o cat -n 1 -u gpufleet-self-check.service"
FOLDER = "/etc/systemd/system/ollama.service.d"
OTHER_PROCESS = (
    "cd {folder}; cp zz-gpufleet.conf /root/; sed -i 's/KEEP_ALIVE=[^\"]*/KEEP_ALIVE=77m/' zz-gpufleet.conf;"
    "systemctl daemon-reload; systemctl restart ollama; cp /root/zz-gpufleet.conf .; systemctl daemon-reload"
).format(folder=FOLDER)
EDITED = "echo '# mine' >>%s/zz-gpufleet.conf; systemctl daemon-reload" % FOLDER
#: By host, what is found of its GPUs and what differs of its service.
NAMES = {
    "gpu1": ({"fabric_degraded", "pcie_errors"}, {"process", "override"}),
    "gpu2": ({"gpu_lost"}, {"environment", "override"}),
}
NOTES = {"pcie_errors"}
"""What a plan leaves out."""

ALERT_OF = {"fabric_degraded": "GpuSlow", "gpu_lost": "GpuUnfit", "pcie_errors": "GpuToBeLookedAt"}


def of_the_metrics(text: str) -> Any:
    found = re.findall(r'^gpufleet_finding\{.*check="(\w+)"', text, re.MULTILINE)
    return set(found), set(re.findall(r'^gpufleet_drift\{kind="(\w+)"', text, re.MULTILINE))


def alerts(folder: Path, host: str, text: str) -> Set[Tuple[str, str]]:
    """The alerts that fire for metrics that stay as they are for an hour, each with the name of what was found."""
    rows = re.findall(r"^(gpufleet_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    series = [
        {"series": "%s{%s}" % (name, ",".join(filter(None, [labels, 'host="%s"' % host]))), "values": value + "x60"}
        for name, labels, value in rows
    ]
    nothing = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "50m", "exp_samples": []}
    case = {"interval": "1m", "input_series": series, "promql_expr_test": [nothing]}
    path = folder / "case.yml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    said = done.stdout + done.stderr
    fired = [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in re.findall(r"\{(__name__.*?)\} 1", said)]
    assert bool(fired) == bool(done.returncode), said
    return {(one["alertname"], one.get("kind") or one.get("check") or "") for one in fired}


def assert_clean(lab: Any, folder: Path) -> None:
    for host in NAMES:
        text = lab.sh(host, METRICS)
        assert of_the_metrics(text) == (set(), set()) and "gpufleet_as_declared 1" in text, text
        assert alerts(folder, host, text) == set()
        assert "; found: " not in lab.sh(host, JOURNAL)


def assert_one_name(lab: Any, page: Path, settle: Callable[[str], Any]) -> None:
    """The hosts must be in their declared state and must check themselves; afterwards a run has to repair them."""
    assert_clean(lab, page.parent)
    lab.sh("gpu1", OTHER_PROCESS)
    lab.sh("gpu1", EDITED)
    lab.state("gpu1", None, "fabric-degraded:1", "pcie-errors:2")
    lab.state("gpu2", None, "gpu-lost:3")
    settle("gpu1")
    try:
        common = ("--limit", ",".join(NAMES))
        verify = lab.playbook("playbooks/verify.yml", *common, ok=False, warnings=True)
        written = str(page.with_suffix(".json"))
        lab.playbook("playbooks/plan.yml", *common, "-e", "plan_output=%s" % written, ok=False, warnings=True)
        report = lab.playbook("playbooks/report.yml", *common, "-e", "report_file=%s" % page, ok=False, warnings=True)
        plan = json.loads(Path(written).read_text())
        problems = report.of("fleet_report")[0]["problems"]
        for host, (findings, drift) in NAMES.items():
            (said,) = (one["msg"] for one in verify.of("assert", host) if "does not match" in str(one["msg"]))
            risks = " ".join(risk["text"] for risk in plan["risks"] if risk["host"] == host)
            why = " ".join(row["why"] for row in plan["hosts"][host]["services"])
            shown = " ".join(one["text"] for one in problems[host])
            metrics, line = lab.sh(host, METRICS), lab.sh(host, JOURNAL)
            views: Dict[str, Set[str]] = {
                "verify": words(said),
                "plan": words(risks) | words(why),
                "report": words(shown),
                "journal": words(line),
            }
            for view, names in views.items():
                wanted = findings - NOTES if view == "plan" else findings
                assert wanted | drift <= names, (view, host, said, risks, why, shown, line)
            assert of_the_metrics(metrics) == (findings, drift), metrics
            assert alerts(page.parent, host, metrics) == {
                ("NotAsDeclared", "ollama.service"),
                *((ALERT_OF[name], name) for name in findings),
                *(("ServiceDrift", name) for name in drift),
            }
    finally:
        for host in NAMES:
            lab.state(host)


def words(text: str) -> Set[str]:
    return set(re.findall(r"\w+", text))
