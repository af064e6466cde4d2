# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options → variables and arguments of the process."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import options, program, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

DEFAULTS = {"host": "127.0.0.1", "port": "8080", "alias": "chat"}
ALWAYS = {
    "LLAMA_ARG_MODEL": "/m.gguf",
    "LLAMA_ARG_ENDPOINT_METRICS": "1",
    "LLAMA_ARG_HOST": "127.0.0.1",
    "LLAMA_ARG_PORT": "8080",
    "LLAMA_ARG_ALIAS": "chat",
}


def settle(theirs=None, command=(), visible=None, **given):
    declared = {row.name: row.default for row in options.OPTIONS}
    return settings.settle(
        {**declared, "model": "/m.gguf", **given}, DEFAULTS, theirs or {}, list(command), visible or {}
    )


def test_each_row_is_an_option():
    known = {row.name for row in options.OPTIONS}
    assert {row.option for row in settings.SETTINGS} - known == {"device", "metrics"}


def test_every_row_is_known_to_the_recorded_program(fixture_text):
    flags = program.parse_help(fixture_text("llama_server/help.txt"))
    for row in settings.SETTINGS:
        for name in (row.variable, *row.flags):
            assert flags[name].values == (not row.bare), name


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        ({}, {}),
        ({"ctx_size": 4096}, {"LLAMA_ARG_CTX_SIZE": "4096"}),
        ({"parallel": 4, "n_gpu_layers": "auto"}, {"LLAMA_ARG_N_PARALLEL": "4", "LLAMA_ARG_N_GPU_LAYERS": "auto"}),
        ({"embeddings": True}, {"LLAMA_ARG_EMBEDDINGS": "1"}),
        ({"embeddings": False}, {"LLAMA_ARG_EMBEDDINGS": "0"}),
        ({"port": 9000, "host": "::1"}, {"LLAMA_ARG_PORT": "9000", "LLAMA_ARG_HOST": "::1"}),
        ({"environment": {"LLAMA_ARG_THREADS": 4, "X": "y"}}, {"LLAMA_ARG_THREADS": "4", "X": "y"}),
        ({"device": "none"}, {"LLAMA_ARG_DEVICE": "none"}),
    ],
)
def test_options_are_variables(given, variables):
    settled = settle(**given)
    assert settled.environment == {**ALWAYS, **variables}
    assert settled.arguments == [] and settled.secret_environment == {}


def test_the_key_is_in_the_secret_variables_alone():
    settled = settle(api_key="sesame-key")
    assert settled.secret_environment == {"LLAMA_API_KEY": "sesame-key"}
    assert settled.environment == ALWAYS and settled.values["api_key"] == "sesame-key"


def test_further_arguments():
    extra = {"no_warmup": True, "top-k": 20, "--control-vector-layer-range": [1, 2], "chat-template": "a b"}
    assert settle(extra_args=extra).arguments == [
        "--control-vector-layer-range",
        "1",
        "2",
        "--chat-template",
        "a b",
        "--no-warmup",
        "--top-k",
        "20",
    ]


COMMAND = ["/x/llama-server", "-c", "4096", "--metrics", "-np", "2", "-fa", "on", "--port", "9000", "-m", "/m.gguf"]


@pytest.mark.parametrize(
    ("given", "arguments", "variables"),
    [
        ({}, COMMAND[1:], {"LLAMA_ARG_HOST", "LLAMA_ARG_ALIAS"}),
        ({"ctx_size": 4096, "port": 9000}, COMMAND[1:], {"LLAMA_ARG_HOST", "LLAMA_ARG_ALIAS"}),
        ({"ctx_size": 8192}, COMMAND[3:], {"LLAMA_ARG_HOST", "LLAMA_ARG_ALIAS", "LLAMA_ARG_CTX_SIZE"}),
        ({"parallel": 3}, [*COMMAND[1:4], *COMMAND[6:]], {"LLAMA_ARG_HOST", "LLAMA_ARG_ALIAS", "LLAMA_ARG_N_PARALLEL"}),
    ],
)
def test_what_a_unit_has_stays_where_it_says_the_same(given, arguments, variables):
    settled = settle(command=COMMAND, **given)
    assert settled.arguments == arguments
    assert set(settled.environment) == variables
    assert settled.url == "http://127.0.0.1:9000"


def test_an_argument_without_a_value_is_removed_alone():
    settled = settle(command=["/x/llama-server", "--embeddings", "-fa", "on"], embeddings=False)
    assert settled.arguments == ["-fa", "on"] and settled.environment["LLAMA_ARG_EMBEDDINGS"] == "0"


def test_a_key_that_a_unit_shows_in_the_process_list_is_moved_out_of_it():
    command = ["/x/llama-server", "--api-key", "sesame-key", "-fa", "on"]
    settled = settle(command=command, api_key="sesame-key")
    assert settled.arguments == ["-fa", "on"] and settled.secret_environment == {"LLAMA_API_KEY": "sesame-key"}
    assert settle(command=command).arguments == command[1:], "what is not declared is left alone"


def test_what_a_unit_has_as_variables_stays_in_force():
    theirs = {"LLAMA_ARG_PORT": "9001", "LLAMA_ARG_CTX_SIZE": "512", "LLAMA_API_KEY": "sesame-key"}
    settled = settle(theirs)
    assert "LLAMA_ARG_PORT" not in settled.environment and settled.url == "http://127.0.0.1:9001"
    assert settled.values["api_key"] == "sesame-key" and not settled.secret_environment


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": None}, "model: is not set"),
        ({"api_key": "short"}, "api_key: expected at least 8"),
        ({"api_key": "one,two,three"}, "api_key: expected at least 8"),
        ({"port": 0}, "port: 0; expected 1 to 65535"),
        ({"ctx_size": -1}, "ctx_size: -1; expected 0 or more"),
        ({"parallel": 0}, "parallel: 0; expected 1 or more"),
        ({"n_gpu_layers": "most"}, "n_gpu_layers: 'most'"),
        ({"ssl_key_file": "/k"}, "set both or neither"),
        ({"embeddings": True, "reranking": True}, "one of the two"),
        ({"host": "a b"}, "host: 'a b' is not an address"),
        ({"environment": {"LLAMA_ARG_CTX_SIZE": "1"}}, "environment.LLAMA_ARG_CTX_SIZE: use the option ctx_size"),
        ({"secret_environment": {"LLAMA_API_KEY": "x"}}, "secret_environment.LLAMA_API_KEY: use the option api_key"),
        ({"environment": {"X": True}}, "environment.X: True is neither text nor a number"),
        ({"extra_args": {"ctx_size": 1}}, "extra_args.ctx_size: use the option ctx_size"),
        ({"extra_args": {"api-key-file": "/k"}}, "extra_args.api-key-file: use the option api_key"),
        ({"extra_args": {"hf-token": "x"}}, "extra_args.hf-token: others could read it; use HF_TOKEN"),
        ({"extra_args": {"metrics": True}}, "use the option drain_timeout, which needs it"),
        ({"extra_args": {"warmup": False}}, "extra_args.warmup: False says nothing"),
    ],
)
def test_wrong_values_are_refused_by_name(given, words):
    with pytest.raises(Refused) as caught:
        settle(**given)
    assert words in str(caught.value)


def test_several_problems_are_reported_together():
    with pytest.raises(Refused, match=r"port: 0.*; parallel: 0"):
        settle(port=0, parallel=0)


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"host": "0.0.0.0", "port": "80"}, "http://127.0.0.1:80"),
        ({"host": "::", "port": "80"}, "http://[::1]:80"),
        ({"host": "10.0.0.1", "port": "80", "ssl_cert_file": "/c"}, "https://10.0.0.1:80"),
    ],
)
def test_where_a_client_on_the_host_reaches_it(values, url):
    assert settings.url(values) == url


@pytest.mark.parametrize(
    ("given", "task"), [({}, "text"), ({"embeddings": True}, "embeddings"), ({"reranking": True}, "reranking")]
)
def test_the_task_by_which_it_is_verified(given, task):
    assert settle(**given).task == task
