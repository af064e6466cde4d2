# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rulebooks act on alerts that there are, with playbooks that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULEBOOKS = sorted((ROOT / "extensions/eda/rulebooks").glob("*.yml"))
ALERTS = yaml.safe_load((ROOT / "roles/monitoring/files/alerts.yml").read_text("utf-8"))["groups"]


@pytest.mark.parametrize("path", RULEBOOKS, ids=lambda path: path.stem)
def test_alerts_and_playbooks_of_a_rulebook_exist(path: Path) -> None:
    known = {rule["alert"] for group in ALERTS for rule in group["rules"]}
    for rulebook in yaml.safe_load(path.read_text("utf-8")):
        for rule in rulebook["rules"]:
            (named,) = re.findall(r"alertname in \[(.*?)\]", rule["condition"])
            assert set(yaml.safe_load("[%s]" % named)) <= known
            playbook = rule["action"]["run_playbook"]["name"].rpartition(".")[2]
            assert (ROOT / "playbooks" / (playbook + ".yml")).is_file()


@pytest.mark.parametrize("path", RULEBOOKS, ids=lambda path: path.stem)
def test_a_rulebook_asks_for_a_token_and_acts_on_one_host(path: Path) -> None:
    """Without the filter a playbook would run on the whole inventory."""
    for rulebook in yaml.safe_load(path.read_text("utf-8")):
        (source,) = rulebook["sources"]
        assert source["eda.builtin.webhook"]["token"] == "{{ alertmanager_token }}"
        assert {"eda.builtin.insert_hosts_to_meta": {"host_path": "labels.host"}} in source["filters"]
        assert all(rule["throttle"]["once_within"] for rule in rulebook["rules"])
