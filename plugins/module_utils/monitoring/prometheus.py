# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a Prometheus, as JSON, which is YAML too. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Dict, List, Mapping, NamedTuple

from ..toolbox.addresses import host_port
from ..toolbox.errors import Refused

CONFIG, RULES, RUNNING = "prometheus.yml", "rules.yml", "running.yml"
INFO = "gpufleet_monitoring_info"
"""A rule of ours with the digest of all files: by its label a running Prometheus says which ones it has read."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]*\Z")
_LABEL = re.compile(r"[a-z_][a-z0-9_]*\Z")


class Place(NamedTuple):
    """Where the files are."""

    folder: str = "/etc/gpufleet/monitoring"
    credentials: str = "/run/credentials/prometheus.service"

    def targets(self, scrape: str) -> str:
        return "%s/targets-%s.json" % (self.folder, scrape.replace(" ", "-"))


def check(params: Mapping[str, Any]) -> None:
    """:raises Refused: a target is malformed; the message says which one, and what was expected."""
    for row in params["targets"]:
        said = "targets: %s of %s" % (row.get("job"), row.get("host"))
        for field in ("job", "host", "address"):
            if not (isinstance(row.get(field), str) and _NAME.match(row[field])):
                raise Refused("%s has the %s %r; expected a name" % (said, field, row.get(field)))
        port = row.get("port")
        if not (isinstance(port, int) and 0 < port < 65536):
            raise Refused("%s has the port %r; expected a number from 1 to 65535" % (said, port))
        wrong = [name for name in row.get("labels") or {} if not _LABEL.match(str(name))]
        if wrong:
            raise Refused("%s has the label %r; expected lower-case letters, digits and _" % (said, wrong[0]))
        if row.get("key") and row["key"] not in params["keys"]:
            raise Refused("%s needs the key %s, which is not among keys" % (said, row["key"]))
    wrong = [name for name in params["keys"] if not _NAME.match(str(name))]
    if wrong:
        raise Refused("keys: %r is not a name; expected letters, digits, . _ and -" % wrong[0])


def files(params: Mapping[str, Any], place: Place) -> Dict[str, str]:
    """Path to text of each file."""
    found = {place.targets(name): _json(_listed(rows)) for name, rows in scrapes(params).items()}
    found["%s/%s" % (place.folder, RULES)] = params["rules"] or _json({"groups": []})
    found["%s/%s" % (place.folder, CONFIG)] = _json(_config(params, place))
    found["%s/%s" % (place.folder, RUNNING)] = _json(_running(digest(params)))
    return found


def digest(params: Mapping[str, Any]) -> str:
    """Of what a Prometheus reads at a reload. Targets are not part of it: it takes them without one."""
    words = _json(_config(params, Place())) + params["rules"]
    return hashlib.sha256(words.encode("utf-8")).hexdigest()[:16]


def scrapes(params: Mapping[str, Any]) -> Dict[str, List[Mapping[str, Any]]]:
    """The targets by scrape: those of a job that are read the same way, with the same key."""
    found: Dict[str, List[Mapping[str, Any]]] = {}
    for row in params["targets"]:
        words = [row["job"], *(["tls"] if row.get("tls") else []), *([row["key"]] if row.get("key") else [])]
        found.setdefault(" ".join(words), []).append(row)
    return found


def instance(row: Mapping[str, Any]) -> str:
    """A target as Prometheus names it."""
    return host_port(row["address"], row["port"])


def _listed(rows: List[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    return [
        {"targets": [instance(row)], "labels": dict(row.get("labels") or {}, job=row["job"], host=row["host"])}
        for row in rows
    ]


def _config(params: Mapping[str, Any], place: Place) -> Dict[str, Any]:
    seconds = "%ds" % params["interval"]
    return {
        "global": {"scrape_interval": seconds, "evaluation_interval": seconds},
        "rule_files": ["%s/%s" % (place.folder, name) for name in (RULES, RUNNING)],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(params["alertmanagers"])}]}]},
        "scrape_configs": [_scrape(name, rows[0], place) for name, rows in scrapes(params).items()],
    }


def _scrape(name: str, row: Mapping[str, Any], place: Place) -> Dict[str, Any]:
    found: Dict[str, Any] = {"job_name": name, "file_sd_configs": [{"files": [place.targets(name)]}]}
    if row.get("tls"):  # as the gateway: engines often have a certificate of their own making
        found.update(scheme="https", tls_config={"insecure_skip_verify": True})
    if row.get("key"):
        found["authorization"] = {"credentials_file": "%s/%s" % (place.credentials, row["key"])}
    return found


def _running(value: str) -> Dict[str, Any]:
    rule = {"record": INFO, "expr": "vector(1)", "labels": {"digest": value}}
    return {"groups": [{"name": "gpufleet", "rules": [rule]}]}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
