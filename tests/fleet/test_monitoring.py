# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role monitoring on a lab host with Debian's Prometheus, over SSH."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator

import on_host
import pytest
import yaml
from gpulab import podman

KEY = "sesame-open-4711"
FOLDER = "/etc/gpufleet/monitoring"
PACKAGE = (
    "usr/bin/prometheus",
    "usr/bin/promtool",
    "lib/systemd/system/prometheus.service",
    "etc/default/prometheus",
    "etc/prometheus/prometheus.yml",
)
USER = "id prometheus >/dev/null 2>&1 || useradd --system --home /var/lib/prometheus prometheus"
DATA = "install -d -o prometheus -g prometheus /var/lib/prometheus/metrics2 && systemctl daemon-reload"
ENGINE = """\
import http.server
class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.headers["Authorization"] == "Bearer %s"
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(b"llamacpp:requests_processing 0\\n" if good else b"")
http.server.HTTPServer(("127.0.0.1", 8080), Metrics).serve_forever()
"""
RULE = {"alert": "Odd", "expr": "vector(1)", "labels": {"severity": "info"}}


class Monitoring:
    """The play that configures a Prometheus on gpu1, which reads a llama-server there that asks for a key."""

    def __init__(self, lab: Any, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        play = [{"hosts": "monitoring", "gather_facts": False, "roles": ["gpufleet.inference.monitoring"]}]
        host = {
            "llama_server_api_key": KEY,
            "llama_server_alias": "m8b",
            "monitoring_node_port": 0,
            "monitoring_interval": 1,
        }
        groups = {"monitoring": {"hosts": {"gpu1": host}}, "llama_server": {"hosts": {"gpu1": None}}}
        (folder / "play.yml").write_text(yaml.safe_dump(play))
        (folder / "fleet.yml").write_text(yaml.safe_dump(groups))

    def __call__(self, *words: str, **variables: Any) -> Dict[str, Any]:
        """Run the play; the module's result."""
        given = ["-i", str(self.folder / "fleet.yml"), "-e", json.dumps(variables), *words]
        run = self.lab.playbook(str(self.folder / "play.yml"), *given, ok=False)
        (result,) = run.of("monitoring_service")
        assert KEY not in run.output
        return result

    def rules(self, expression: str) -> str:
        """A rule file on the controller."""
        path = self.folder / "rules.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "own", "rules": [dict(RULE, expr=expression)]}]}))
        return str(path)

    def sh(self, command: str, **more: Any) -> str:
        return self.lab.sh("gpu1", command, **more)

    def ask(self, path: str) -> Any:
        return json.loads(self.sh("curl -sf 'http://127.0.0.1:9090%s'" % path))["data"]


@pytest.fixture
def monitoring(lab: Any, tmp_path: Path) -> Iterator[Monitoring]:
    """A host with what the package has, taken from this machine: its installation takes half a minute."""
    lab.reset("gpu1")
    pack = subprocess.Popen(["tar", "-C", "/", "-c", *PACKAGE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    inside = podman.inside("%s-gpu1" % os.environ["GPUFLEET_LAB"])
    subprocess.run([*inside, "tar", "-C", "/", "-x"], stdin=pack.stdout, check=True)
    assert pack.wait() == 0
    found = Monitoring(lab, tmp_path)
    on_host.put(lab, "gpu1", "/run/engine.py", (ENGINE % KEY).encode())
    found.sh("%s; %s; systemd-run -q --unit fleet-engine python3 /run/engine.py" % (USER, DATA))
    yield found
    found.sh(
        "systemctl disable -q --now prometheus; systemctl stop fleet-engine; cd /; rm -rf %s run/engine.py;"
        "rm -rf /var/lib/prometheus; systemctl daemon-reload" % " ".join(PACKAGE)
    )


def test_prometheus_is_configured_proven_and_rolled_back(monitoring: Monitoring) -> None:
    would = monitoring("--check")
    assert would["changed"] and monitoring.sh("ls -d %s || :" % FOLDER).startswith("ls:")
    first = monitoring()
    assert (first["verdict"], first["planned"]) == ("ok", would["planned"])
    up = "until curl -sf '127.0.0.1:9090/api/v1/query?query=up' | grep -q '\"1\"'; do sleep 0.2; done"
    monitoring.sh('timeout 300 sh -c "%s"' % up.replace('"', '\\"'))
    (target,) = monitoring.ask("/api/v1/targets")["activeTargets"]
    assert target["labels"].items() >= {"job": "llama_server", "host": "gpu1", "unit": "llama-server"}.items()
    assert monitoring.sh("grep -rl [s]%s /etc/gpufleet /proc/[0-9]*/cmdline 2>/dev/null || :" % KEY[1:]).split() == [
        "/etc/gpufleet/credentials/prometheus.service/key-1"
    ]
    assert monitoring.sh("stat -c %U%a /etc/gpufleet/credentials/prometheus.service/key-1") == "root600\n"
    second = monitoring()
    assert not second["changed"] and second["evidence"] == {"targets": 1, "up": 1}

    changed = monitoring(monitoring_rules=monitoring.rules("vector(2)"))
    assert changed["verdict"] == "ok" and not changed["restarted"] and changed["msg"].endswith("reloaded")
    refused = monitoring(monitoring_rules=monitoring.rules("sum by ("))
    assert refused["failed"] and "promtool refuses the configuration" in refused["msg"] and not refused["changed"]
    monitoring.sh("mv /usr/bin/promtool /usr/bin/promtool.real; ln -s /bin/true /usr/bin/promtool")
    failed = monitoring(monitoring_rules=monitoring.rules("sum by ("))
    monitoring.sh("mv -f /usr/bin/promtool.real /usr/bin/promtool")
    assert failed["failed"] and failed["verdict"] == "not_reloaded" and failed["rolled_back"], failed
    groups = monitoring.ask("/api/v1/rules")["groups"]
    assert {rule["query"] for group in groups for rule in group["rules"]} == {"vector(1)", "vector(2)"}

    monitoring.sh("echo 'groups: []' > %s/rules.yml; systemctl reload prometheus" % FOLDER)
    would = monitoring("--check", monitoring_rules=monitoring.rules("vector(2)"))
    assert would["planned"] == ["write %s/rules.yml" % FOLDER, "systemctl reload prometheus.service"]
    assert monitoring(monitoring_rules=monitoring.rules("vector(2)"))["planned"] == would["planned"]

    options = {"state": "absent", "timeout": 300}
    left = monitoring.lab.module("gpu1", "monitoring_service", options)
    assert left["changed"], left["msg"]
    assert monitoring.sh("ls -d /etc/gpufleet/* /etc/systemd/system/prometheus.service.d 2>/dev/null || :") == ""
    assert not monitoring.lab.module("gpu1", "monitoring_service", options)["changed"]
