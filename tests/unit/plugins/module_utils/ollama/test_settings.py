# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options to environment: what is written, what the server will log, what is refused before anything is touched."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import settings
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.settings import declare
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

FOREVER = "2562047h47m16.854775807s"

READ = [
    # option, value, variable, written, logged (None: the server does not log it)
    ("sched_spread", True, "OLLAMA_SCHED_SPREAD", "1", "true"),
    ("sched_spread", False, "OLLAMA_SCHED_SPREAD", "0", "false"),
    ("keep_alive", "-1", "OLLAMA_KEEP_ALIVE", "-1", FOREVER),
    ("keep_alive", "-1s", "OLLAMA_KEEP_ALIVE", "-1s", FOREVER),
    ("keep_alive", "0", "OLLAMA_KEEP_ALIVE", "0", "0s"),
    ("keep_alive", "300", "OLLAMA_KEEP_ALIVE", "300", "5m0s"),
    ("keep_alive", "24h", "OLLAMA_KEEP_ALIVE", "24h", "24h0m0s"),
    ("keep_alive", "1h30m", "OLLAMA_KEEP_ALIVE", "1h30m", "1h30m0s"),
    ("keep_alive", "1.5h", "OLLAMA_KEEP_ALIVE", "1.5h", "1h30m0s"),
    ("keep_alive", "300ms", "OLLAMA_KEEP_ALIVE", "300ms", "300ms"),
    ("keep_alive", "+2m", "OLLAMA_KEEP_ALIVE", "+2m", "2m0s"),
    ("load_timeout", "0", "OLLAMA_LOAD_TIMEOUT", "0", FOREVER),
    ("load_timeout", "10m", "OLLAMA_LOAD_TIMEOUT", "10m", "10m0s"),
    ("num_parallel", 4, "OLLAMA_NUM_PARALLEL", "4", "4"),
    ("max_loaded_models", 0, "OLLAMA_MAX_LOADED_MODELS", "0", "0"),
    ("max_queue", 64, "OLLAMA_MAX_QUEUE", "64", "64"),
    ("context_length", 8192, "OLLAMA_CONTEXT_LENGTH", "8192", "8192"),
    ("flash_attention", True, "OLLAMA_FLASH_ATTENTION", "1", "true"),
    ("kv_cache_type", "q8_0", "OLLAMA_KV_CACHE_TYPE", "q8_0", "q8_0"),
    ("gpu_overhead", "1GiB", "OLLAMA_GPU_OVERHEAD", "1073741824", "1073741824"),
    ("gpu_overhead", "1G", "OLLAMA_GPU_OVERHEAD", "1000000000", "1000000000"),
    ("gpu_overhead", "1.5 GB", "OLLAMA_GPU_OVERHEAD", "1500000000", "1500000000"),
    ("gpu_overhead", "512", "OLLAMA_GPU_OVERHEAD", "512", "512"),
    ("fit_target", "2GiB", "LLAMA_ARG_FIT_TARGET", "2048", "2048"),
    ("fit_target", "2048", "LLAMA_ARG_FIT_TARGET", "2048", "2048"),
    ("llama_fit", False, "LLAMA_ARG_FIT", "off", "off"),
    ("llm_library", "cuda_v13", "OLLAMA_LLM_LIBRARY", "cuda_v13", "cuda_v13"),
    ("igpu_enable", True, "OLLAMA_IGPU_ENABLE", "1", "1"),
    ("vulkan", False, "OLLAMA_VULKAN", "0", "false"),
    ("host", "0.0.0.0", "OLLAMA_HOST", "0.0.0.0", "http://0.0.0.0:11434"),
    ("host", "127.0.0.1:21434", "OLLAMA_HOST", "127.0.0.1:21434", "http://127.0.0.1:21434"),
    ("host", "http://10.0.0.5:80", "OLLAMA_HOST", "http://10.0.0.5:80", "http://10.0.0.5:80"),
    ("host", ":8080", "OLLAMA_HOST", ":8080", "http://:8080"),
    ("host", "[::1]:8080", "OLLAMA_HOST", "[::1]:8080", "http://[::1]:8080"),
    ("host", "::", "OLLAMA_HOST", "::", "http://[::]:11434"),
    ("host", "[0::1]", "OLLAMA_HOST", "[0::1]", "http://[::1]:11434"),
    ("host", "gpu1.example", "OLLAMA_HOST", "gpu1.example", "http://gpu1.example:11434"),
    (
        "origins",
        ["https://a.example", "chrome-extension://*"],
        "OLLAMA_ORIGINS",
        "https://a.example,chrome-extension://*",
        "[https://a.example chrome-extension://* ",
    ),
    ("remotes", ["ollama.com", "b.example"], "OLLAMA_REMOTES", "ollama.com,b.example", "[ollama.com b.example]"),
    ("models_dir", "/srv/models", "OLLAMA_MODELS", "/srv/models", "/srv/models"),
    ("noprune", True, "OLLAMA_NOPRUNE", "1", "true"),
    ("no_cloud", True, "OLLAMA_NO_CLOUD", "1", "true"),
    ("max_transfer_streams", 8, "OLLAMA_MAX_TRANSFER_STREAMS", "8", "8"),
    ("auth", True, "OLLAMA_AUTH", "1", None),
    ("go_template", False, "OLLAMA_GO_TEMPLATE", "0", "false"),
    ("log_level", "info", "OLLAMA_DEBUG", "0", "INFO"),
    ("log_level", "debug", "OLLAMA_DEBUG", "1", "DEBUG"),
    ("log_level", "trace", "OLLAMA_DEBUG", "2", "DEBUG-4"),
    ("debug_log_requests", False, "OLLAMA_DEBUG_LOG_REQUESTS", "0", "false"),
    (
        "https_proxy",
        "http://proxy.example:3128",
        "HTTPS_PROXY",
        "http://proxy.example:3128",
        "http://proxy.example:3128",
    ),
    ("no_proxy", "localhost,10.0.0.0/8", "NO_PROXY", "localhost,10.0.0.0/8", "localhost,10.0.0.0/8"),
]


@pytest.mark.parametrize("option, value, variable, written, logged", READ)
def test_an_option_becomes_a_variable(option, value, variable, written, logged):
    declared = declare({option: value}, {})
    assert declared.environment == {variable: written}
    assert declared.effective == ({} if logged is None else {variable: logged})
    assert declared.warnings == []


def test_every_option_is_in_the_table_above():
    assert {entry.option for entry in settings.SETTINGS} == {row[0] for row in READ}


REFUSED = [
    # option, value, part of the reason
    ("keep_alive", "1d", "write 24h"),
    ("keep_alive", "7 days", "write 168h"),
    ("keep_alive", "5 m", "without blanks"),
    ("keep_alive", "abc", "its default of 5m silently"),
    ("keep_alive", "", "is empty"),
    ("keep_alive", "--1", "is not a duration"),
    ("keep_alive", "9999999999999", "-1 means indefinitely"),
    ("keep_alive", "3000000h", "is not a duration"),
    ("keep_alive", " 5m", "begins or ends with a blank or a quote"),
    ("keep_alive", "'5m'", "begins or ends with a blank or a quote"),
    ("keep_alive", True, "put quotes around it"),
    ("num_parallel", -3, "not a whole number"),
    ("num_parallel", 0, "expected 1 or more"),
    ("max_queue", "abc", "Ollama would use its default"),
    ("context_length", 1 << 64, "out of range"),
    ("gpu_overhead", "1X", "is not a size"),
    ("gpu_overhead", "1.5", "is not a size"),
    ("gpu_overhead", "much", "is not a size"),
    ("kv_cache_type", "bogus", "expected one of f16"),
    ("host", "127.0.0.1:99999", "no port between 1 and 65535"),
    ("host", "127.0.0.1:", "no port between 1 and 65535"),
    ("host", "http://127.0.0.1", "means port 80, not 11434"),
    ("host", "https://127.0.0.1:443", "speaks plain HTTP only"),
    ("host", "127.0.0.1:80/api", "a path means nothing"),
    ("host", "2001:db8::zz", "write IPv6 in brackets"),
    ("host", "my host", "is not an address"),
    ("origins", ["a.example"], "https://a.example"),
    ("origins", ["https://a.example https://b.example"], "blank or a comma"),
    ("origins", [], "empty list"),
    ("models_dir", "models", "not an absolute path"),
    ("llm_library", "../x", "is not a name"),
    ("log_level", "loud", "not a log level"),
    ("https_proxy", "proxy:3128", "is not a proxy URL"),
    ("https_proxy", "http://u:hidden@proxy.example:3128", "writes it into the journal"),
    ("llama_fit", "perhaps", "neither on nor off"),
]


@pytest.mark.parametrize("option, value, reason", REFUSED)
def test_a_misread_value_is_refused_with_the_reason(option, value, reason):
    with pytest.raises(Refused) as caught:
        declare({option: value}, {})
    assert "; %s (" % option not in str(caught.value)
    assert str(caught.value).startswith(option + " (")
    assert reason in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_all_problems_come_at_once():
    with pytest.raises(Refused) as caught:
        declare({"keep_alive": "1d", "num_parallel": 0}, {"OLLAMA_SCHED_SPREAD": "off"})
    assert str(caught.value).count("; ") >= 2
    for where in ("keep_alive (", "num_parallel (", "environment.OLLAMA_SCHED_SPREAD: "):
        assert where in str(caught.value)


def test_a_quantised_cache_needs_flash_attention():
    with pytest.raises(Refused, match="needs flash attention"):
        declare({"kv_cache_type": "q8_0", "flash_attention": False}, {})
    declare({"kv_cache_type": "f16", "flash_attention": False}, {})
    declare({"kv_cache_type": "q8_0"}, {})


EXTRA = [
    # name, value, written, logged
    ("OLLAMA_SCHED_SPREAD", "true", "true", "true"),
    ("OLLAMA_SCHED_SPREAD", False, "0", "false"),
    ("OLLAMA_SCHED_SPREAD", 1, "1", "true"),
    ("OLLAMA_DEBUG", "2", "2", "DEBUG-4"),
    ("OLLAMA_DEBUG", "F", "F", "INFO"),
    ("OLLAMA_DEBUG", True, "1", "DEBUG"),
    ("OLLAMA_NUM_PARALLEL", "007", "007", "7"),
    ("OLLAMA_GPU_OVERHEAD", "1073741824", "1073741824", "1073741824"),
    ("OLLAMA_REMOTES", "a.example,b.example", "a.example,b.example", "[a.example b.example]"),
    ("ROCR_VISIBLE_DEVICES", "0,1", "0,1", "0,1"),
    ("HSA_OVERRIDE_GFX_VERSION", "10.3.0", "10.3.0", "10.3.0"),
    ("LLAMA_ARG_FIT", "on", "on", "on"),
    ("LLAMA_ARG_FIT_TARGET", "1024,2048", "1024,2048", "1024,2048"),
    ("LLAMA_ARG_THREADS", 16, "16", None),
    ("CUDA_DEVICE_ORDER", "PCI_BUS_ID", "PCI_BUS_ID", None),
    ("MY_OWN", "  any 'text' \\ % $", "  any 'text' \\ % $", None),
    ("MY_OWN", "", "", None),
]


@pytest.mark.parametrize("name, value, written, logged", EXTRA)
def test_a_further_variable_is_given_on_as_it_is(name, value, written, logged):
    declared = declare({}, {name: value})
    assert declared.environment == {name: written}
    assert declared.effective == ({} if logged is None else {name: logged})
    assert declared.warnings == []


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("OLLAMA_SCHED_SPREAD", "off", "reads 'off' as true"),
        ("OLLAMA_FLASH_ATTENTION", "no", "reads 'no' as true"),
        ("OLLAMA_DEBUG", "yes", "would log at INFO"),
        ("OLLAMA_KEEP_ALIVE", "1d", "write 24h"),
        ("OLLAMA_GPU_OVERHEAD", "1GiB", "reads no units"),
        ("OLLAMA_NOHISTORY", "yes", "as true"),
        ("MY_OWN", True, "put quotes around it"),
        ("MY_OWN", None, "put quotes around it"),
        ("HTTP_PROXY", "http://u:hidden@p.example", "writes it into the journal"),
    ],
)
def test_a_further_variable_that_would_be_misread_is_refused(name, value, reason):
    with pytest.raises(Refused) as caught:
        declare({}, {name: value})
    assert str(caught.value).startswith("environment.%s: " % name)
    assert reason in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_variable_is_not_given_twice():
    with pytest.raises(Refused, match="already given by the option keep_alive"):
        declare({"keep_alive": "5m"}, {"OLLAMA_KEEP_ALIVE": "5m"})


@pytest.mark.parametrize(
    "name, warning",
    [
        ("OLLAMA_SCHED_SPRED", "did you mean OLLAMA_SCHED_SPREAD?"),
        ("OLLAMA_KEEPALIVE", "did you mean OLLAMA_KEEP_ALIVE?"),
        ("ollama_keep_alive", "did you mean OLLAMA_KEEP_ALIVE?"),
        ("CUDA_VISIBLE_DEVICE", "did you mean CUDA_VISIBLE_DEVICES?"),
        ("OLLAMA_NUM_GPU", "num_gpu is an option of a request"),
        ("OLLAMA_TMPDIR", "0.6.5 was the last version"),
        ("OLLAMA_SOMETHING_ELSE", "does not know this name"),
    ],
)
def test_a_name_that_ollama_does_not_know_is_warned_of(name, warning):
    declared = declare({}, {name: "1"})
    assert len(declared.warnings) == 1
    assert warning in declared.warnings[0]
    assert declared.environment == {name: "1"}


def test_secret_variables():
    declared = declare({"secret_environment": {"OLLAMA_API_KEY": "hush"}}, {})
    assert declared.secret_environment == {"OLLAMA_API_KEY": "hush"} and not declared.environment
    for environment, secrets, words in (
        ({"OLLAMA_API_KEY": "hush"}, {}, "environment.OLLAMA_API_KEY: may be a secret"),
        (
            {},
            {"HTTPS_PROXY": "http://u:hush@p"},
            "secret_environment.HTTPS_PROXY: Ollama writes its value into its log",
        ),
        ({}, {"CUDA_VISIBLE_DEVICES": "0"}, "secret_environment.CUDA_VISIBLE_DEVICES: Ollama writes its value"),
    ):
        with pytest.raises(Refused) as caught:
            declare({"secret_environment": secrets}, environment)
        assert words in str(caught.value) and "hush" not in str(caught.value)


def test_visible_devices_stand_beside_the_options():
    declared = declare({"sched_spread": True}, {"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1")
    assert declared.environment == {"OLLAMA_SCHED_SPREAD": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert declared.effective["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    "written, reached",
    [
        ("127.0.0.1", ("127.0.0.1", 11434)),
        ("0.0.0.0:8080", ("127.0.0.1", 8080)),
        (":8080", ("127.0.0.1", 8080)),
        ("[::]:8080", ("::1", 8080)),
        ("10.0.0.5", ("10.0.0.5", 11434)),
    ],
)
def test_where_a_client_finds_the_server(written, reached):
    assert settings.reachable_at(written) == reached


def test_the_server_appends_its_own_origins():
    assert settings.agrees("OLLAMA_ORIGINS", "[https://a.example ", "[https://a.example http://localhost app://*]")
    assert not settings.agrees("OLLAMA_ORIGINS", "[https://b.example ", "[https://a.example http://localhost]")
    assert settings.agrees("OLLAMA_HOST", "a", "a")
    assert not settings.agrees("OLLAMA_HOST", "a", "ab")
