# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the gateway. Pure."""

from __future__ import annotations

from ..serving.options import Option

OPTIONS = (
    Option(
        "state",
        "str",
        """
        V(present) configures the gateway, enables it and starts it.

        V(absent) stops the gateway, disables it and removes its files. The package C(haproxy) stays.
        """,
        choices=("present", "absent"),
        default="present",
    ),
    Option("enabled", "bool", "Whether the gateway starts at boot.", default=True),
    Option("timeout", "int", "Seconds within which the gateway must be up and verified.", default=30),
    Option(
        "pools",
        "dict",
        """
        The models, and the servers of each: a list of dictionaries with C(host), C(address), C(port), C(engine),
        C(unit) and C(api) (V(openai), V(ollama) or V(both)), and optionally C(max_concurrent), C(tls). An engine's own
        API key may be given as C(key); it is passed to the host as O(engine_keys).

        P(gpufleet.inference.gateway_pools#lookup) derives it from the inventory.
        """,
        default={},
        only="module",
    ),
    Option(
        "engine_keys",
        "dict",
        "The API keys of engines, by C(HOST UNIT). Clients never see them. All servers of a model must have the same.",
        default={},
        no_log=True,
        only="module",
    ),
    Option(
        "keys",
        "list",
        """
        Who may use which models. Stored as SHA-256, in a file that only root can read. A change to keys alone takes
        effect at once, without a reload. Keys with the same name share their limits, so that a key can be rotated.
        """,
        default=[],
        elements="dict",
        no_log=False,
        suboptions=(
            Option("name", "str", "Name of the holder, for the log and the limits.", required=True),
            Option(
                "key",
                "str",
                "The key: at least 20 characters that nobody can guess, such as the output of C(openssl rand -hex 32).",
                no_log=True,
            ),
            Option("sha256", "str", "Instead of C(key), its SHA-256 in hexadecimal digits."),
            Option("pools", "list", "The models that it may use; V(*) means all.", elements="str", default=[]),
            Option("rate", "int", "Requests per minute. Left out, any number."),
            Option("concurrent", "int", "Requests at the same time. Left out, any number."),
            Option(
                "expires",
                "str",
                "When the key expires, in UTC: V(2027-01-31) (at the start of that day) or V(2027-01-31T12:00:00Z).",
            ),
        ),
    ),
    Option(
        "host",
        "str",
        """
        Address at which clients reach the gateway; V(0.0.0.0) means all IPv4 addresses, V(::) all of IPv4 and IPv6. An
        address that other hosts can reach requires O(tls_certificate) or O(allow_plaintext).
        """,
        default="127.0.0.1",
    ),
    Option("port", "int", "Port of the gateway.", default=8443),
    Option(
        "tls_certificate",
        "path",
        """
        A file on the host with the certificate, its chain and its key in PEM, readable by root. The gateway then speaks
        HTTPS (TLS 1.2 and later) with HTTP/1.1 and HTTP/2.
        """,
    ),
    Option("redirect_port", "int", "Port of plain HTTP that redirects to HTTPS; V(0) for none.", default=0),
    Option(
        "web_port",
        "int",
        """
        Port of the page for people, Open WebUI of the group C(open_webui), with the same address and certificate; V(0)
        for none. O(redirect_port) then leads there.
        """,
        default=0,
    ),
    Option(
        "web",
        "list",
        """
        The servers of the page: dictionaries with C(host), C(address) and C(port).

        P(gpufleet.inference.open_webui_servers#lookup) derives them from the inventory.
        """,
        elements="dict",
        default=[],
        only="module",
    ),
    Option(
        "allow_plaintext",
        "bool",
        "Whether O(host) may be reachable from other hosts without TLS. Keys then cross the network unencrypted.",
        default=False,
    ),
    Option(
        "affinity",
        "list",
        """
        Models whose chats go to the server that has already seen their beginning; V(*) means all. A server whose load
        exceeds 1.5 times the average is passed over. Other models go to the server with the fewest requests.
        """,
        elements="str",
        default=[],
    ),
    Option(
        "agent_port",
        "int",
        """
        Port of the agent on each GPU host, which reports how much a server can take. V(0) means no agent.
        """,
        default=8405,
    ),
    Option("queue_timeout", "int", "Seconds that a request waits for a server; then it gets 503.", default=60),
    Option("queue_length", "int", "Requests of one model that may wait; more get 429.", default=256),
    Option(
        "answer_timeout",
        "int",
        "Seconds without a byte after which the gateway gives up on an answer. They include loading the model.",
        default=600,
    ),
    Option(
        "client_timeout",
        "int",
        "Seconds that a client may take to send its request, and to pause during it.",
        default=30,
    ),
    Option("connections", "int", "Connections of all clients.", default=10000),
    Option("address_connections", "int", "Connections of one address.", default=1000),
    Option("address_rate", "int", "Requests per minute of one address.", default=6000),
    Option("max_body_mib", "int", "Largest body of a request, in MiB.", default=32),
    Option(
        "buffer_kib",
        "int",
        """
        How much of a body is read before it is routed, in KiB. If the model is named after that, the client
        must also name it in the header C(X-Model).
        """,
        default=1024,
    ),
    Option(
        "status_port",
        "int",
        "Port on 127.0.0.1 for C(/metrics) and C(/keys) (Prometheus) and a status page; V(0) for none.",
        default=8404,
    ),
    Option(
        "status_clients",
        "list",
        """
        Addresses or networks of other hosts that may read O(status_port), such as that of a Prometheus. They see the
        names of models, hosts and holders of keys, unencrypted. The port then listens on all IPv4 addresses.
        """,
        elements="str",
        default=[],
    ),
)
