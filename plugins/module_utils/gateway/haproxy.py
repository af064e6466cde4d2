# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options and pools → HAProxy's configuration. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from ..programs import gateway_state
from ..toolbox.addresses import host_port
from ..toolbox.source import source_of
from . import body, figures, keys, runtime

FOLDER = "/etc/gpufleet/gateway"
CONFIG, SCRIPT, KEEPER = "haproxy.cfg", "gateway.lua", "state.py"
LUA = body.LUA.lstrip("\n") + figures.LUA
MAPS = ("keys", "grants", "openai", "ollama", "models", "paths", "engines")
PATHS = {
    "POST:/v1/chat/completions": "openai",
    "POST:/v1/completions": "openai",
    "POST:/v1/responses": "openai",
    "POST:/v1/embeddings": "openai",
    "POST:/v1/rerank": "openai",
    "POST:/v1/score": "openai",
    "POST:/api/chat": "ollama",
    "POST:/api/generate": "ollama",
    "POST:/api/embed": "ollama",
    "POST:/api/embeddings": "ollama",
    "POST:/api/show": "ollama",
}
"""What reaches an engine, and the API that it belongs to. Everything else does not exist for clients."""
LONGEST_HEADER = 16 << 10
"""Bytes of all header lines of a request."""
EARLY = 16 << 10
"""Bytes of a body that are read before anything is refused."""
OLD_WORKERS = "1h"
"""How long a worker may finish its requests after a reload."""
DROPPED = (
    *("proxy-authorization", "cookie", "x-api-key", "x-model", "upgrade", "forwarded", "x-forwarded-for"),
    *("x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"),
)
"""Headers of a client that no engine sees."""
ADDRESSES, HOLDERS, WEB = ":addresses", ":holders", ":web"
"""Tables of who has asked how often, and the page for people; no model has a name like these."""
NO_MODEL = "there is no such model"
BAD_BODY = "the body is not a JSON object with exactly one model"
HEALTHY = "^(200|401|403)$"
"""What an engine that serves answers to a health check; 401 and 403 if it asks for its key on every path."""
RETRY = 'hdr Retry-After "%d" '
"""Seconds."""


class Place(NamedTuple):
    """Where a gateway has its files."""

    folder: str = FOLDER
    run: str = runtime.RUN
    state: str = runtime.STATE
    user: str = "haproxy"

    @property
    def files(self) -> List[str]:
        """The paths of all files that a gateway has in its folder."""
        return ["%s/%s" % (self.folder, name) for name in (CONFIG, SCRIPT, KEEPER)] + [self.map(name) for name in MAPS]

    def map(self, name: str) -> str:
        return "%s/%s.map" % (self.folder, name)


def files(options: Mapping[str, Any], pools: keys.Pools, place: Place) -> Dict[str, str]:
    """The configuration, its script, and what keeps the state of servers, by path. HAProxy reads the first
    two, and the configuration describes itself by their digest."""
    text = _configuration(options, pools, place)
    digest = hashlib.sha256((text + LUA).encode()).hexdigest()[:16]
    return {
        "%s/%s" % (place.folder, CONFIG): text.replace("@DIGEST@", digest),
        "%s/%s" % (place.folder, SCRIPT): LUA,
        "%s/%s" % (place.folder, KEEPER): source_of(gateway_state),
    }


def digest_of(text: str) -> str:
    """The description that a configuration gives itself."""
    return next(line.split(" ", 5)[-1] for line in text.split("\n") if line.startswith("    description "))


def maps(options: Mapping[str, Any], pools: keys.Pools) -> Dict[str, Dict[str, str]]:
    """The content of each map by its name."""
    return {
        **keys.maps(options["keys"], pools),
        "models": keys.models_of(pools),
        "paths": dict(PATHS),
        "engines": keys.engine_keys(pools, options["engine_keys"]),
    }


def map_text(entries: Mapping[str, str]) -> str:
    return "".join("%s %s\n" % entry for entry in sorted(entries.items()))


def _configuration(options: Mapping[str, Any], pools: keys.Pools, place: Place) -> str:
    sections = [
        _global(options, place),
        _defaults(options),
        _frontend(options, place),
        *(_pool(model, rows, options) for model, rows in _with_homes(pools).items()),
    ]
    if options["web_port"]:
        sections += _web(options)
    if options["redirect_port"]:
        sections.append(_redirect(options))
    if options["status_port"]:
        sections.append(_status(options["status_port"], options["status_clients"]))
    return "\n".join(["# Written by the Ansible collection gpufleet.inference; changes here are lost.", *sections])


def _section(title: str, lines: Sequence[str]) -> str:
    return "%s\n%s" % (title, "".join("    %s\n" % line for line in lines if line))


def _global(options: Mapping[str, Any], place: Place) -> str:
    lines = [
        "description gpufleet @DIGEST@",
        "# certificate %s" % options["tls_digest"] if options["tls_certificate"] else "",
        "user %s" % place.user if place.user else "",
        "group %s" % place.user if place.user else "",
        "log stdout format raw local0 info",
        "stats socket %s/admin.sock mode 600 level admin expose-fd listeners" % place.run,
        "server-state-file %s" % place.state,
        "lua-load-per-thread %s/%s" % (place.folder, SCRIPT),
        "maxconn %d" % options["connections"],
        "tune.bufsize %d" % (options["buffer_kib"] << 10),
        "hard-stop-after %s" % OLD_WORKERS,
        "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
    ]
    return _section("global", lines)


def _defaults(options: Mapping[str, Any]) -> str:
    lines = [
        "mode http",
        "log global",
        "option dontlognull",
        "option http-restrict-req-hdr-names delete",
        "option abortonclose",
        "option http-server-close",  # then a host sees by its connections what still runs there
        "option http-no-delay",
        "option redispatch 1",
        "retries 2",
        "retry-on conn-failure",
        "load-server-state-from-file global",
        "timeout connect 5s",
        "timeout http-request %ds" % options["client_timeout"],
        "timeout http-keep-alive 60s",
        "timeout client %ds" % options["client_timeout"],
        "timeout server %ds" % options["answer_timeout"],
        "timeout queue %ds" % options["queue_timeout"],
    ]
    told = {
        400: ("bad_request", "this is not a request that HTTP allows"),
        408: ("timeout", "the request did not arrive in time"),
        500: ("internal_error", "the gateway failed"),
        502: ("bad_gateway", "the engine gave no valid answer"),
        503: ("unavailable", "no server of this model can take the request now; try again later"),
        504: ("timeout", "the engine did not answer in time"),
    }
    for status, (code, message) in told.items():
        retry = RETRY % 5 if status == 503 else ""
        lines.append(
            "http-error status %d content-type application/json %sstring '%s'" % (status, retry, _error(code, message))
        )
    return _section("defaults", lines)


def _frontend(options: Mapping[str, Any], place: Place) -> str:
    tls = ""
    if options["tls_certificate"]:
        tls = " ssl crt %s alpn h2,http/1.1" % options["tls_certificate"]
    lines = [
        _bind(options, "port") + tls,
        "log-format '%s'" % _log_format(),
        "unique-id-format %[uuid()]",
        *_connections(options),
        "http-after-response set-header x-request-id %[unique-id]",
        "http-request set-var(txn.path) path",
        "http-request return status 200 content-type text/plain string ok if METH_GET { var(txn.path) -m str /health }",
        *_limits(options),
        *_key(place),
        *_route(place),
        *_model(options, place),
        *("http-request del-header %s" % name for name in ("authorization", *DROPPED)),
        "http-request set-header x-request-id %[unique-id]",
        "http-request set-uri %[var(txn.path)]",
        "http-request set-var(txn.engine) var(txn.pool),map_str(%s)" % place.map("engines"),
        'http-request set-header authorization "Bearer %[var(txn.engine)]" if { var(txn.engine) -m found }',
        "use_backend %[var(txn.pool)]",
    ]
    tables = (
        (ADDRESSES, "type ipv6 size 100k expire 5m store conn_cur,http_req_rate(60s)"),
        (HOLDERS, "type string len 64 size 10k store conn_cur,http_req_rate(60s),http_req_cnt,gpc0"),
    )
    return "\n".join(
        [
            _section("frontend gateway", lines),
            *(_section("backend %s" % name, ["stick-table %s" % store]) for name, store in tables),
        ]
    )


def _bind(options: Mapping[str, Any], port: str) -> str:
    both = " v4v6" if options["host"] == "::" else ""  # whatever the kernel's default is
    return "bind %s%s" % (host_port(options["host"], options[port]), both)


def _connections(options: Mapping[str, Any]) -> List[str]:
    """No address holds more connections than declared. An IPv6 network of 64 bits counts as one address."""
    return [
        "tcp-request connection track-sc1 src,ipmask(32,64) table %s" % ADDRESSES,
        "tcp-request connection reject if { sc1_conn_cur gt %d }" % options["address_connections"],
    ]


def _limits(options: Mapping[str, Any]) -> List[str]:
    """What is refused before anybody asks whose request it is."""
    rate, largest = options["address_rate"], options["max_body_mib"]
    return [
        _deny(413, "body_too_large", "the body is too long", "{ req.body_size gt %d }" % (largest << 20)),
        # a client of HTTP/2 that is answered before its body is there sees a cancelled stream, and not the answer
        "http-request wait-for-body time %ds at-least %d" % (min(5, options["client_timeout"]), EARLY),
        _deny(429, "rate_limit_exceeded", "too many requests from this address", "{ sc1_http_req_rate gt %d }" % rate),
        _deny(431, "header_too_large", "the header is too long", "{ req.hdrs,length gt %d }" % LONGEST_HEADER),
        _deny(415, "bad_encoding", "the body must not be encoded", "{ req.fhdr(content-encoding) -m found }"),
        _deny(400, "bad_request", "there is more than one Authorization", "{ req.fhdr_cnt(authorization) gt 1 }"),
    ]


def _key(place: Place) -> List[str]:
    """Whose key it is, and whether its limits are reached."""
    expired = "{ var(txn.expires) -m int gt 0 } { date,sub(txn.expires) ge 0 }"
    often = "{ var(txn.rate) -m int gt 0 } { sc0_http_req_rate,sub(txn.rate) gt 0 }"
    many = "{ var(txn.concurrent) -m int gt 0 } { sc0_conn_cur,sub(txn.concurrent) gt 0 }"
    return [
        _set("row", "http_auth_bearer,sha2(256),hex,lower,map_str(%s)" % place.map("keys")),
        _deny(
            401,
            "invalid_api_key",
            "there is no valid API key in the header Authorization",
            "!{ var(txn.row) -m found }",
        ),
        _set("key", "var(txn.row),field(1,|)"),
        _set("expires", "var(txn.row),field(2,|)"),
        _set("rate", "var(txn.row),field(3,|)"),
        _set("concurrent", "var(txn.row),field(4,|)"),
        _deny(401, "expired_api_key", "this API key has expired", expired),
        "http-request track-sc0 var(txn.key) table %s" % HOLDERS,
        _refuse(429, "rate_limit_exceeded", "too many requests with this key", often),
        _refuse(429, "too_many_concurrent", "too many requests with this key at the same time", many),
    ]


def _route(place: Place) -> List[str]:
    """What is asked for: one of few paths, in the one spelling in which it also reaches the engine."""
    one = '{"id":"%[var(txn.model),json(utf8s)]","object":"model","created":0,"owned_by":"gpufleet"}'
    named = "METH_GET { var(txn.path) -m beg /v1/models/ }"
    lines = []
    for name, path in (("openai", "/v1/models"), ("ollama", "/api/tags")):
        this = "METH_GET { var(txn.path) -m str %s }" % path
        lines += [_set("route", "var(txn.path)", this), _return("%%[var(txn.key),map_str(%s)]" % place.map(name), this)]
    return [
        *lines,
        _set("model", "var(txn.path),bytes(11),url_dec", named),
        _set("api", "str(openai)", named),
        _set("pool", "var(txn.model),map_str(%s)" % place.map("models"), named),
        _set("grant", _grant(place), named),
        _return(one, named + " { var(txn.grant) -m found }"),
        _refuse(404, "model_not_found", NO_MODEL, named),
        _set("api", "method,concat(:,txn.path),map_str(%s)" % place.map("paths")),
        _refuse(404, "not_found", "there is nothing at this path", "!{ var(txn.api) -m found }"),
        _set("route", "var(txn.path)"),
    ]


def _model(options: Mapping[str, Any], place: Place) -> List[str]:
    """Which model is asked for, and whether this key may use it."""
    part, unnamed = "{ var(txn.body) -m str part }", "!{ var(txn.model) -m found }"
    longer = "the body is longer than %d KiB, and " % options["buffer_kib"]
    unseen = longer + "no model is named before that: put model first, or into the header X-Model"
    mixed = longer + "this key may use only some models of the servers that serve this one"
    return [
        "http-request wait-for-body time %ds at-least %d" % (options["client_timeout"], options["buffer_kib"] << 10),
        "http-request lua.gpufleet_body",
        _refuse(400, "bad_request", BAD_BODY, "!{ var(txn.body) -m found } || { var(txn.body) -m str bad }"),
        _refuse(
            411, "length_required", longer + "has no Content-Length", part + " !{ req.fhdr(content-length) -m found }"
        ),
        _set("seen", "req.body_len"),
        _refuse(400, "bad_request", BAD_BODY, part + " { req.body_size,sub(txn.seen) eq 0 }"),
        _set("model", "req.fhdr(x-model)", part + " " + unnamed),
        _refuse(413, "model_not_seen", unseen, part + " " + unnamed),
        _refuse(400, "bad_request", BAD_BODY, unnamed),
        _set("pool", "var(txn.model),map_str(%s)" % place.map("models")),
        _refuse(404, "model_not_found", NO_MODEL, "!{ var(txn.pool) -m found }"),
        _set("grant", _grant(place)),
        _refuse(
            403, "model_not_allowed", "this key may not use this model by this API", "!{ var(txn.grant) -m found }"
        ),
        _refuse(413, "body_too_large", mixed, part + " !{ var(txn.grant) -m str part }"),
    ]


def _set(name: str, value: str, condition: str = "") -> str:
    return "http-request set-var(txn.%s) %s%s" % (name, value, condition and " if " + condition)


def _grant(place: Place) -> str:
    return "var(txn.key),concat(/,txn.api),concat(/,txn.pool),map_str(%s)" % place.map("grants")


def _return(text: str, condition: str) -> str:
    return "http-request return status 200 content-type application/json lf-string '%s' if %s" % (text, condition)


def _with_homes(pools: keys.Pools) -> Dict[str, Sequence[Mapping[str, Any]]]:
    """The pools in the order of their models. If an Ollama serves several models, which may not all fit into its
    memory, each model gets the next host as its home: its rows start with that host, and have ``home``."""
    served = Counter(server(row) for rows in pools.values() for row in rows)
    found: Dict[str, Sequence[Mapping[str, Any]]] = {}
    turn = 0
    for model, rows in sorted(pools.items()):
        limited = all(row["engine"] == "ollama" and row.get("max_concurrent") for row in rows)
        found[model] = rows
        if limited and any(served[server(row)] > 1 for row in rows):
            ordered = sorted(rows, key=server)
            first = turn % len(ordered)
            found[model] = [dict(row, home=True) for row in ordered[first:] + ordered[:first]]
            turn += 1
    return found


def _pool(model: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    chat = model in options["affinity"] or keys.ALL in options["affinity"]
    engines = {row["engine"] for row in rows}
    lines = ["filter lua.gpufleet_tokens"]
    if chat:
        lines += [
            _set("prefix", "req.body,json_query('$.messages[0].content'),bytes(0,2048)"),
            _set("prefix", "req.body,json_query('$.prompt'),bytes(0,2048)", "!{ var(txn.prefix) -m found }"),
            "balance hash var(txn.prefix)",
            "hash-type consistent",
            "hash-balance-factor 150",
        ]
    elif rows and rows[0].get("home"):
        lines.append("balance first")  # the first server with a free place
    else:
        lines.append("balance leastconn")
    lines.append(
        _refuse(429, "queue_full", "too many requests wait for this model", "{ queue ge %d }" % options["queue_length"])
    )
    if len(engines) == 1:  # engines of one pool may have no path in common
        path = "/" if engines == {"ollama"} else "/health"
        lines += ["option httpchk", "http-check send meth GET uri %s" % path, "http-check expect rstatus %s" % HEALTHY]
    lines.append("default-server init-addr libc,last,none check inter 2s downinter 500ms fall 3 rise 1 weight 100")
    lines += [_server(model, row, options) for row in rows]
    return _section("backend %s" % runtime.slug(model), lines)


def server(row: Mapping[str, Any]) -> str:
    """Name of a server."""
    return "%s:%d" % (runtime.server_name(row["host"], row["unit"]), int(row["port"]))


def _server(model: str, row: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    unit = str(row["unit"])
    unit = unit[: -len(".service")] if unit.endswith(".service") else unit
    words = ["server", server(row), host_port(str(row["address"]), int(row["port"]))]
    if row.get("max_concurrent"):
        words.append("maxconn %d" % int(row["max_concurrent"]))
    if row.get("tls"):
        words.append("ssl verify none")
    if options["agent_port"]:
        words.append(
            'agent-check agent-port %d agent-inter 1s agent-send "%s %s\\n"' % (options["agent_port"], unit, model)
        )
    return " ".join(words)


def _web(options: Mapping[str, Any]) -> List[str]:
    """A page for people: what they ask is up to it. A browser keeps its server, as the page's sockets do."""
    tls = " ssl crt %s alpn h2,http/1.1" % options["tls_certificate"] if options["tls_certificate"] else ""
    frontend = [
        _bind(options, "web_port") + tls,
        *_connections(options),
        "timeout client %ds" % options["answer_timeout"],
        *("http-request del-header %s" % name for name in ("forwarded", "x-forwarded-for", "x-forwarded-proto")),
        "http-request set-header X-Forwarded-For %[src]",
        "http-request set-header X-Forwarded-Proto %s" % ("https" if tls else "http"),
        "default_backend %s" % WEB,
    ]
    backend = [
        "balance source",
        "hash-type consistent",
        "timeout tunnel 1h",
        "option httpchk",
        "http-check send meth GET uri /health",
        "default-server init-addr libc,last,none check inter 2s downinter 500ms fall 3 rise 1",
        *(
            "server %s %s" % (web_server(row), host_port(str(row["address"]), int(row["port"])))
            for row in options["web"]
        ),
    ]
    return [_section("frontend web", frontend), _section("backend %s" % WEB, backend)]


def web_server(row: Mapping[str, Any]) -> str:
    """Name of a server of the page."""
    return server(dict(row, unit="open-webui"))


def _redirect(options: Mapping[str, Any]) -> str:
    target = options["web_port"] or options["port"]
    port = "" if target == 443 else ":%d" % target
    return _section(
        "frontend redirect",
        [
            _bind(options, "redirect_port"),
            *_connections(options),
            "http-request redirect location https://%%[req.hdr(host),regsub(:[0-9]+$,)]%s%%[path] code 308" % port,
        ],
    )


def _status(port: int, clients: Sequence[str]) -> str:
    """Figures for Prometheus and a page for people, on loopback alone unless others are named."""
    known = ["tcp-request connection reject unless { src 127.0.0.1 %s }" % " ".join(clients)] if clients else []
    return _section(
        "frontend status",
        [
            "bind %s:%d" % ("0.0.0.0" if clients else "127.0.0.1", port),
            *known,
            "option dontlog-normal",
            "http-request use-service prometheus-exporter if { path /metrics }",
            "http-request use-service lua.gpufleet_keys if { path /keys }",
            "stats enable",
            "stats uri /",
            "stats hide-version",
        ],
    )


def _error(code: str, message: str) -> str:
    kind = (
        "server_error"
        if code in ("unavailable", "bad_gateway", "internal_error", "timeout")
        else "invalid_request_error"
    )
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _deny(status: int, code: str, message: str, condition: str) -> str:
    header = {429: RETRY % 5, 401: 'hdr WWW-Authenticate "Bearer" '}.get(status, "")
    return "http-request return status %d content-type application/json %sstring '%s' if %s" % (
        status,
        header,
        _error(code, message),
        condition,
    )


def _refuse(status: int, code: str, message: str, condition: str) -> str:
    """The same, counted for the key."""
    return "http-request sc-inc-gpc0(0) if %s\n    %s" % (condition, _deny(status, code, message, condition))


def _log_format() -> str:
    """One JSON object a request. Of what clients send it has only what is known: a key's name, a pool, a path."""
    text = {
        "time": "%tr",
        "id": "%ID",
        "client": "%ci",
        "key": "%[var(txn.key)]",
        "pool": "%[var(txn.pool)]",
        "path": "%[var(txn.route)]",
        "server": "%s",
        "end": "%tsc",
    }
    numbers = {
        "status": "%ST",
        "bytes_in": "%U",
        "bytes_out": "%B",
        "queued_ms": "%Tw",
        "first_byte_ms": "%Tr",
        "total_ms": "%Ta",
    }
    fields = ['"%s":"%s"' % item for item in text.items()] + ['"%s":%s' % item for item in numbers.items()]
    return "{%s%%{-M}[var(txn.tokens)]}" % ",".join(fields)  # -M: nothing instead of a hyphen where it is not set
