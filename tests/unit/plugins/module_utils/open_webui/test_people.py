# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people notice of a change, against a stand-in for Open WebUI: sign-up is as declared, answers end before a stop."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Fault
from ansible_collections.gpufleet.inference.plugins.module_utils.open_webui import drain, proof

PASSWORD = "correct-horse-4711"


class Page(ThreadingHTTPServer):
    """`signs_up`: its setting, None for none; `tasks`: the running answers of each look, the last one from then on.

    `status`: of the answer to a look; `busy`: how many requests get no answer, before others do.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.signs_up: Any = False
        self.tasks: List[List[str]] = [[]]
        self.looks = 0
        self.status, self.busy = 200, 0
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Page

    def log_message(self, *_words: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/tasks":
            self.server.looks += 1
            tasks = self.server.tasks
            self.reply(self.server.status, {"tasks": tasks.pop(0) if len(tasks) > 1 else tasks[0]})
        elif self.path == "/api/v1/auths/admin/config":
            self.reply(200, {"ENABLE_SIGNUP": self.server.signs_up, "OTHER": 1})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v1/auths/signin":
            known = given["password"] == PASSWORD
            self.reply(200 if known else 400, {"token": "t"} if known else {"detail": "wrong password"})
        elif given.get("OTHER") == 1:
            self.server.signs_up = given["ENABLE_SIGNUP"]
            self.reply(200, given)
        else:
            self.reply(422, {"detail": "a field is missing"})

    def parse_request(self) -> bool:
        if self.server.busy:
            self.server.busy -= 1
            self.server.over.wait()
            return False
        return super().parse_request()

    def reply(self, status: int, body: Dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setattr(drain, "_PAUSE", 0.01)
    server = Page()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def declared(page: Page, **given: Any) -> Dict[str, Any]:
    found = {"host": "127.0.0.1", "port": page.server_address[1], "connections": [], "embedding_model": None}
    people = {"admin_email": "a@example.com", "admin_password": PASSWORD, "signup": "pending", "drain_timeout": 60.0}
    return {**found, **people, **given}


def serves(params: Dict[str, Any]) -> None:
    proof.Gate(params, "0.12.4")._serves()


def test_the_first_start_does_not_close_the_sign_up(page: Page) -> None:
    serves(declared(page))
    assert page.signs_up is True


@pytest.mark.parametrize(("signup", "before"), [("closed", False), ("open", True), ("open", None)])
def test_the_sign_up_is_left_as_it_is(page: Page, signup: str, before: Any) -> None:
    page.signs_up = before
    serves(declared(page, signup=signup))
    assert page.signs_up is before


def test_a_wrong_password_is_named(page: Page) -> None:
    with pytest.raises(Fault, match="a@example.com cannot sign in .wrong password."):
        serves(declared(page, admin_password="other"))


def stop(params: Dict[str, Any]) -> List[str]:
    """The warnings."""
    warnings: List[str] = []
    running: Any = SimpleNamespace(alive=lambda: True)
    drain.await_answers(params, running, warnings.append)
    return warnings


def test_running_answers_are_waited_for(page: Page) -> None:
    page.tasks = [["one", "two"], ["two"], [], ["its title"], [], []]
    assert stop(declared(page)) == [] and page.looks == 6


def test_an_answer_that_does_not_end_is_named(page: Page) -> None:
    page.tasks = [["one"]]
    assert stop(declared(page, drain_timeout=0.05)) == ["1 answer(s) were cut after 0 s (drain_timeout)"]


@pytest.mark.parametrize(
    ("status", "tasks", "words"),
    [
        (403, [], "answers 403 "),
        (404, [], "answers 404 "),
        (500, [], "answers 500 "),
        (200, {"one": 1}, "answers 200 "),
    ],
)
def test_answers_that_are_not_shown_are_named(page: Page, status: int, tasks: Any, words: str) -> None:
    page.status, page.tasks = status, [tasks]
    (warning,) = stop(declared(page))
    assert "running answers were not waited for: http://127.0.0.1" in warning and "/api/tasks " + words in warning


def test_a_busy_server_is_asked_again(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_LOOK", 0.2)
    page.busy, page.tasks = 2, [["one"], [], []]
    assert stop(declared(page)) == [] and page.tasks == [[]] and page.busy == 0


def test_a_server_that_stays_busy_is_named(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_LOOK", 0.2)
    page.busy = 1000
    (warning,) = stop(declared(page, drain_timeout=0.5))
    assert "running answers were not waited for: " in warning and "did not answer within" in warning


def test_what_cannot_be_seen_is_not_waited_for(page: Page) -> None:
    assert "were not waited for: a@example.com cannot sign in" in stop(declared(page, admin_password="other"))[0]
    assert page.looks == 0
    page.shutdown()
    page.server_close()
    assert stop(declared(page)) == []
