# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options → environment, secrets and settings of the unit, by Open WebUI's rules. Pure.

Facts of Open WebUI 0.12.4: env.py and config.py of the package. With ENABLE_PERSISTENT_CONFIG=false the environment
applies, and not what an administrator once saved. OFFLINE_MODE keeps it from fetching models and from looking for
updates. Its server trusts the client addresses that any peer claims, unless FORWARDED_ALLOW_IPS is set. A model is for
administrators alone until one of them shares it on the page, unless BYPASS_MODEL_ACCESS_CONTROL is set. Questions on
the page offer tools to the model, which Ollama rejects for a model without them, and vLLM without a parser for them,
unless function_calling is legacy.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Mapping, Tuple

from ..placement import sandbox
from ..programs.open_webui_data import variables
from ..serving.variables import may_be_secret
from ..systemd.render import argument
from ..toolbox.addresses import is_loopback
from ..toolbox.errors import Refused

UNIT = "open-webui.service"
STUB = """\
# Written by the Ansible collection gpufleet.inference. What it runs is in its drop-in.
[Unit]
Description=Open WebUI
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/bin/false
Restart=always
RestartSec=5
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
"""
ALWAYS = {
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "true",
    "SCARF_NO_ANALYTICS": "true",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "ENABLE_COMMUNITY_SHARING": "false",
    "ENABLE_PERSISTENT_CONFIG": "false",
    "ENABLE_PIP_INSTALL_FRONTMATTER_REQUIREMENTS": "false",
    "FORWARDED_ALLOW_IPS": "127.0.0.1",
    "BYPASS_MODEL_ACCESS_CONTROL": "true",
    "DEFAULT_MODEL_PARAMS": '{"function_calling": "legacy"}',
}
_URL = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\s;?#]*)?/?\Z")
_DATABASE = re.compile(
    r"(?=[!-~]+\Z)postgres(?:ql)?://(?:[^\[\]:/?#@]+(?::[^\[\]/?#@]*)?@)?"
    r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]+)?(?:/[^/?#@]*)?(?:\?[^#@]*)?\Z"
)
_SECRETS = ("WEBUI_SECRET_KEY", "WEBUI_ADMIN_PASSWORD", "DATABASE_URL", "OPENAI_API_KEYS", "RAG_OPENAI_API_KEY")


def check(params: Mapping[str, Any]) -> None:
    """:raises Refused: an option is wrong."""
    for number, connection in enumerate(params["connections"]):
        name = "connections[%d]" % number
        _url("%s.url" % name, connection["url"])
        key = connection.get("key")
        if key and connection.get("api") == "ollama":
            raise Refused("%s: Ollama's own API has no key; set api: openai, or leave the key out" % name)
        if key and not re.match(r"[\x21-\x3a\x3c-\x7e]+\Z", key):
            raise Refused("%s.key: it has blanks, semicolons or characters beyond ASCII" % name)
    for option in ("url", "embedding_url"):
        if params[option]:
            _url(option, params[option])
    if bool(params["admin_email"]) != bool(params["admin_password"]):
        raise Refused("admin_email and admin_password: one of them is missing; give both, or neither")
    if params["embedding_url"] and not params["embedding_model"]:
        raise Refused("embedding_url: name the embedding_model that is served there, too")
    if params["embedding_model"] and not embedding(params)[0]:
        raise Refused("embedding_model: nothing serves it by the OpenAI API; set embedding_url")
    if not (is_loopback(params["host"]) or params["allow_plaintext"]):
        raise Refused(
            "host: %s is reachable from other hosts, so passwords would cross the network unencrypted. Listen on "
            "127.0.0.1 behind a proxy with TLS, or set allow_plaintext: true" % params["host"]
        )
    if params["backups"] < 1:
        raise Refused("backups is %d; expected at least 1" % params["backups"])
    if params["database_url"] and not _names_database(params["database_url"]):
        raise Refused(  # without the value, as part of a password may be anywhere in it
            "database_url: expected postgresql://USER:PASSWORD@HOST/NAME, with percent-encoded special characters in "
            "the password, such as %2F for /; or leave it out for SQLite"
        )
    open_ones = sorted(
        name for name, value in params["environment"].items() if name in _SECRETS or may_be_secret(name, value)
    )
    if open_ones:
        raise Refused(
            "environment: %s would be readable by everybody; use secret_environment, or the option for it"
            % ", ".join(open_ones)
        )
    taken = sorted(set(params["secret_environment"]) & set(_SECRETS))
    if taken:
        raise Refused("secret_environment: %s is set by an option of its own" % ", ".join(taken))


def embedding(params: Mapping[str, Any]) -> Tuple[str, str]:
    """URL and key of the server of the embedding model; empty where there is none."""
    if params["embedding_url"]:
        return base(params["embedding_url"]), params["embedding_key"] or ""
    for connection in params["connections"]:
        if connection.get("api") != "ollama":
            return base(connection["url"]), connection.get("key") or ""
    return "", ""


def base(url: str) -> str:
    """The URL of an OpenAI API, which ends with ``/v1``."""
    return re.sub(r"(/v1)?/*\Z", "", url) + "/v1"


def environment(params: Mapping[str, Any], data: str) -> Dict[str, str]:
    """The variables that anybody on the host may read.

    :param data: the folder of the database and the documents.
    """
    openai = [base(one["url"]) for one in params["connections"] if one.get("api") != "ollama"]
    ollama = [one["url"].rstrip("/") for one in params["connections"] if one.get("api") == "ollama"]
    found = {
        **ALWAYS,
        "DATA_DIR": data,
        "STATIC_DIR": "%s/static" % params["data_dir"],
        "ENABLE_OPENAI_API": _truth(bool(openai)),
        "ENABLE_OLLAMA_API": _truth(bool(ollama)),
        "ENABLE_SIGNUP": _truth(params["signup"] != "closed"),
        "DEFAULT_USER_ROLE": "user" if params["signup"] == "open" else "pending",
    }
    if openai:
        found["OPENAI_API_BASE_URLS"] = ";".join(openai)
    if ollama:
        found["OLLAMA_BASE_URLS"] = ";".join(ollama)
    if params["embedding_model"]:
        found.update(RAG_EMBEDDING_ENGINE="openai", RAG_EMBEDDING_MODEL=params["embedding_model"])
        found["RAG_OPENAI_API_BASE_URL"] = embedding(params)[0]
    else:
        found["BYPASS_EMBEDDING_AND_RETRIEVAL"] = "true"
    if params["admin_email"]:
        found.update(WEBUI_ADMIN_EMAIL=params["admin_email"], WEBUI_ADMIN_NAME=params["admin_name"])
    if params["url"]:
        found.update(WEBUI_URL=params["url"].rstrip("/"), CORS_ALLOW_ORIGIN=params["url"].rstrip("/"))
        secure = _truth(params["url"].startswith("https:"))
        found.update(WEBUI_SESSION_COOKIE_SECURE=secure, WEBUI_AUTH_COOKIE_SECURE=secure)
    found.update({name: _text(value) for name, value in params["environment"].items()})
    return found


def secrets(params: Mapping[str, Any], secret_key: str) -> Dict[str, str]:
    """The variables in the file that only root can read."""
    keys = [one.get("key") or "none" for one in params["connections"] if one.get("api") != "ollama"]
    found = {
        "WEBUI_SECRET_KEY": secret_key,
        "OPENAI_API_KEYS": ";".join(keys),
        "RAG_OPENAI_API_KEY": embedding(params)[1] if params["embedding_model"] else "",
        "WEBUI_ADMIN_PASSWORD": params["admin_password"] or "",
        # by the driver that Open WebUI requires; the plain scheme means another one, of an extra
        "DATABASE_URL": re.sub(r"^postgres(ql)?:", "postgresql+psycopg:", params["database_url"] or ""),
    }
    found.update({name: _text(value) for name, value in params["secret_environment"].items()})
    return {name: value for name, value in found.items() if value}


def unit(params: Mapping[str, Any], venv: str) -> Dict[str, List[str]]:
    """Keys of ``[Service]``."""
    home = params["data_dir"]
    command = [venv + "/bin/open-webui", "serve", "--host", params["host"], "--port", str(params["port"])]
    found = {
        **sandbox.profile([home]),
        "PrivateDevices": ["yes"],
        "SystemCallErrorNumber": ["EPERM"],  # a library tries what it can do without
        "ExecStart": ["", " ".join(map(argument, command))],
        "User": [params["user"]],
        "Group": [params["user"]],
        "WorkingDirectory": [home],
        "StandardOutput": ["journal"],
    }
    if params["clients"]:
        found["IPAddressDeny"] = ["any"]
        found["IPAddressAllow"] = [" ".join(["localhost", *params["clients"]])]
    return found


def _url(option: str, url: str) -> None:
    if not _URL.match(url):
        raise Refused("%s is %r; expected such as http://192.0.2.1:8000" % (option, re.sub("//.*@", "//…@", url)))


def _names_database(url: str) -> bool:
    try:
        return bool(_DATABASE.match(url) and variables(url))
    except ValueError:  # no port, or no address, is like that
        return False


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _text(value: Any) -> str:
    """A variable's value as Open WebUI reads it."""
    if isinstance(value, bool):
        return _truth(value)
    return value if isinstance(value, str) else json.dumps(value)
