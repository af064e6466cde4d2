# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of Open WebUI: it is up, of the declared version, and after a change it does what people want of it.

That is: sign in, list the models, get an answer in pieces, ask about a document. Facts: routers of Open WebUI 0.12.4,
asked with a real one.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Dict, List, Mapping, Optional

from ..converge.model import Fault, Running, Verdict
from ..endpoint.client import Answer, Endpoint, EndpointError
from ..toolbox.addresses import host_port, reachable
from ..toolbox.http_stream import HttpError, Stream, decode
from ..toolbox.text import one_line

_LOOK = 5.0  # seconds for a request that only reads
_WORK = 120.0  # seconds for one that has it work; a sign-in computes a hash
_PAUSE = 0.2  # seconds between two looks
_GRACE = 30.0  # seconds after its start in which one that somebody else has started may not be up yet
_ADMIN = "/api/v1/auths/admin/config"
TOKENS = 16
"""Of an answer: enough to arrive in pieces."""
DOCUMENT = "The proof of this installation is the word %s."


class Gate:
    """Called by the convergence with the running unit: after a change, and when there is none.

    Verdicts: ``not_ready``, ``port_taken``, ``crash_loop``, ``wrong_version``; after a change also ``login_failed``,
    ``signup_closed``, ``no_models``, ``not_generated``, ``not_streamed``, ``document_failed``.

    :param version: of the environment.
    """

    def __init__(self, params: Mapping[str, Any], version: str) -> None:
        self.params, self.version = params, version
        self.url = "http://" + host_port(reachable(params["host"]), params["port"])
        self.figures: Dict[str, Any] = {"version": version}
        self.deadline, self.token = 0.0, ""

    def __call__(self, running: Running, changed: bool) -> Verdict:
        self.deadline = running.deadline
        try:
            self._comes_up(running, changed)
            if changed:
                self._serves()
        except Fault as fault:
            if running.dying():
                return _died(running)
            return fault.verdict
        return Verdict("ok", evidence=dict(self.figures))

    def _comes_up(self, running: Running, changed: bool) -> None:
        until = running.deadline
        if not changed:
            until = min(until, max(time.monotonic() + _LOOK, running.started_monotonic + _GRACE))
        endpoint, port = Endpoint(self.url), self.params["port"]
        while True:
            if not running.alive():
                raise Fault.of(_died(running))
            try:
                answer: Any = endpoint.ask("GET", "/api/version", _LOOK)
                said = "%s/api/version answers %d" % (self.url, answer.status)
            except HttpError as error:
                answer, said = None, str(error)
            if answer and answer.status == 200:
                break
            if time.monotonic() > until:
                raise Fault("not_ready", "%s; it started %.0f s ago" % (said, _age(running)), remedy="restart")
            # it sends no word when it is up
            time.sleep(_PAUSE)
        listener = running.system.listener(port)
        if listener and listener[0] and listener[0] not in running.pids:
            raise Fault(
                "port_taken",
                "port %d is answered by process %d (%s): stop it, or choose another port" % (port, *listener),
            )
        if answer.body.get("version") != self.version:
            found = one_line(str(answer.body.get("version")))
            raise Fault("wrong_version", "it is version %s, expected %s" % (found, self.version), remedy="restart")
        self.figures["ready_seconds"] = round(_age(running), 1)

    def _serves(self) -> None:
        if not self.params["admin_email"]:
            return
        try:
            self.token = sign_in(Endpoint(self.url), self.params, min(_WORK, self._left()))
        except HttpError as error:
            raise Fault("login_failed", str(error)) from None
        signed_in = Endpoint(self.url, self.token)
        if self.params["signup"] != "closed":
            self._lets_sign_up(signed_in)
        if not self.params["connections"]:
            return
        model = self._model(signed_in)
        self._streams(signed_in, model)
        if self.params["embedding_model"]:
            self._reads(signed_in, model)

    def _left(self) -> float:
        return max(1.0, self.deadline - time.monotonic())

    def _lets_sign_up(self, signed_in: Endpoint) -> None:
        """The process that creates the first administrator has closed the sign-up, whatever was declared."""
        limit = min(_WORK, self._left())
        found = _ask(signed_in, "GET", _ADMIN, limit, None, "signup_closed").body
        if found.get("ENABLE_SIGNUP") is not False:
            return
        answer = _ask(signed_in, "POST", _ADMIN, limit, dict(found, ENABLE_SIGNUP=True), "signup_closed")
        if answer.status != 200:
            raise Fault("signup_closed", "signup is %s, but nobody can: %s" % (self.params["signup"], answer.error))

    def _model(self, signed_in: Endpoint) -> str:
        """The model that is asked: any but that for documents."""
        answer = _ask(signed_in, "GET", "/api/models", min(_WORK, self._left()), None, "no_models")
        rows = answer.body.get("data")
        names = [str(row.get("id")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        self.figures["models"] = names
        chat = [
            name for name in names if name.partition(":")[0] != (self.params["embedding_model"] or "").partition(":")[0]
        ]
        if not chat:
            places = ", ".join(str(one["url"]) for one in self.params["connections"])
            raise Fault(
                "no_models",
                "it lists %s; expected a model to chat with of %s: see whether they answer and know the key"
                % (", ".join(names) or "no model", places),
            )
        return chat[0]

    def _streams(self, signed_in: Endpoint, model: str, files: Optional[List[Dict[str, str]]] = None) -> List[Any]:
        """The events of an answer, which must come in pieces."""
        body: Dict[str, Any] = {"model": model, "stream": True, "max_tokens": TOKENS}
        body["messages"] = [{"role": "user", "content": "Which word is the proof? Count to ten as well."}]
        if files:
            body["files"] = files
        began, first, events = time.monotonic(), 0.0, []
        try:
            for event in signed_in.events("/api/chat/completions", body, self._left(), model):
                events.append(event)
                first = first or (time.monotonic() - began if _content(event) else 0.0)
        except (HttpError, EndpointError) as error:
            raise Fault("not_generated", "%s does not answer: %s" % (one_line(model), error)) from None
        pieces = sum(1 for event in events if _content(event))
        if pieces < 2:
            raise Fault(
                "not_streamed", "the answer of %s came in %d pieces, expected several" % (one_line(model), pieces)
            )
        self.figures.setdefault("model", model)
        self.figures.setdefault("first_token_seconds", round(first, 3))
        return events

    def _reads(self, signed_in: Endpoint, model: str) -> None:
        """A document is indexed by the embedding model, and found by a question."""
        file = self._upload(signed_in)
        try:
            path = "/api/v1/files/%s/process/status" % file
            while True:
                status = _ask(signed_in, "GET", path, min(_WORK, self._left()), None, "document_failed").body
                if status.get("status") == "completed":
                    break
                if status.get("status") == "failed" or self.deadline < time.monotonic():
                    raise Fault(
                        "document_failed",
                        "a document was not indexed (%s: %s): see whether embedding_model %s is served by %s"
                        % (
                            status.get("status"),
                            one_line(str(status.get("error") or "no reason given")),
                            self.params["embedding_model"],
                            self.params["embedding_url"] or "the first of connections",
                        ),
                    )
                # it sends no word when it is done
                time.sleep(_PAUSE)
            events = self._streams(signed_in, model, [{"type": "file", "id": file}])
            found = [event for event in events if file in json.dumps(event.get("sources", ""))]
            if not found:
                raise Fault("document_failed", "a question about a document was answered without it")
            self.figures["document"] = "found"
        finally:
            try:
                signed_in.ask("DELETE", "/api/v1/files/" + file, _LOOK)
            except HttpError:
                pass  # one small document remains

    def _upload(self, signed_in: Endpoint) -> str:
        word = "gpufleet%d" % (time.time() * 1000)
        edge = "----%s" % word
        lines = (
            "--" + edge,
            'Content-Disposition: form-data; name="file"; filename="proof.txt"',
            "Content-Type: text/plain",
            "",
            DOCUMENT % word,
            "--%s--" % edge,
            "",
        )
        body = "\r\n".join(lines).encode("ascii")
        headers = {"Authorization": "Bearer " + self.token, "Content-Type": "multipart/form-data; boundary=" + edge}
        where = (signed_in.address, signed_in.port, "POST", "/api/v1/files/")
        try:
            with Stream(*where, self._left(), payload=body, headers=headers) as stream:
                text = stream.rest(time.monotonic() + self._left())
        except HttpError as error:
            raise Fault("document_failed", str(error)) from None
        try:
            found = decode(text)
        except ValueError:
            found = {}
        if (
            stream.status != 200
            or not isinstance(found, dict)
            or not str(found.get("id", "")).replace("-", "").isalnum()
        ):
            said = one_line(text[:200].decode("utf-8", "replace"))
            raise Fault("document_failed", "a document was not accepted (%d): %s" % (stream.status, said))
        return str(found["id"])


def sign_in(at: Endpoint, params: Mapping[str, Any], limit: float) -> str:
    """The token of the declared administrator.

    :param limit: seconds.
    :raises Fault: ``login_failed``: it knows no such administrator.
    :raises HttpError: no usable answer.
    """
    given = {"email": params["admin_email"], "password": params["admin_password"]}
    answer = at.ask("POST", "/api/v1/auths/signin", limit, given)
    token = answer.body.get("token")
    if not isinstance(token, str):
        raise Fault(
            "login_failed",
            "%s cannot sign in (%s); if the password was changed on the page, change admin_password as well, or "
            "leave out admin_email" % (params["admin_email"], answer.error),
        )
    return token


def _ask(at: Endpoint, method: str, path: str, limit: float, body: Optional[Dict[str, Any]], verdict: str) -> Answer:
    try:
        return at.ask(method, path, limit, body)
    except HttpError as error:
        raise Fault(verdict, str(error)) from None


def _content(event: Mapping[str, Any]) -> bool:
    """Whether an event of a streamed answer brings text, thoughts included."""
    choices = event.get("choices")
    delta = choices[0].get("delta") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    return isinstance(delta, dict) and any(delta.get(key) for key in ("content", "reasoning_content", "reasoning"))


def _died(running: Running) -> Verdict:
    running.system.sync_journal()
    lines = [line.strip() for line in running.journal(200) if line.strip()]
    last = next((line for line in reversed(lines) if re.search("error|exited", line, re.I)), lines[-1] if lines else "")
    return Verdict(
        "crash_loop", "it ended: %s" % (one_line(last)[:400] or "it said nothing"), {"last_words": last[:400]}
    )


def _age(running: Running) -> float:
    return time.monotonic() - running.started_monotonic
