# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Open WebUI on a lab host, in front of real llama-servers: its first start, and two updates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/llama_server"))

import program

LAB = Path(__file__).resolve().parents[1] / "lab"
UNIT, HOME, PORT = "open-webui.service", "/var/lib/open-webui", 8188
EMAIL, PASSWORD, KEY = "admin@example.com", "correct-horse-4711", "sesame-4711-open"
DROP_IN = "/etc/systemd/system/%s.d/zz-gpufleet.conf" % UNIT
SERVER = (
    "systemd-run --quiet --unit=fleet-%s --setenv=LD_LIBRARY_PATH=/opt/llama.cpp/bin/cpu --setenv=LLAMA_API_KEY="
    + KEY
    + " /opt/llama.cpp/bin/cpu/llama-server --model /srv/models/tiny.gguf --alias %s --port %d --threads 1 %s"
)
Bring = Callable[..., Dict[str, Any]]


@pytest.fixture(scope="module")
def versions() -> Any:
    """The environments of the older and the newer version, as hosts see them."""
    done = subprocess.run(
        [sys.executable, str(LAB / "open_webui/environment.py"), "path"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def ready(lab: Any) -> Iterator[str]:
    """A host with a model to chat with, and one for documents."""
    host = lab.reset("gpu2")
    program.install(host)
    program.add_model(host)
    lab.sh(host, SERVER % ("chat", "tiny", 8085, "--ctx-size 8192"))
    lab.sh(host, SERVER % ("embed", "reader", 8086, "--embeddings --pooling mean"))
    yield host
    lab.module(host, "open_webui_service", {"state": "absent"})
    lab.sh(host, "systemctl stop fleet-chat fleet-embed; userdel -r open-webui; rm -rf %s" % HOME, check=False)
    program.uninstall(host)
    lab.reset(host)


@pytest.fixture
def bring(lab: Any, ready: str) -> Bring:
    def run(venv: str, check: bool = False, **options: Any) -> Dict[str, Any]:
        given = {
            "venv": venv,
            "timeout": 900,  # on a loaded machine
            "port": PORT,
            "connections": [{"url": "http://127.0.0.1:8085", "key": KEY}],
            "embedding_model": "reader",
            "embedding_url": "http://127.0.0.1:8086/v1",
            "embedding_key": KEY,
            "admin_email": EMAIL,
            "admin_password": PASSWORD,
        }
        return lab.module(ready, "open_webui_service", {**given, **options}, check=check)

    return run


def ask(lab: Any, host: str, path: str, body: Any = None, token: str = "") -> Any:
    data = "-H 'Content-Type: application/json' -d '%s'" % json.dumps(body) if body else ""
    patient = "curl -s -m 20 --retry 300 --retry-delay 1 --retry-connrefused"
    words = "%s %s -H 'Authorization: Bearer %s' http://127.0.0.1:%d%s" % (patient, data, token, PORT, path)
    return json.loads(lab.sh(host, words))


def users(lab: Any, host: str) -> Any:
    token = ask(lab, host, "/api/v1/auths/signin", {"email": EMAIL, "password": PASSWORD})["token"]
    return token, sorted(user["email"] for user in ask(lab, host, "/api/v1/users/", token=token)["users"])


def test_open_webui_serves_and_survives_an_update_that_fails(lab: Any, ready: str, bring: Bring, versions: Any) -> None:
    older, newer = versions
    planned = bring(older, check=True)
    assert planned["changed"] and not planned["failed"], planned["msg"]
    result = bring(older)
    assert not result["failed"], result["msg"]
    assert result["evidence"]["models"] == ["tiny"] and result["evidence"]["document"] == "found"
    assert " · 1 model · first token of tiny after " in result["msg"]
    again = bring(older)
    assert not again["changed"] and again["msg"].startswith("ok · Open WebUI %s" % older[-6:])

    shown = lab.sh(ready, "cat %s; systemctl show %s; ps axww -o args" % (DROP_IN, UNIT))
    assert not [secret for secret in (KEY, PASSWORD) if secret in shown + json.dumps(result)]
    assert lab.sh(ready, "stat -c '%a %U' /etc/gpufleet/" + UNIT + ".env").split() == ["600", "root"]
    assert lab.sh(ready, "ps -o user= -p $(systemctl show -p MainPID --value %s)" % UNIT).strip() == "open-webui"

    token, _before = users(lab, ready)
    person = {"name": "A person", "email": "person@example.com", "password": PASSWORD, "role": "user"}
    assert ask(lab, ready, "/api/v1/auths/add", person, token)["email"] == person["email"]

    # an update whose proof fails, as nothing serves the model for documents there
    failed = bring(newer, embedding_url="http://127.0.0.1:8087")
    assert failed["failed"] and failed["rolled_back"] and failed["verdict"] == "document_failed", failed["msg"]
    assert ask(lab, ready, "/api/version")["version"] == older.rpartition("/")[2]
    assert users(lab, ready)[1] == [EMAIL, person["email"]]
    assert lab.sh(ready, "ls %s/backups" % HOME).split() == [newer.rpartition("/")[2] + ".failed"]
    assert not bring(older)["changed"]

    done = bring(newer)
    assert not done["failed"] and done["restarted"], done["msg"]
    assert ask(lab, ready, "/api/version")["version"] == newer.rpartition("/")[2]
    assert users(lab, ready)[1] == [EMAIL, person["email"]]
    assert older.rpartition("/")[2] in lab.sh(ready, "ls %s/backups" % HOME).split()
