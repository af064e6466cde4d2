# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options → YAML file and environment, and what is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.hf_model.parallel import Parallel
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import releases, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm.settings import declare

NO_FILE = "refused: vllm: error: argument --config: expected one argument"
"""Versions up to 0.9.2 read no file when they are started as a module."""
ONE = Parallel(1, 1, 1, "")


def made(visible=None, sizes=None, **options):
    return declare(dict({"model": "/m"}, **options), ONE._replace(**(sizes or {})), visible)


def problems(**options):
    with pytest.raises(Refused) as caught:
        made(**options)
    return str(caught.value)


def test_the_least():
    found = made()
    assert found.config == {"model": "/m", "host": "127.0.0.1", "port": 8000}
    assert found.environment == {"VLLM_NO_USAGE_STATS": "1"}
    assert (found.served, found.port, found.url) == ("/m", 8000, "http://127.0.0.1:8000")
    assert not found.secret_environment and not found.credentials


def test_every_option_has_its_flag(fixture_text):
    known = json.loads(fixture_text("vllm/options.json"))
    for flag in map(settings._flag, settings.FLAGS + settings._SIZES):
        assert "--" + flag in known, flag
    assert {"--" + flag for flag in settings._ELSEWHERE} <= {*known, "--config"}


def test_sizes_other_than_one_are_written():
    found = made(sizes={"tensor": 4, "data": 2})
    assert (found.config["tensor-parallel-size"], found.config["data-parallel-size"]) == (4, 2)
    assert "pipeline-parallel-size" not in found.config


def test_the_file_is_yaml_that_says_what_is_declared():
    found = made(
        served_model_name=["a", "ä: b"],
        enforce_eager=True,
        gpu_memory_utilization=0.5,
        extra_args={"max_loras": 4, "--speculative-config": {"model": "x", "n": [1]}, "note": "1: # 'no' \"x\"\n"},
    )
    text = settings.render(found.config)
    assert yaml.safe_load(text) == found.config
    assert found.config["max-loras"] == 4 and json.loads(found.config["speculative-config"]) == {"model": "x", "n": [1]}
    assert settings.read_back(text) == found.config
    assert settings.render(dict(reversed(list(found.config.items())))) == text, "the order of options is no change"


@pytest.mark.parametrize(
    "options, line",
    [
        ({"enable_prefix_caching": False}, "no-enable-prefix-caching: true"),
        ({"enable_prefix_caching": True}, "enable-prefix-caching: true"),
        ({"extra_args": {"compilation_config.use_cudagraph": False}}, 'compilation-config.use_cudagraph: "false"'),
        ({"extra_args": {"compilation-config.use_cudagraph": True}}, 'compilation-config.use_cudagraph: "true"'),
    ],
)
def test_a_truth_value_as_every_version_reads_it(fixture_text, options, line):
    """vLLM's own parsers, of each version and by both commands, were recorded reading these very lines."""
    assert line in settings.render(made(**options).config).splitlines()
    dotted = "." in line
    for version, commands in json.loads(fixture_text("vllm/parser.json")).items():
        if version == "0.8.5" and dotted:  # which has no such options
            continue
        said = list(options.get("extra_args", options).values())[0]
        assert commands["serve"][line] == ({"use_cudagraph": said} if dotted else said), version
        assert commands["module"][line] in (commands["serve"][line], NO_FILE), version


@pytest.mark.parametrize(
    "options, line, read, first",
    [
        ({"served_model_name": ["a"]}, 'served-model-name: "a"', ["a"], ""),
        ({"served_model_name": ["a", "b"]}, 'served-model-name: ["a", "b"]', ["a", "b"], "0.10.2"),
        ({"guard_all_paths": True, "api_key": "sesame-sesame"}, 'middleware: "gpufleet_guard.Guard"', ["%s"], ""),
        ({"extra_args": {"speculative-config": {"n": 1}}}, 'speculative-config: "{\\"n\\": 1}"', {"n": 1}, ""),
        (
            {"extra_args": {"lora_modules": ["a=/a", "b=/b"]}},
            'lora-modules: ["a=/a", "b=/b"]',
            ["a=/a", "b=/b"],
            "0.10.2",
        ),
        (
            {"extra_args": {"lora_modules": ["a=/a", {"name": "b"}]}},
            'lora-modules: ["a=/a", "{\\"name\\": \\"b\\"}"]',
            ["a=/a", '{"name": "b"}'],
            "0.10.2",
        ),
    ],
)
def test_lists_and_mappings_as_every_version_reads_them(fixture_text, options, line, read, first):
    """Versions before ``first`` are the only ones that are refused."""
    assert line in settings.render(made(**options).config).splitlines()
    recorded = json.loads(fixture_text("vllm/parser.json"))
    assert {"0.8.5", "0.9.2", "0.10.2", "0.14.1"} < set(recorded)
    for version, commands in recorded.items():
        given = dict({"model": "/m"}, **options)
        if first and releases.parse(version) < releases.parse(first):
            with pytest.raises(Refused, match="misreads a list"):
                declare(given, ONE, None, releases.parse(version))
        else:
            assert line in settings.render(declare(given, ONE, None, releases.parse(version)).config)
            said = commands["serve"][line.replace("gpufleet_guard", "guard")]
            assert said == (["guard.Guard"] if "guard" in line else read), version


def test_a_false_of_an_extra_option():
    found = made(extra_args={"enable_log_requests": False, "--no-async-scheduling": True}).config
    assert found["no-enable-log-requests"] is True and found["no-async-scheduling"] is True
    assert "enable-log-requests" not in found


@pytest.mark.parametrize("text", ["", "model: x\n", "a: b: c\n", "port: 1\n"])
def test_a_file_by_another_hand_is_not_taken_for_ours(text):
    assert settings.read_back(text) == {}


def test_gpus_are_counted_as_nvml_counts():
    assert made(visible="1,3").environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert made(visible="1,3").environment["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert "CUDA_VISIBLE_DEVICES" not in made().environment


def test_secrets_stand_in_neither_file_nor_environment():
    found = made(api_key="open-sesame", hf_token="hf_0123")
    assert found.secret_environment == {"VLLM_API_KEY": "open-sesame"} and found.credentials == {"hf_token": "hf_0123"}
    assert "sesame" not in settings.render(found.config) + str(found.environment)


def test_the_guard():
    found = made(api_key="open-sesame", guard_all_paths=True, open_paths=["/health", "/metrics"])
    assert found.config["middleware"] == "gpufleet_guard.Guard"
    assert found.environment["GPUFLEET_OPEN_PATHS"] == "/health,/metrics"


def test_the_keys_of_clients():
    keys = {"web": "web-sesame", "batch": "batch-sesame"}
    found = made(api_key="open-sesame", guard_all_paths=True, client_keys=keys)
    assert found.secret_environment == {
        "VLLM_API_KEY": "open-sesame",
        "GPUFLEET_CLIENT_KEYS": "batch-sesame web-sesame",
    }
    assert "web-sesame" not in settings.render(found.config) + str(found.environment)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"a": "short"}, "client_keys.a: expected at least 8 ASCII"),
        ({"a": "with a blank"}, "client_keys.a: expected at least 8 ASCII"),
        ({"a": 12345678}, "client_keys.a: expected at least 8 ASCII"),
        ({"a": "open-sesame"}, "client_keys.a: is also the key of api_key"),
        ({"a": "same-sesame", "b": "same-sesame"}, "client_keys.b: is also the key of a"),
    ],
)
def test_keys_of_clients_that_are_refused(keys, words):
    said = problems(api_key="open-sesame", guard_all_paths=True, client_keys=keys)
    assert words in said and "sesame" not in said
    assert "vLLM itself knows one key" in problems(api_key="open-sesame", client_keys=keys)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"port": 80}, "port: 80; only root may listen below 1024"),
        ({"port": 65536, "user": "root"}, "port: 65536; expected 1 to 65535"),
        ({"environment": {"WANDB_API_KEY": "hush"}}, "WANDB_API_KEY: may be a secret, and everyone could read it"),
        ({"secret_environment": {"HF_TOKEN": "x"}}, "secret_environment.HF_TOKEN: use hf_token"),
        ({"secret_environment": {"A": "1"}, "environment": {"A": "1"}}, "secret_environment.A: is in environment, too"),
        ({"secret_environment": {"PYTHONPATH": "x"}}, "secret_environment.PYTHONPATH: is set by guard_all_paths"),
        (
            {"guard_all_paths": True, "api_key": "sesame-sesame", "environment": {"VLLM_USE_RUST_FRONTEND": 1}},
            "guard_all_paths: it cannot run in the front end",
        ),
        (
            {"guard_all_paths": True, "api_key": "sesame-sesame", "secret_environment": {"VLLM_USE_RUST_FRONTEND": 1}},
            "guard_all_paths: it cannot run in the front end",
        ),
        ({"gpu_memory_utilization": 92.0}, "gpu_memory_utilization: 92 is not a share"),
        ({"gpu_memory_utilization": 0.0}, "is not a share"),
        ({"max_num_seqs": 0}, "max_num_seqs: 0; expected 1"),
        ({"max_model_len": "lots"}, "max_model_len: 'lots' is not a number of tokens"),
        ({"max_model_len": "1.5K"}, "is not a number of tokens"),
        ({"host": "a b"}, "host: 'a b' is not an address"),
        ({"model": ""}, "vLLM would serve a small model of its own choice"),
        ({"ssl_keyfile": "/k"}, "ssl_keyfile, ssl_certfile: set both, or neither"),
        ({"shutdown_timeout": -1}, "shutdown_timeout: -1"),
        ({"api_key": "short"}, "api_key: expected at least 8 ASCII"),
        ({"api_key": "with a blank"}, "api_key: expected at least 8 ASCII"),
        ({"asleep": "accept"}, "asleep: it cannot sleep without"),
        ({"state": "asleep"}, "state: asleep needs extra_args: {enable-sleep-mode: true} and environment"),
        ({"state": "asleep", "extra_args": {"enable-sleep-mode": True}}, "state: asleep needs"),
        ({"state": "asleep", "host": "0.0.0.0", "api_key": "open-sesame"}, "state: others could reach the paths that"),
        ({"guard_all_paths": True}, "guard_all_paths: there is no api_key"),
        ({"extra_args": {"max_model_len": 5}}, "extra_args.max_model_len: use the option max_model_len"),
        ({"extra_args": {"no-enforce-eager": True}}, "use the option enforce_eager: false"),
        ({"extra_args": {"no-async-scheduling": False}}, "write async-scheduling: true"),
        ({"extra_args": {"async-scheduling": True, "no-async-scheduling": True}}, "given twice"),
        ({"extra_args": {"async-scheduling": False, "no_async_scheduling": True}}, "given twice"),
        ({"extra_args": {"--tensor-parallel-size": 2}}, "use the option tensor_parallel_size"),
        ({"extra_args": {"api-key": "x"}}, "use api_key"),
        ({"extra_args": {"a b": 1}}, "is not the name of an option"),
        ({"extra_args": {"seed": None}}, "the text None"),
        ({"extra_args": {"max-loras": 1, "max_loras": 2}}, "given twice"),
        ({"environment": {"HF_TOKEN": "x"}}, "environment.HF_TOKEN: use hf_token"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "is set by visible_devices"),
        ({"environment": {"A": True}}, "environment.A: True is neither text nor a number"),
    ],
)
def test_what_is_refused(options, words):
    assert words in problems(**options)


def test_all_problems_are_told_at_once():
    assert problems(port=80, max_num_seqs=0).count(";") >= 2


def test_ports_of_root():
    assert made(port=443, user="root").port == 443


def test_variables_that_hold_secrets():
    found = made(secret_environment={"MODELSCOPE_API_TOKEN": "hush-hush"})
    assert found.secret_environment == {"MODELSCOPE_API_TOKEN": "hush-hush"}
    assert "MODELSCOPE_API_TOKEN" not in found.environment


def test_no_secret_is_in_a_message():
    assert "hush" not in problems(secret_environment={"A": ["hush-hush"], "HF_TOKEN": "hush"})
    assert "hush" not in problems(environment={"VLLM_API_KEY": "hush-hush"}, api_key="hush hush")


def test_warnings():
    assert "internal one" in made(environment={"VLLM_PORT": "1"}).warnings[0]
    assert "ask for no key" in made(environment={"VLLM_SERVER_DEV_MODE": 1}).warnings[0]


@pytest.mark.parametrize(
    "host, tls, url",
    [
        ("0.0.0.0", False, "http://127.0.0.1:8000"),
        ("::", False, "http://[::1]:8000"),
        ("10.0.0.1", True, "https://10.0.0.1:8000"),
    ],
)
def test_where_a_client_on_the_host_finds_it(host, tls, url):
    more = {"ssl_keyfile": "/k", "ssl_certfile": "/c"} if tls else {}
    assert made(host=host, **more).url == url


@pytest.mark.parametrize(
    "value, expected",
    [
        (8192, 8192),
        ("8192", 8192),
        ("32k", 32000),
        ("32K", 32768),
        ("1.5k", 1500),
        ("1M", 1 << 20),
        ("auto", None),
        ("-1", None),
    ],
)
def test_tokens_as_vllm_reads_them(value, expected):
    assert settings.tokens(value) == expected
