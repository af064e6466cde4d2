# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the monitoring. Pure."""

from __future__ import annotations

from ..serving.options import Option

OPTIONS = (
    Option(
        "state",
        "str",
        """
        V(present) configures Prometheus, enables it and starts it.

        V(absent) removes what this collection has written. Prometheus then runs as the distribution configured it.
        """,
        choices=("present", "absent"),
        default="present",
    ),
    Option(
        "targets",
        "list",
        """
        What to read the metrics of: dictionaries with C(job), C(host), C(address) and C(port), and optionally
        C(labels), C(tls), and C(key), the name of one of O(keys).

        P(gpufleet.inference.scrape_targets#lookup) derives them from the inventory.
        """,
        default=[],
        elements="dict",
        only="module",
    ),
    Option(
        "keys",
        "dict",
        "API keys by name. They are passed to Prometheus as credentials of its unit, and stand in no configuration.",
        default={},
        no_log=True,
        only="module",
    ),
    Option("rules", "str", "The alert rules, as the text of a rule file.", default="", only="module"),
    Option(
        "host",
        "str",
        """
        Address at which people reach Prometheus; V(0.0.0.0) means all IPv4 addresses. Prometheus asks for no password:
        an address that other hosts can reach requires O(allow_unauthenticated).
        """,
        default="127.0.0.1",
    ),
    Option("port", "int", "Port of Prometheus.", default=9090),
    Option(
        "allow_unauthenticated", "bool", "Whether everyone who reaches O(host) may read all metrics.", default=False
    ),
    Option("interval", "int", "Seconds between two readings of a target.", default=15),
    Option(
        "alertmanagers", "list", "Where alerts are sent: V(HOST:PORT) of each Alertmanager.", default=[], elements="str"
    ),
    Option("timeout", "int", "Seconds within which Prometheus must be up and verified.", default=60),
)
