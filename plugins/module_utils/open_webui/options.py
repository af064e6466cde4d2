# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of Open WebUI. Pure."""

from __future__ import annotations

from ..serving.options import Option

OPTIONS = (
    Option(
        "state",
        "str",
        """
        V(present) configures Open WebUI, enables it and starts it.

        V(absent) stops it, disables it and removes its unit. Its user, its data and its environment stay.
        """,
        choices=("present", "absent"),
        default="present",
    ),
    Option("enabled", "bool", "Whether it starts at boot.", default=True),
    Option(
        "timeout",
        "int",
        """Seconds within which it must be up and verified. They include the backup before an update, and loading the
        model that answers.""",
        default=300,
    ),
    Option(
        "drain_timeout",
        "float",
        """Seconds that running answers get to finish before it is stopped. Those that are still running then are cut,
        with a warning. O(admin_email) is needed to see them; without it, or with V(0), nothing is waited for.""",
        default=120.0,
    ),
    Option(
        "venv",
        "path",
        """The Python environment with Open WebUI. A link is followed, so that the unit names the environment that it
        was proven with. Another version in it is an update.""",
        only="module",
    ),
    Option("user", "str", "The user that it runs as. It is created if it does not exist.", default="open-webui"),
    Option(
        "data_dir",
        "path",
        """
        Home of the user: C(data) with the database, the documents and their index, and C(backups).

        Files that are there are taken as they are. Changing this moves nothing.
        """,
        default="/var/lib/open-webui",
    ),
    Option(
        "host",
        "str",
        """
        Address at which it listens; V(0.0.0.0) means all IPv4 addresses.

        It speaks plain HTTP. An address that other hosts can reach needs O(allow_plaintext).
        """,
        default="127.0.0.1",
    ),
    Option("port", "int", "Its port.", default=8080),
    Option(
        "allow_plaintext",
        "bool",
        """Whether O(host) may be reachable from other hosts. Passwords and chats then cross the network unencrypted,
        unless O(clients) admits only a proxy on a network that you trust.""",
        default=False,
    ),
    Option(
        "clients",
        "list",
        """
        Addresses or networks that alone exchange packets with it, besides this host, such as that of a proxy. It cannot
        reach other addresses either, so list those of O(connections) as well. Left out, there is no such limit.
        """,
        default=[],
        elements="str",
    ),
    Option(
        "url",
        "str",
        """Where people reach it, such as V(https://chat.example.com). Only pages from there may use its API, and with
        https its cookies are never sent in the clear.""",
    ),
    Option(
        "connections",
        "list",
        """
        Where it gets its models from.

        P(gpufleet.inference.open_webui_connections#lookup) derives it from the inventory.
        """,
        default=[],
        only="module",
        elements="dict",
        suboptions=(
            Option("url", "str", "Such as V(http://192.0.2.1:8000), with or without C(/v1).", required=True),
            Option(
                "api",
                "str",
                """V(openai) for a gateway, vLLM, llama.cpp's server or Ollama. V(ollama) for Ollama's own API: if
                several servers have the same model, each request goes to one of them at random.""",
                choices=("openai", "ollama"),
                default="openai",
            ),
            Option("key", "str", "The API key, with V(openai).", no_log=True),
        ),
    ),
    Option(
        "embedding_model",
        "str",
        """
        The model that makes documents searchable, as its server lists it. Without one, whole documents are put into the
        question.

        It is served by the fleet; nothing is downloaded. Documents that another model has indexed must be indexed
        again, by an administrator.
        """,
    ),
    Option(
        "embedding_url",
        "str",
        "Where O(embedding_model) is served by the OpenAI API. Left out, the first of O(connections).",
    ),
    Option("embedding_key", "str", "The API key for O(embedding_url).", no_log=True),
    Option(
        "admin_email",
        "str",
        """
        The first administrator, who is created if there is no user yet.

        With it the proof signs in, and asks a model. If that password is changed on the page, change it here as well.

        It is required while there is no user: whoever came first would become the administrator, whatever O(signup)
        says.
        """,
    ),
    Option("admin_password", "str", "The password for O(admin_email).", no_log=True),
    Option("admin_name", "str", "The name that is shown for O(admin_email).", default="Admin"),
    Option(
        "signup",
        "str",
        """
        V(closed): administrators create the accounts.

        V(pending): anybody may sign up, and waits until an administrator admits them. V(open): anybody may sign up.
        """,
        choices=("closed", "pending", "open"),
        default="closed",
    ),
    Option(
        "database_url",
        "str",
        """
        PostgreSQL instead of SQLite, such as V(postgresql://USER:PASSWORD@HOST/NAME). Special characters of the
        password are percent-encoded, such as V(%2F) for V(/).

        The database must belong to that user. Its backup needs C(pg_dump), C(pg_restore) and C(psql) on the host.
        """,
        no_log=True,
    ),
    Option(
        "secret_key",
        "str",
        """With it, sessions are signed. Left out, it is generated on the host at the first start, and kept. Declare it
        if several hosts share a database.""",
        no_log=True,
    ),
    Option(
        "prove",
        "str",
        "When it signs in and asks a model: with V(change) only after a change, with V(now) always.",
        choices=("change", "now"),
        default="change",
        only="module",
    ),
    Option("backups", "int", "How many backups from before updates are kept.", default=2),
    Option(
        "environment",
        "dict",
        """Further variables of its process, which win over those that this collection sets. What is changed on the page
        is not kept: the inventory applies.""",
        default={},
    ),
    Option(
        "secret_environment",
        "dict",
        "Further variables that are secrets, such as E(REDIS_URL) with a password. Only root can read their file.",
        default={},
        no_log=True,
    ),
)
