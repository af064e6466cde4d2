# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the options of an instance to what the serving floor is asked for, and what is refused before a start."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import options, program, service
from ansible_collections.gpufleet.inference.plugins.module_utils.placement.choice import Placed
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.gate import Proof
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Host, Service
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

GIB = 1 << 30
UNIT = "/etc/systemd/system/llama-server.service"


class FakeSystem:
    """As much of systemd as an engine reads."""

    root = ""

    def __init__(self, **files):
        self.files = files

    def load(self, names):
        return [(path, text.encode()) for path, text in self.files.items()]

    def specifiers(self, unit):
        return {}

    def environment_files(self, pattern):
        return []


def gpu(index, free=100):
    return {
        "index": index,
        "uuid": "GPU-%d" % index,
        "name": "NVIDIA H200",
        "pci_bus_id": None,
        "memory": {"total_bytes": 140 * GIB, "free_bytes": free * GIB},
        "processes": [],
    }


GPUS = Placed([gpu(0), gpu(1)], "0,1")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def declare(model):
    """`declare(placed, files, name=…, **options)` gives what the engine declares of an instance."""

    def declare(placed=GPUS, files=None, name="chat", **given):
        declared = {row.name: row.default for row in options.OPTIONS}
        declared.update({"model": model, **given})
        wanted = Service("llama-server@%s.service" % name if name else "llama-server.service", name, declared)
        return service.LlamaServer().declare(wanted, placed, Host(FakeSystem(**files or {}), False, print, 10))

    return declare


def test_an_instance(declare, model):
    declared = declare(ctx_size=4096, api_key="sesame-key", extra_args={"chat-template": "a $b"})
    assert declared.environment == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "LLAMA_ARG_MODEL": model,
        "LLAMA_ARG_ALIAS": "chat",
        "LLAMA_ARG_CTX_SIZE": "4096",
        "LLAMA_ARG_N_GPU_LAYERS": "999",
        "LLAMA_ARG_HOST": "127.0.0.1",
        "LLAMA_ARG_PORT": "8080",
        "LLAMA_ARG_ENDPOINT_METRICS": "1",
    }
    assert declared.secret_environment == {"LLAMA_API_KEY": "sesame-key"}
    assert declared.settings == {
        "ExecStart": ["", '/opt/llama.cpp/bin/llama-server --chat-template "a $$b"'],
        "User": ["llama-server"],
        "TimeoutStopSec": ["15"],
    }
    assert declared.listen[:3] == ("127.0.0.1", 8080, True)
    assert declared.writable == ["/var/lib/llama-server"] and declared.timeout == 120
    assert len(declared.steps) == 2 and len(declared.checks) == 4


def test_without_a_gpu(declare):
    environment = declare(Placed([], None, cpu=True)).environment
    assert environment["LLAMA_ARG_DEVICE"] == "none" and "LLAMA_ARG_N_GPU_LAYERS" not in environment
    environment = declare(Placed([], None)).environment
    assert "LLAMA_ARG_DEVICE" not in environment and "CUDA_VISIBLE_DEVICES" not in environment


def test_a_model_of_the_role_is_served_under_its_name(declare, model):
    declared = declare(model="org/name", model_paths={"org/name": model})
    assert declared.environment["LLAMA_ARG_MODEL"] == model and declared.environment["LLAMA_ARG_ALIAS"] == "org/name"
    assert declared.own.served == "org/name"
    assert declare(model="org/name", model_paths={"org/name": model}, alias="a,b").own.served == "a"


def test_a_unit_that_was_written_manually_keeps_what_it_has(declare):
    unit = "[Service]\nUser=ai\nExecStart=/x/llama-server -c 4096 --port 9000 -ngl 99\nEnvironment=LLAMA_ARG_ALIAS=a\n"
    declared = declare(files={UNIT: unit}, name="", ctx_size=4096)
    assert declared.user == "ai" and declared.listen.port == 9000 and declared.own.program == "/x/llama-server"
    assert declared.settings == {"TimeoutStopSec": ["15"]}
    assert declared.steps == [], "neither its user nor a template is ours"
    assert {"LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_PORT", "LLAMA_ARG_ALIAS", "LLAMA_ARG_N_GPU_LAYERS"} & set(
        declared.environment
    ) == set()
    declared = declare(files={UNIT: unit}, name="", ctx_size=8192, user="other")
    assert declared.settings["ExecStart"] == ["", "/x/llama-server --port 9000 -ngl 99"]
    assert declared.settings["User"] == ["other"] and declared.environment["LLAMA_ARG_CTX_SIZE"] == "8192"
    declared = declare(files={UNIT: unit}, name="", program="/y/llama-server")
    assert declared.settings["ExecStart"] == ["", "/y/llama-server"], "a program that is declared has no arguments yet"


def test_the_user_of_a_template_is_not_that_of_an_instance(declare):
    template = "/etc/systemd/system/llama-server@.service"
    assert declare(files={template: "[Service]\nExecStart=/bin/false\n"}).user == "llama-server"


def test_the_larger_the_model_the_longer_a_start_may_take(declare, model):
    with open(model, "r+b") as file:
        file.truncate(10**11)
    assert declare().timeout == 1120 and declare(timeout=7).timeout == 7


@pytest.fixture
def preflight(declare, monkeypatch, fixture_text):
    """`preflight(placed, **options)` looks at what a start would run into."""

    def preflight(placed=GPUS, vacated=(), **given):
        declared = declare(placed, program=given.pop("program", "/bin/sh"), **given)
        plan = SimpleNamespace(unit="llama-server@chat.service", placed=placed, declared=declared, vacated=vacated)
        service.LlamaServer().preflight(plan, Host(FakeSystem(), False, print, 10))

    monkeypatch.setattr(program.users, "ids_of", lambda user: program.users.Ids(0, 0, []))
    monkeypatch.setattr(program, "ask", lambda name, user: program.parse_help(fixture_text("llama_server/help.txt")))
    return preflight


def test_what_can_start_passes(preflight):
    preflight(cache_type_k="q8_0", split_mode="row", extra_args={"no-warmup": True})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"program": "/nosuch"}, "program: there is no program /nosuch"),
        ({"model": "/nosuch.gguf"}, "model: user llama-server cannot read /nosuch.gguf"),
        (
            {"ssl_key_file": "/nosuch", "ssl_cert_file": "/nosuch"},
            "ssl_key_file: user llama-server cannot read /nosuch",
        ),
        ({"split_mode": "most"}, "LLAMA_ARG_SPLIT_MODE: most; expected one of none, layer, row, tensor"),
        ({"extra_args": {"no-warmpu": True}}, "did you mean --no-warmup?"),
    ],
)
def test_what_would_fail_is_refused(preflight, given, words):
    with pytest.raises(Refused) as caught:
        preflight(**given)
    assert words in str(caught.value)


def test_a_model_that_does_not_fit_is_refused(preflight, model):
    with open(model, "r+b") as file:
        file.truncate(201 * GIB)
    with pytest.raises(Refused, match="weights take 201.0 GiB, but GPUs 0, 1 have 200.0 GiB free"):
        preflight()
    preflight(n_gpu_layers="20")
    preflight(Placed([], None, cpu=True))


def test_what_another_service_frees_before_is_free(preflight, model):
    with open(model, "r+b") as file:
        file.truncate(120 * GIB)
    used = {"pid": 7, "name": "x", "unit": "llama-server@old.service", "used_bytes": 40 * GIB}
    placed = Placed([dict(gpu(0), processes=[used])], "0")
    with pytest.raises(Refused, match="GPU 0 has 100.0 GiB free"):
        preflight(placed)
    preflight(placed, vacated=["llama-server@old.service"])


def test_where_a_running_process_is_drained():
    environ = {"LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_ARG_PORT": "9000", "LLAMA_API_KEY": "sesame-key"}
    assert service._endpoint_of(environ).url == "http://127.0.0.1:9000"
    assert service._endpoint_of({}) is None


def test_the_summary(declare):
    declared = declare()
    plan = SimpleNamespace(declared=declared)
    proof = Proof([], {}, dict, list, used={"GPU-0": GIB}, figures={"answer": "a token", "latency_seconds": 0.02})
    parts, more = service.LlamaServer().describe(plan, proof, None)
    assert parts == ["chat at http://127.0.0.1:8080, 1.0 GiB in use", "a token in 0.02 s"]
    assert more == {"url": "http://127.0.0.1:8080", "model": "chat"}
