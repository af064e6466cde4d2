# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard of the role: Prometheus can read every query, and engines really export what it asks for."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[5]
DASHBOARD = json.loads((ROOT / "roles/monitoring/files/dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
RULES = (ROOT / "roles/monitoring/files/alerts.yml").read_text("utf-8")
FIXTURES = ROOT / "tests/unit/fixtures"
ON_REQUEST = {"vllm:corrupted_requests_total"}
"""Exported only with an environment variable that the recorded server did not have."""


def test_prometheus_can_read_every_query(tmp_path):
    read = [query.replace("$__rate_interval", "1m") for query in QUERIES]
    rules = [{"record": "panel:%d" % number, "expr": query} for number, query in enumerate(read)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True)
    assert done.returncode == 0 and "%d rules found" % len(QUERIES) in done.stdout, done.stdout + done.stderr


def test_every_panel_reads_the_chosen_source_and_its_variables_exist():
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names[0] == "datasource" and DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    sources = [holder["datasource"]["uid"] for panel in PANELS for holder in (panel, *panel["targets"])]
    assert set(sources) == {"${datasource}"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval"} == set(names)


def test_legends_name_labels_that_the_query_keeps():
    for panel in PANELS:
        for target in panel["targets"]:
            kept = re.match(r"(?:sum|max) by \(([^)]*)\)|histogram_quantile\([^,]*, sum by \(([^)]*)\)", target["expr"])
            named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            if kept:
                assert named <= set(re.split(r", ", kept[1] or kept[2])), panel["title"]


def test_panels_lie_side_by_side():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _y in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_engines_export_what_alerts_and_dashboard_ask_for():
    """By the recordings of a real vLLM and a real llama-server."""
    recorded = "".join(path.read_text("utf-8") for path in FIXTURES.glob("*/*metrics*.txt"))
    asked = set(re.findall(r"(?:vllm|llamacpp):\w+", RULES + " ".join(QUERIES))) - ON_REQUEST
    asked = {re.sub("_bucket$", "_count", name) for name in asked}  # the recordings leave out the buckets
    assert len(asked) > 10
    assert sorted(name for name in asked if not re.search(r"(?m)^%s[ {]" % name, recorded)) == []
