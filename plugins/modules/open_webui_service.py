#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configures Open WebUI in front of a fleet, verifies it, and rolls back what fails, its data included."""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_service
short_description: Configure Open WebUI in front of a fleet and verify it
version_added: 0.2.0
description:
  - Configures Open WebUI as C(open-webui.service), a page in the browser for many people on the models of a fleet. It
    runs as a user of its own in a systemd sandbox. Keys and passwords are in a file that only root can read.
  - What is declared applies. Settings that are changed on the page last until the next restart.
  - It sends no telemetry, looks for no updates and downloads no models. Documents are indexed by a model of the fleet.
  - After a change it must be up, of the version in O(venv); an administrator signs in, the models are listed, one of
    them answers in pieces, and a question about a document finds it. Otherwise the previous state is restored.
  - Open WebUI migrates its database when it starts, and an older version does not start with it afterwards. Therefore
    the data is saved before another version starts, and put back if the update fails its proof. Until then, users'
    changes go to what is put away as C(backups/VERSION.failed). A backup of an accepted update is never put back by
    itself.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.services]
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Secrets are never part of the difference.
requirements:
  - Open WebUI 0.12 or later
options:
  # begin: written by make generate from module_utils/open_webui/options.py
  state:
    description:
      - V(present) configures Open WebUI, enables it and starts it.
      - V(absent) stops it, disables it and removes its unit. Its user, its data and its environment stay.
    type: str
    choices: [present, absent]
    default: present
  enabled:
    description: Whether it starts at boot.
    type: bool
    default: true
  timeout:
    description:
      - Seconds within which it must be up and verified. They include the backup before an update, and loading the model
        that answers.
    type: int
    default: 300
  drain_timeout:
    description:
      - Seconds that running answers get to finish before it is stopped. Those that are still running then are cut, with
        a warning. O(admin_email) is needed to see them; without it, or with V(0), nothing is waited for.
    type: float
    default: 120.0
  venv:
    description:
      - The Python environment with Open WebUI. A link is followed, so that the unit names the environment that it was
        proven with. Another version in it is an update.
    type: path
  user:
    description: The user that it runs as. It is created if it does not exist.
    type: str
    default: open-webui
  data_dir:
    description:
      - >-
        Home of the user: C(data) with the database, the documents and their index, and C(backups).
      - Files that are there are taken as they are. Changing this moves nothing.
    type: path
    default: /var/lib/open-webui
  host:
    description:
      - Address at which it listens; V(0.0.0.0) means all IPv4 addresses.
      - It speaks plain HTTP. An address that other hosts can reach needs O(allow_plaintext).
    type: str
    default: 127.0.0.1
  port:
    description: Its port.
    type: int
    default: 8080
  allow_plaintext:
    description:
      - Whether O(host) may be reachable from other hosts. Passwords and chats then cross the network unencrypted,
        unless O(clients) admits only a proxy on a network that you trust.
    type: bool
    default: false
  clients:
    description:
      - Addresses or networks that alone exchange packets with it, besides this host, such as that of a proxy. It cannot
        reach other addresses either, so list those of O(connections) as well. Left out, there is no such limit.
    type: list
    elements: str
    default: []
  url:
    description:
      - Where people reach it, such as V(https://chat.example.com). Only pages from there may use its API, and with
        https its cookies are never sent in the clear.
    type: str
  connections:
    description:
      - Where it gets its models from.
      - P(gpufleet.inference.open_webui_connections#lookup) derives it from the inventory.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: Such as V(http://192.0.2.1:8000), with or without C(/v1).
        type: str
        required: true
      api:
        description:
          - >-
            V(openai) for a gateway, vLLM, llama.cpp's server or Ollama. V(ollama) for Ollama's own API: if several
            servers have the same model, each request goes to one of them at random.
        type: str
        choices: [openai, ollama]
        default: openai
      key:
        description: The API key, with V(openai).
        type: str
  embedding_model:
    description:
      - The model that makes documents searchable, as its server lists it. Without one, whole documents are put into the
        question.
      - It is served by the fleet; nothing is downloaded. Documents that another model has indexed must be indexed
        again, by an administrator.
    type: str
  embedding_url:
    description: Where O(embedding_model) is served by the OpenAI API. Left out, the first of O(connections).
    type: str
  embedding_key:
    description: The API key for O(embedding_url).
    type: str
  admin_email:
    description:
      - The first administrator, who is created if there is no user yet.
      - With it the proof signs in, and asks a model. If that password is changed on the page, change it here as well.
      - >-
        It is required while there is no user: whoever came first would become the administrator, whatever O(signup)
        says.
    type: str
  admin_password:
    description: The password for O(admin_email).
    type: str
  admin_name:
    description: The name that is shown for O(admin_email).
    type: str
    default: Admin
  signup:
    description:
      - >-
        V(closed): administrators create the accounts.
      - >-
        V(pending): anybody may sign up, and waits until an administrator admits them. V(open): anybody may sign up.
    type: str
    choices: [closed, pending, open]
    default: closed
  database_url:
    description:
      - PostgreSQL instead of SQLite, such as V(postgresql://USER:PASSWORD@HOST/NAME). Special characters of the
        password are percent-encoded, such as V(%2F) for V(/).
      - The database must belong to that user. Its backup needs C(pg_dump), C(pg_restore) and C(psql) on the host.
    type: str
  secret_key:
    description:
      - With it, sessions are signed. Left out, it is generated on the host at the first start, and kept. Declare it if
        several hosts share a database.
    type: str
  prove:
    description:
      - >-
        When it signs in and asks a model: with V(change) only after a change, with V(now) always.
    type: str
    choices: [change, now]
    default: change
  backups:
    description: How many backups from before updates are kept.
    type: int
    default: 2
  environment:
    description:
      - >-
        Further variables of its process, which win over those that this collection sets. What is changed on the page is
        not kept: the inventory applies.
    type: dict
    default: {}
  secret_environment:
    description:
      - Further variables that are secrets, such as E(REDIS_URL) with a password. Only root can read their file.
    type: dict
    default: {}
  # end
seealso:
  - module: gpufleet.inference.python_environment
  - module: gpufleet.inference.gateway_service
"""

EXAMPLES = r"""
- name: A page for a team, on the models behind a gateway
  gpufleet.inference.open_webui_service:
    venv: /opt/gpufleet/open_webui/current
    url: https://chat.example.com
    connections:
      - {url: "https://gateway.example.com:8443", key: "{{ vault_open_webui_key }}"}
    embedding_model: nomic-embed-text
    admin_email: admin@example.com
    admin_password: "{{ vault_open_webui_admin }}"
    signup: pending
  become: true
"""

RETURN = r"""
msg:
  description: The result in one line; on a failure what was found, and what was restored.
  returned: always
  type: str
  sample: ok · Open WebUI 0.12.4 · https://chat.example.com · 2 models · first token of llama3.3:70b after 0.4 s
verdict:
  description: V(ok), or the name of what is wrong, such as V(not_ready), V(login_failed) or V(document_failed).
  returned: when it was inspected
  type: str
  sample: ok
evidence:
  description:
    - >-
      What the proof found: C(version), C(ready_seconds) since its start, and after a change C(models), the C(model)
      that was asked, its C(first_token_seconds), and C(document), if one was asked about.
  returned: when it was inspected
  type: dict
  sample: {version: 0.12.4, ready_seconds: 11.2}
version:
  description: The version in O(venv).
  returned: success, with O(state=present)
  type: str
  sample: 0.12.4
url:
  description: Where people reach it.
  returned: success, with O(state=present)
  type: str
  sample: https://chat.example.com
restarted:
  description: Whether it was restarted. In check mode, whether it would be.
  returned: when it was inspected
  type: bool
reasons:
  description: Why it was restarted.
  returned: when it was inspected
  type: list
  elements: str
  sample: ["the value in force changes: ENABLE_SIGNUP"]
differs:
  description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
  returned: when it was inspected
  type: list
  elements: str
  sample: [environment, override]
planned:
  description:
    - The writes and systemctl commands of the run, in order. In check mode those of a real run.
    - Empty when it is in its declared state.
  returned: when it was inspected
  type: list
  elements: str
  sample: [write /etc/systemd/system/open-webui.service.d/zz-gpufleet.conf, systemctl restart open-webui.service]
reloaded:
  description: Whether systemd reloaded its units. In check mode, whether it would.
  returned: when it was inspected
  type: bool
rolled_back:
  description: Whether the previous state was restored.
  returned: when it was inspected
  type: bool
downtime_ms:
  description: Milliseconds from the stop until it was verified, 0 without a restart.
  returned: when it was inspected
  type: int
  sample: 14000
environment:
  description: The declared variables as the running process has them, secrets masked.
  returned: when it was inspected
  type: dict
drift:
  description: By name, each variable that differs between declared, on disk and running.
  returned: when it was inspected
  type: dict
shadowed:
  description: Declared settings that another file overrides, with the file and line.
  returned: when it was inspected
  type: list
  elements: dict
unit_state:
  description: State of the unit, as systemd reports it.
  returned: when it was inspected
  type: dict
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.open_webui.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import options
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        options.argument_spec(OPTIONS), prove={"type": "str", "choices": ["change", "now"], "default": "change"}
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.open_webui import service

    run(argument_spec(), service.converge)


if __name__ == "__main__":
    main()
