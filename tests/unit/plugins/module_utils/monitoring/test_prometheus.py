# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a Prometheus, as promtool and Prometheus read them."""

from __future__ import annotations

import json

from ansible_collections.gpufleet.inference.plugins.module_utils.monitoring import prometheus, service

ROW = {"job": "vllm", "host": "gpu1", "address": "192.0.2.1", "port": 8000, "labels": {"unit": "vllm@a"}}
PARAMS = {"targets": [ROW], "keys": {}, "rules": "", "interval": 15, "alertmanagers": ["192.0.2.9:9093"]}


def scrapes(params):
    return json.loads(prometheus.files(params, prometheus.Place())["/etc/gpufleet/monitoring/prometheus.yml"])[
        "scrape_configs"
    ]


def test_targets_are_grouped_by_how_they_are_read():
    rows = [ROW, dict(ROW, host="gpu2", key="key-1", tls=True), dict(ROW, host="gpu3", key="key-1", tls=True)]
    plain, guarded = scrapes(dict(PARAMS, targets=rows, keys={"key-1": "sesame"}))
    assert "authorization" not in plain and plain["job_name"] == "vllm"
    assert guarded["authorization"] == {"credentials_file": "/run/credentials/prometheus.service/key-1"}
    assert (guarded["job_name"], guarded["scheme"]) == ("vllm tls key-1", "https")
    files = prometheus.files(dict(PARAMS, targets=rows, keys={"key-1": "sesame"}), prometheus.Place())
    listed = json.loads(files["/etc/gpufleet/monitoring/targets-vllm-tls-key-1.json"])
    assert [row["labels"] for row in listed] == [
        {"unit": "vllm@a", "job": "vllm", "host": host} for host in ("gpu2", "gpu3")
    ]
    assert "sesame" not in str(files)


def test_the_digest_changes_with_what_a_reload_reads_alone():
    first = prometheus.digest(PARAMS)
    assert prometheus.digest(dict(PARAMS, targets=[ROW, dict(ROW, host="gpu2")])) == first
    assert prometheus.digest(dict(PARAMS, interval=5)) != first != prometheus.digest(dict(PARAMS, rules="groups: []"))


def test_promtool_takes_the_files_and_names_what_it_refuses():
    rows = [ROW, dict(ROW, key="key-1", tls=True)]
    assert service._invalid(dict(PARAMS, targets=rows, keys={"key-1": "sesame"})) is None
    said = service._invalid(dict(PARAMS, rules=json.dumps({"groups": [{"name": "a", "rules": [{"alert": "A"}]}]})))
    assert (
        said.startswith("promtool refuses the configuration: FAILED") and "/tmp" not in said and "SUCCESS" not in said
    )
