# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: what it refuses, what its process gets, and that it shows no secret."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.open_webui import database, service, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.options import argument_spec
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.modules import open_webui_service

KEY, PASSWORD = "sesame-open-4711", "correct-horse-4711"
OPENAI = {"url": "https://gw.example:8443/v1/", "key": KEY}
OLLAMA = {"url": "http://192.0.2.7:11434/", "api": "ollama"}


def declared(**given: Any) -> Dict[str, Any]:
    """All options, with these."""
    spec = argument_spec(open_webui_service.OPTIONS)
    return {**{name: copy.copy(option.get("default")) for name, option in spec.items()}, **given}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"connections": [{"url": "gw.example:8443"}]}, "connections[0].url is 'gw.example:8443'; expected such as"),
        ({"connections": [dict(OLLAMA, key=KEY)]}, "Ollama's own API has no key"),
        ({"connections": [dict(OPENAI, key="a;b")]}, "semicolons"),
        ({"connections": [OLLAMA], "embedding_model": "reader"}, "nothing serves it by the OpenAI API"),
        ({"embedding_url": "http://192.0.2.7:1"}, "name the embedding_model"),
        ({"admin_email": "a@example.com"}, "one of them is missing"),
        ({"host": "0.0.0.0"}, "passwords would cross the network unencrypted"),
        ({"backups": 0}, "expected at least 1"),
        ({"database_url": "mysql://db"}, "expected postgresql://"),
        ({"environment": {"DATABASE_URL": "x"}}, "readable by everybody"),
        ({"environment": {"OAUTH_CLIENT_SECRET": "x"}}, "use secret_environment"),
        ({"environment": {"REDIS_URL": "redis://:x@db"}}, "REDIS_URL would be readable"),
        ({"secret_environment": {"DATABASE_URL": "x"}}, "DATABASE_URL is set by an option of its own"),
        ({}, "has no Open WebUI; expected a Python environment with the package open-webui"),
    ],
)
def test_what_is_refused(run_module: Any, given: Dict[str, Any], words: str) -> None:
    result = run_module(open_webui_service.main, {"venv": "/no/such", **given})
    assert result["failed"] and not result.get("changed") and words in result["msg"]
    assert KEY not in str(result)


def test_check_mode_before_it_is_installed(run_module: Any) -> None:
    result = run_module(open_webui_service.main, {"venv": "/no/such"}, check=True)
    assert result["changed"] and "would install Open WebUI first" in result["msg"]


def test_the_variables_of_the_process() -> None:
    params = declared(
        connections=[OPENAI, OLLAMA],
        embedding_model="reader",
        admin_email="a@example.com",
        admin_password=PASSWORD,
        url="https://chat.example.com/",
        signup="pending",
        environment={"ENABLE_CODE_EXECUTION": False, "TASK_MODEL": "tiny", "DEFAULT_MODEL_PARAMS": {}},
    )
    settings.check(params)
    found = settings.environment(params, "/data")
    assert found["OPENAI_API_BASE_URLS"] == found["RAG_OPENAI_API_BASE_URL"] == "https://gw.example:8443/v1"
    assert found["OLLAMA_BASE_URLS"] == "http://192.0.2.7:11434"
    assert (found["ENABLE_SIGNUP"], found["DEFAULT_USER_ROLE"]) == ("true", "pending")
    assert found["CORS_ALLOW_ORIGIN"] == "https://chat.example.com" and found["WEBUI_AUTH_COOKIE_SECURE"] == "true"
    assert (found["ENABLE_CODE_EXECUTION"], found["TASK_MODEL"]) == ("false", "tiny")
    assert (found["BYPASS_MODEL_ACCESS_CONTROL"], found["DEFAULT_MODEL_PARAMS"]) == ("true", "{}")
    assert (found["OFFLINE_MODE"], found["ENABLE_PERSISTENT_CONFIG"]) == ("true", "false")
    secret = settings.secrets(params, "signing")
    assert secret == {
        "WEBUI_SECRET_KEY": "signing",
        "OPENAI_API_KEYS": KEY,
        "RAG_OPENAI_API_KEY": KEY,
        "WEBUI_ADMIN_PASSWORD": PASSWORD,
    }
    assert not [value for value in found.values() if KEY in value or PASSWORD in value]


def test_without_an_embedding_model_documents_are_read_whole() -> None:
    params = declared(connections=[{"url": "http://192.0.2.7:8000"}])
    found = settings.environment(params, "/data")
    assert found["BYPASS_EMBEDDING_AND_RETRIEVAL"] == "true" and "RAG_EMBEDDING_ENGINE" not in found
    assert settings.secrets(params, "signing")["OPENAI_API_KEYS"] == "none"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://webui:Tr0ub4dor/x@db/chats",
        "postgresql://webui:Tr0ub4dor#x@db/chats",
        "postgresql://webui:4711/Tr0ub4dor@db/chats",
        "postgresql://webui:4711?Tr0ub4dor@db/chats",
        "postgresql://webui:Tr0ub4dor@x@db/chats",
        "postgresql://webui:Tr0ub4dor[@db/chats",
        "postgresql://webui:Tr0ub4dor\u2100@db/chats",  # is a/c to urllib, which shows it
        "postgresql://webui:Tr0ub4dor@db:54320000/chats",
    ],
)
def test_no_part_of_a_password_is_shown(run_module: Any, url: str) -> None:
    result = run_module(open_webui_service.main, {"venv": "/no/such", "database_url": url})
    assert result["failed"] and "percent-encoded special characters in the password" in result["msg"]
    assert "Tr0ub4dor" not in str(result)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://webui:a:b%2F!$&'()*+,;=-._~%40@db.example:5432/chats?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://webui@[2001:db8::1]:5432/chats",
        "postgresql:///chats?host=/run/postgresql",
        "postgresql://webui:x@db/chats?options=-c%20search_path%3Dpublic",
    ],
)
def test_which_databases_are_accepted(url: str) -> None:
    settings.check(declared(database_url=url))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_postgresql_is_reached_with_the_driver_that_is_installed(scheme: str) -> None:
    params = declared(database_url=scheme + "://webui:p%40ss@db.example/chats")
    settings.check(params)
    assert settings.secrets(params, "")["DATABASE_URL"] == "postgresql+psycopg://webui:p%40ss@db.example/chats"


@pytest.mark.parametrize("admin", [{}, {"admin_email": "a@example.com", "admin_password": PASSWORD}])
@pytest.mark.parametrize(("place", "hint"), [("db.example", False), ("", True)])
def test_a_database_is_asked_before_the_first_install(
    run_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, admin: Dict[str, Any], place: str, hint: bool
) -> None:
    def obstacle(url: str, users_needed: bool) -> str:
        return "asked by %d, users are needed: %s" % (os.geteuid(), users_needed)

    def converge(change: Any, **more: Any) -> Any:
        raise Refused(str(change.pre_change_check()))

    monkeypatch.setattr(database, "obstacle", obstacle)
    monkeypatch.setattr(service.convergence, "converge", converge)
    (tmp_path / "lib/python3.11/site-packages/open_webui-0.12.4.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/open-webui").touch()
    given = {"venv": str(tmp_path), "user": "no-such-user", "data_dir": "/no/such", **admin}
    result = run_module(open_webui_service.main, {**given, "database_url": "postgresql://%s/chats" % place})
    whoever = os.geteuid() or users.STRANGER
    assert "asked by %d, users are needed: %s" % (whoever, not admin) in result["msg"]
    assert ("create the user no-such-user first" in result["msg"]) == hint


def test_no_secret_is_shown(run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def converge(params: Any, check_mode: bool, warn: Any) -> Dict[str, Any]:
        return {"changed": False, "msg": "%s %s" % (params["connections"][0]["key"], params["admin_password"])}

    monkeypatch.setattr(service, "converge", converge)
    given = {"venv": "/x", "connections": [OPENAI], "admin_email": "a@example.com", "admin_password": PASSWORD}
    result = run_module(open_webui_service.main, given)
    assert not result.get("failed") and KEY not in str(result) and PASSWORD not in str(result)
