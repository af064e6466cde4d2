# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables of a service: which ones may be secrets, and what is wrong with the others."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving.variables import (
    may_be_secret,
    plain_variables,
    secret_variables,
)


@pytest.mark.parametrize(
    "name",
    [
        *("MODELSCOPE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PASSWORD", "wandb_api_key"),
        *("WANDB_API_KEY", "OPENAI_API_KEYS", "OAUTH_CLIENT_SECRET", "HF_TOKEN", "APIKEY", "DJANGO_SECRET_KEY"),
    ],
)
def test_names_of_secrets(name):
    assert may_be_secret(name, "x") and may_be_secret(name, 12)
    assert not any(may_be_secret(name, switch) for switch in (True, "true", "1", "No"))


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS_PER_EXPERT", "KEYS", "OLLAMA_KEEP_ALIVE", "HTTPS_PROXY", "NOTOKEN"],
)
def test_other_names(name):
    assert not may_be_secret(name, "1")


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("http://user:hush@proxy.example:3128", True),
        ("postgresql://u:hush@db/x", True),
        ("http://proxy.example:3128", False),
        ("http://user@proxy.example", False),
        ("http://proxy.example:3128/a@b", False),
    ],
)
def test_a_url_with_a_password(value, secret):
    assert may_be_secret("HTTPS_PROXY", value) == secret


def test_plain_variables():
    given = {"A": "1", "B": 2, "C": True, "D": "x", "E_TOKEN": "hush"}
    found, problems = plain_variables(given, {"D": "use the option d"})
    assert found == {"A": "1", "B": "2"}
    assert problems == [
        "environment.C: True is neither text nor a number; put quotes around it",
        "environment.D: use the option d",
        "environment.E_TOKEN: may be a secret, and everyone could read it; use secret_environment",
    ]


def test_secret_variables_are_in_no_message():
    given = {"A": "hush", "B": 2, "C": ["hush"], "D": "hush", "E": "hush"}
    found, problems = secret_variables(given, {"D": "use the option d"}, {"E": "x"})
    assert found == {"A": "hush", "B": "2"}
    assert problems == [
        "secret_environment.C: expected text; put quotes around it",
        "secret_environment.D: use the option d",
        "secret_environment.E: is in environment, too; leave it out there",
    ]
