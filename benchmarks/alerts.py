# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a real Prometheus fire every alert of the role monitoring once, and an Alertmanager's place receive it.

    python benchmarks/alerts.py

The cases are those of promtool (alerts_test.yml): in each, one host has the fault and another one is well. A minute of
theirs takes a second here, and so does a minute for which an alert waits; the rest is what the role writes.
Exits with 1 if an alert is missing, fires for a healthy host, or has an empty place in its text.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".collections"))

from ansible_collections.gpufleet.inference.plugins.module_utils.monitoring import prometheus

ROOT = Path(__file__).resolve().parents[1]

CASES = ROOT / "tests/unit/plugins/module_utils/monitoring/alerts_test.yml"
RULES = ROOT / "roles/monitoring/files/alerts.yml"
LIMIT = 180
"""Seconds for all alerts."""
Target = Dict[str, Any]


def numbers(text: str) -> List[Optional[float]]:
    """A sequence as promtool writes it: ``1 2 3x4 0+10x70``, and ``_x5`` for no value."""
    found: List[Optional[float]] = []
    for word in text.split():
        if word.startswith("_"):
            found += [None] * (int(word[2:] or 0) + 1)
            continue
        first, step, times = re.fullmatch(r"([\d.]+)(?:\+([\d.]+))?(?:x(\d+))?", word).groups()
        found += [float(first) + float(step or 0) * number for number in range(int(times or 0) + 1)]
    return found


def read(cases: List[Dict[str, Any]], port: int, closed: int) -> Tuple[List[Target], Dict[str, List[Tuple[str, Any]]]]:
    """The targets of all cases, each host of each case a host of its own; and path to the metrics served there."""
    targets: Dict[str, Target] = {}
    served: Dict[str, List[Tuple[str, Any]]] = {}
    for case in cases:
        for row in case["input_series"]:
            name, words = re.fullmatch(r"([\w:]+)\{(.*)\}", row["series"]).groups()
            labels = dict(re.findall(r'(\w+)="([^"]*)"', words))
            host, job = "%s-%s" % (case["name"], labels.pop("host")), labels.pop("job", "case")
            down = name == "up" and numbers(row["values"])[-1] == 0
            unit = {"unit": labels.pop("unit")} if "unit" in labels else {}
            target = {"job": job, "host": host, "address": "127.0.0.1", "port": closed if down else port}
            targets[host] = dict(target, labels={**unit, "__metrics_path__": "/" + host})
            if name != "up":
                shown = ",".join('%s="%s"' % label for label in labels.items())
                served.setdefault("/" + host, []).append(("%s{%s}" % (name, shown), numbers(row["values"])))
    return list(targets.values()), served


class Place:
    """Where the metrics are read and the alerts arrive: one HTTP server for both."""

    def __init__(self) -> None:
        self.served: Dict[str, List[Tuple[str, Any]]] = {}
        self.arrived: Dict[Tuple[str, str], Tuple[float, Dict[str, Any]]] = {}
        self.started = time.time()
        self.readings: Dict[str, int] = {}
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer("".join("%s %r\n" % line for line in place.metrics(self.path)).encode())

            def do_POST(self) -> None:
                place.receive(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer(b"")

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # on a busy machine Prometheus does not always wait
                    self.wfile.write(body)

            def log_message(self, *_words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def metrics(self, path: str) -> Iterator[Tuple[str, float]]:
        """Each reading of a target gets the next value of its sequences; one that has ended is gone."""
        number = self.readings[path] = self.readings.get(path, -1) + 1
        for series, values in self.served.get(path, ()):
            healthy_clock = "_timestamp_seconds" in series and values[-1] > 0
            if number < len(values) and values[number] is not None:
                since = time.time() if "_not_after_seconds" in series else 0
                yield series, time.time() if healthy_clock else since + values[number]

    def receive(self, alerts: List[Dict[str, Any]]) -> None:
        for alert in alerts:
            key = (alert["labels"]["alertname"], alert["labels"]["host"])
            self.arrived.setdefault(key, (time.time() - self.started, alert))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    cases = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    place, closed, listen = Place(), free_port(), free_port()
    targets, place.served = read(cases, place.port, closed)
    rules = re.sub(r"(?m)(?<= for: )(\d+)m$", r"\1s", RULES.read_text("utf-8"))
    rules = rules.replace(" for: 1h", " for: 1m").replace("offset 1h", "offset 1m")
    expected = {(case["name"], "%s-gpu1" % case["name"]) for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        receiver = ["127.0.0.1:%d" % place.port]
        params = {"targets": targets, "keys": {}, "rules": rules, "interval": 1, "alertmanagers": receiver}
        for path, text in prometheus.files(params, prometheus.Place(folder, folder)).items():
            Path(path).write_text(text, "utf-8")
        words = ["--config.file=%s/%s" % (folder, prometheus.CONFIG), "--storage.tsdb.path=%s/data" % folder]
        running = subprocess.Popen(
            ["prometheus", *words, "--web.listen-address=127.0.0.1:%d" % listen, "--log.level=warn"]
        )
        place.started = time.time()
        try:
            while expected - set(place.arrived) and time.time() - place.started < LIMIT and running.poll() is None:
                # the alerts arrive in another thread, some of them minutes apart; nothing else is to be done meanwhile
                time.sleep(0.5)
        finally:
            running.terminate()
            running.wait()
    return report(place, expected)


def report(place: Place, expected: Any) -> int:
    wrong = sorted(set(place.arrived) - expected)
    for key in sorted(expected, key=lambda key: place.arrived.get(key, (LIMIT, {}))[0]):
        seconds, alert = place.arrived.get(key, (0, {}))
        said = alert.get("annotations", {})
        print("%-20s %5.1f s  %s" % (key[0], seconds, said.get("summary", "did not arrive")))
        if not said or any("  " in text or "no value" in text or text.strip() == "" for text in said.values()):
            wrong.append(key)
    print("%d of %d alerts arrived; wrong: %s" % (len(expected & set(place.arrived)), len(expected), wrong or "none"))
    return int(bool(wrong) or not expected <= set(place.arrived))


if __name__ == "__main__":
    sys.exit(main())
