# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Grafana dashboard of the role monitoring, as a table; `make generate` writes it as JSON."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Tuple

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 24
"""Of a panel, and of the whole, in Grafana's units."""
HOST = 'host=~"$host"'
MODEL = 'host=~"$host", model_name=~"$model"'
POOL = 'job="gateway", host=~"$host", proxy=~"$pool"'
PER_MODEL = "{{model_name}} {{host}}"


class Panel(NamedTuple):
    title: str
    kind: str
    """Grafana's name for it: ``stat``, ``timeseries`` or ``table``."""
    queries: Tuple[Tuple[str, str], ...]
    """Expression and legend of each."""
    unit: str = "short"
    alarming: float = 0
    """From this value on it is red; 0 for none."""


def latency(metric: str) -> Tuple[Tuple[str, str], ...]:
    """The median and the slowest twentieth of a histogram of vLLM, by model and host."""
    rate = "sum by (host, model_name, le) (rate(%s_bucket{%s}[$__rate_interval]))" % (metric, MODEL)
    return tuple(
        ("histogram_quantile(%s, %s)" % (share, rate), "%s %s" % (name, PER_MODEL))
        for share, name in (("0.5", "median"), ("0.95", "p95"))
    )


def rate(metric: str, selector: str, by: str, legend: str) -> Tuple[Tuple[str, str], ...]:
    return (("sum by (%s) (rate(%s{%s}[$__rate_interval]))" % (by, metric, selector), legend),)


ROWS: Tuple[Tuple[str, Tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel(
                "Alerts",
                "table",
                (
                    (
                        "sum by (alertname, severity, host, unit, proxy, gpu, check, kind) "
                        '(ALERTS{alertstate="firing"})',
                        "",
                    ),
                ),
            ),
            Panel(
                "Services not as declared",
                "stat",
                (("count(gpufleet_service_as_declared == 0) or vector(0)", ""),),
                alarming=1,
            ),
            Panel("Targets that do not answer", "stat", (("count(up == 0) or vector(0)", ""),), alarming=1),
            Panel(
                "Ready servers of each model",
                "timeseries",
                (('sum by (proxy) (haproxy_server_status{%s, state="UP"})' % POOL, "{{proxy}}"),),
            ),
            Panel(
                "Verdict of each service",
                "table",
                (("sum by (host, unit, verdict) (gpufleet_service_verdict_info{%s})" % HOST, ""),),
            ),
            Panel(
                "What was found of GPUs",
                "table",
                (("sum by (host, gpu, check, effect, action) (gpufleet_finding{%s})" % HOST, ""),),
            ),
            Panel(
                "What differs of services", "table", (("sum by (host, unit, kind) (gpufleet_drift{%s})" % HOST, ""),)
            ),
            Panel(
                "Days until certificates end",
                "table",
                (("sum by (host, file) (gpufleet_certificate_not_after_seconds{%s} - time()) / 86400" % HOST, ""),),
            ),
            Panel(
                "Checks that fail",
                "table",
                (("sum by (host, check) (gpufleet_check_as_declared{%s} == 0)" % HOST, ""),),
            ),
            Panel(
                "Restarts by systemd in the last hour",
                "timeseries",
                (("increase(gpufleet_service_restarts_total{%s}[1h])" % HOST, "{{unit}} {{host}}"),),
            ),
        ),
    ),
    (
        "What clients see, at the gateways",
        (
            Panel(
                "Requests",
                "timeseries",
                rate("haproxy_backend_http_responses_total", POOL, "proxy", "{{proxy}}"),
                "reqps",
            ),
            Panel(
                "Failed requests",
                "timeseries",
                rate("haproxy_backend_http_responses_total", POOL + ', code="5xx"', "proxy", "{{proxy}}"),
                "reqps",
            ),
            Panel(
                "Requests that wait",
                "timeseries",
                (("sum by (proxy) (haproxy_backend_current_queue{%s})" % POOL, "{{proxy}}"),),
            ),
        ),
    ),
    (
        "vLLM",
        (
            Panel("First token", "timeseries", latency("vllm:time_to_first_token_seconds"), "s", 5),
            Panel("Next token", "timeseries", latency("vllm:inter_token_latency_seconds"), "s", 0.25),
            Panel(
                "Generated tokens per second",
                "timeseries",
                rate("vllm:generation_tokens_total", MODEL, "host, model_name", PER_MODEL),
            ),
            Panel(
                "Requests",
                "timeseries",
                (
                    ("sum by (host, model_name) (vllm:num_requests_running{%s})" % MODEL, "running " + PER_MODEL),
                    ("sum by (host, model_name) (vllm:num_requests_waiting{%s})" % MODEL, "waiting " + PER_MODEL),
                ),
            ),
            Panel(
                "KV cache in use",
                "timeseries",
                (("max by (host, model_name) (vllm:kv_cache_usage_perc{%s})" % MODEL, PER_MODEL),),
                "percentunit",
                0.9,
            ),
            Panel(
                "Prompt tokens found in the prefix cache",
                "timeseries",
                (
                    (
                        "sum by (host, model_name) (rate(vllm:prefix_cache_hits_total{%s}[$__rate_interval]))"
                        " / sum by (host, model_name) (rate(vllm:prefix_cache_queries_total{%s}[$__rate_interval]))"
                        % (MODEL, MODEL),
                        PER_MODEL,
                    ),
                ),
                "percentunit",
            ),
        ),
    ),
    (
        "llama.cpp",
        (
            Panel(
                "Requests",
                "timeseries",
                (
                    ("llamacpp:requests_processing{%s}" % HOST, "running {{unit}} {{host}}"),
                    ("llamacpp:requests_deferred{%s}" % HOST, "waiting {{unit}} {{host}}"),
                ),
            ),
            Panel(
                "Generated tokens per second",
                "timeseries",
                rate("llamacpp:tokens_predicted_total", HOST, "host, unit", "{{unit}} {{host}}"),
            ),
        ),
    ),
    (
        "GPUs",
        (
            Panel(
                "Temperature", "timeseries", (("DCGM_FI_DEV_GPU_TEMP{%s}" % HOST, "{{host}} {{gpu}}"),), "celsius", 87
            ),
            Panel(
                "Memory in use", "timeseries", (("DCGM_FI_DEV_FB_USED{%s}" % HOST, "{{host}} {{gpu}}"),), "decmbytes"
            ),
            Panel("Load", "timeseries", (("DCGM_FI_DEV_GPU_UTIL{%s}" % HOST, "{{host}} {{gpu}}"),), "percent"),
            Panel("Power", "timeseries", (("DCGM_FI_DEV_POWER_USAGE{%s}" % HOST, "{{host}} {{gpu}}"),), "watt"),
        ),
    ),
)


def text() -> str:
    """The dashboard, as Grafana imports it."""
    panels: List[Dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}, "panels": []})
        for number, panel in enumerate(row):
            x, line = WIDTH * number % COLUMNS, WIDTH * number // COLUMNS
            panels.append(_panel(panel, {"h": HEIGHT, "w": WIDTH, "x": x, "y": y + 1 + line * HEIGHT}))
        y += 1 + HEIGHT * -(-len(row) * WIDTH // COLUMNS)
    for number, each in enumerate(panels, 1):
        each["id"] = number
    return (
        json.dumps(
            {
                "title": "Inference fleet",
                "uid": "gpufleet",
                "tags": ["gpufleet"],
                "schemaVersion": 39,
                "refresh": "30s",
                "time": {"from": "now-6h", "to": "now"},
                "templating": {"list": _variables()},
                "panels": panels,
            },
            indent=2,
        )
        + "\n"
    )


def _variables() -> List[Dict[str, Any]]:
    sources = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    queries = {
        "host": "label_values(up, host)",
        "model": "label_values(vllm:num_requests_running, model_name)",
        "pool": "label_values(haproxy_server_status, proxy)",
    }
    rest: Dict[str, Any] = {"type": "query", "datasource": SOURCE, "refresh": 2, "includeAll": True, "multi": True}
    return [sources, *({**rest, "name": name, "query": query, "allValue": ".*"} for name, query in queries.items())]


def _panel(panel: Panel, place: Dict[str, int]) -> Dict[str, Any]:
    steps: List[Dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.alarming:
        steps.append({"color": "red", "value": panel.alarming})
    targets = [_target(letter, panel, *query) for letter, query in zip("ABCD", panel.queries)]
    found: Dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "thresholds": {"steps": steps}}, "overrides": []},
    }
    if panel.kind == "table":
        left_out = {"Time": True, "Value": True}
        found["transformations"] = [{"id": "organize", "options": {"excludeByName": left_out}}]
    return found


def _target(letter: str, panel: Panel, expression: str, legend: str) -> Dict[str, Any]:
    found: Dict[str, Any] = {"refId": letter, "datasource": SOURCE, "expr": expression}
    if panel.kind == "timeseries":
        return dict(found, legendFormat=legend)
    return dict(found, instant=True, format="table" if panel.kind == "table" else "time_series")
