# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The small client of Ollama's API, against a server that behaves and ones that do not."""

from __future__ import annotations

import socket
import threading

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.api import Api, ApiError, number


@pytest.fixture
def says():
    """`says(b"...")` is an Api before a socket that answers with these bytes and hangs up; None: never answers."""
    open_ = []

    def serve(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        open_.append(listener)

        def run():
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            open_.append(connection)
            connection.recv(65536)
            if answer is not None:
                connection.sendall(answer)
                connection.close()

        threading.Thread(target=run, daemon=True).start()
        return Api("127.0.0.1", listener.getsockname()[1])

    yield serve
    for one in open_:
        one.close()


def test_version_and_loaded_models(ollama):
    api = Api("127.0.0.1", ollama.port)
    assert api.version() == "0.32.15"
    assert api.loaded() == []
    ollama.loads(10)
    assert [entry["size"] for entry in api.loaded()] == [10]


def test_one_token_is_asked_for_and_no_more(ollama):
    answer = Api("127.0.0.1", ollama.port).one_token("m70b", 5)
    assert answer.status == 200
    assert answer.body["done"] is True
    ((path, body),) = ollama.requests
    assert path == "/api/generate"
    assert body["model"] == "m70b"
    assert body["stream"] is False
    assert body["options"] == {"num_predict": 1}


def test_an_error_keeps_ollamas_words(ollama):
    ollama.answers["/api/generate"] = (500, {"error": "cudaMalloc failed: out of memory"})
    assert Api("127.0.0.1", ollama.port).one_token("m70b", 5).error == "cudaMalloc failed: out of memory"


def test_nobody_listens(free_port):
    port = free_port()
    with pytest.raises(ApiError, match="Connection refused"):
        Api("127.0.0.1", port).version()


def test_no_answer_in_time(says):
    with pytest.raises(ApiError, match="/api/version did not answer") as error:
        says(None).version(timeout=0.05)
    assert error.value.timed_out


@pytest.mark.parametrize(
    "answer, reason",
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer in HTTP"),
        (b"", "does not answer in HTTP"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "no JSON"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n{}", "this is not Ollama"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "this is not Ollama"),
        (b'HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"version"', "broke off after 10 of 99 bytes"),
    ],
)
def test_another_server_listens_there(says, answer, reason):
    with pytest.raises(ApiError, match=reason):
        says(answer).version()


def test_the_url_names_ipv6_in_brackets():
    assert Api("::1", 1).url == "http://[::1]:1"
    assert Api("127.0.0.1", 1).url == "http://127.0.0.1:1"


def test_models_of_the_store(ollama):
    api = Api("127.0.0.1", ollama.port)
    ollama.answers["/api/tags"] = (200, {"models": [{"name": "a:latest", "digest": "d"}, None]})
    assert api.tags() == [{"name": "a:latest", "digest": "d"}]
    ollama.answers["/api/tags"] = (500, {"error": "no store"})
    with pytest.raises(ApiError, match="answers 500 and no list of models: no store"):
        api.tags()


def test_a_load_generates_nothing_and_an_embedding_model_embeds(ollama):
    api = Api("127.0.0.1", ollama.port)
    ollama.answers["/api/embed"] = (200, {"embeddings": [[1.0]]})
    api.load("a", 5, keep_alive=-1, options={"num_ctx": 9})
    api.load("b", 5, embedding=True)
    api.unload("a")
    assert ollama.requests == [
        ("/api/generate", {"model": "a", "stream": False, "keep_alive": -1, "options": {"num_ctx": 9}}),
        ("/api/embed", {"model": "b", "input": "hello"}),
        ("/api/generate", {"model": "a", "stream": False, "keep_alive": 0}),
    ]


def test_copy_delete_and_show(ollama):
    api = Api("127.0.0.1", ollama.port)
    ollama.answers.update({"/api/copy": (200, b""), "/api/delete": (404, {"error": "gone"}), "/api/show": (200, {})})
    assert api.copy("a", "b").status == 200
    assert api.delete("b").error == "gone"
    assert api.show("a").body == {}
    assert [body for _path, body in ollama.requests] == [
        {"source": "a", "destination": "b"},
        {"model": "b"},
        {"model": "a"},
    ]


def test_a_file_is_uploaded_unless_it_is_there(ollama, tmp_path):
    api = Api("127.0.0.1", ollama.port)
    path = "/api/blobs/sha256:abc"
    ollama.answers[path] = (404, b"")
    assert api.has_blob("abc") is False
    ollama.answers[path] = (201, b"")
    (tmp_path / "file").write_bytes(b"G" * 300000)
    with open(tmp_path / "file", "rb") as file:
        assert api.upload("abc", file, 5).status == 201
    assert ollama.requests[-1] == (path, b"G" * 300000)
    ollama.answers[path] = (200, b"")
    assert api.has_blob("abc") is True


def test_events_come_one_by_one(ollama, says):
    api = Api("127.0.0.1", ollama.port)
    ollama.answers["/api/pull"] = (200, b'{"status":"pulling manifest"}\n[]\n{"status":"success"}')
    told = list(api.events("/api/pull", {"model": "a"}, lambda: 5))
    assert [event["status"] for event in told] == ["pulling manifest", "success"]
    ollama.answers["/api/pull"] = (200, b"<html>\n")
    with pytest.raises(ApiError, match="a line that is not JSON"):
        list(api.events("/api/pull", {"model": "a"}, lambda: 5))
    with pytest.raises(ApiError) as error:
        list(says(None).events("/api/pull", {"model": "a"}, lambda: 0.05))
    assert error.value.timed_out


# --- a server that is not ours


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500000,
        b'{"models": ' + b"[" * 500000,
        b'{"a":' * 200000,
        b'{"models": %s}' % (b"9" * 100000),
        b"\xff\xfe",
        b'{"version": "' + b"x" * 101 + b'"}',
        b'{"version": "0.1\\n\\u001b[2J"}',
        b'{"version": 1}',
        b"[]",
        b'"0.32.15"',
    ],
    ids=lambda body: repr(body[:16]),
)
def test_no_answer_of_an_ollama(ollama, body):
    ollama.answers["/api/version"] = (200, body)
    with pytest.raises(ApiError) as caught:
        Api("127.0.0.1", ollama.port).version()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(ollama, status):
    ollama.answers["/api/version"] = (status, {"version": "0.32.15", "location": "http://127.0.0.1:%d/" % ollama.port})
    with pytest.raises(ApiError, match="answers %d and no version" % status):
        Api("127.0.0.1", ollama.port).version()
    assert len(ollama.requests) == 1


@pytest.mark.parametrize("models", [None, 7, "m", {"a": 1}, [7, "m", None], True])
def test_models_that_are_none(ollama, models):
    ollama.answers["/api/ps"] = (200, {"models": models})
    assert Api("127.0.0.1", ollama.port).loaded() == []


@pytest.mark.parametrize("words, shown", [("a\x1b[2J\nb\rc", "a\nb\nc"), (["x"], ""), (None, ""), (7, "")])
def test_an_error_is_printable(ollama, words, shown):
    ollama.answers["/api/generate"] = (500, {"error": words})
    assert Api("127.0.0.1", ollama.port).one_token("m", 5).error == shown


def test_an_error_is_no_book(ollama):
    ollama.answers["/api/generate"] = (500, {"error": "x" * 1000000})
    assert len(Api("127.0.0.1", ollama.port).one_token("m", 5).error) == 4000


@pytest.mark.parametrize("value", [-1, 1e400, float("nan"), "12", None, [1], 1 << 70, 10**300])
def test_a_size_that_is_none(value):
    assert number(value) == 0


def test_sizes():
    assert (number(12), number(1.5e9), number(True)) == (12, 1500000000, 1)


def test_an_event_that_is_too_deep(says):
    with pytest.raises(ApiError, match="a line that is not JSON"):
        list(says(b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 500000 + b"\n").events("/api/pull", {}, lambda: 5))
