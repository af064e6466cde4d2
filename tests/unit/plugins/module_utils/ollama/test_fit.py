# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a change is allowed, by the files of a store and what the GPUs have free."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import fit

TESTS = Path(__file__).resolve().parents[4]
GIB = 1 << 30

_spec = importlib.util.spec_from_file_location("lab_models", TESTS / "lab/ollama/models.py")
lab_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab_models)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with m70b: a header of the true shape and sparse weights."""
    folder = tmp_path_factory.mktemp("store")
    lab_models.put(folder, "m70b")
    return folder


@pytest.fixture
def ask(store: Path, fakes: Any) -> Any:
    """`ask(environ, policy, held)` returns the reason to refuse; `.fit` and `.warnings` hold the rest."""

    def run(environ: Dict[str, str], policy: str = "refuse", free: int = 139, held: Any = (0, 0, 0, 0)) -> Any:
        facts = fakes.facts(held)
        for device in facts["devices"]:
            device["memory"]["free_bytes"] = None if free is None else free * GIB
        run.warnings = []
        run.fit = fit.Fit("m70b", run.stores, environ, facts, "ollama.service", "root", policy, run.warnings.append)
        return run.fit()

    run.stores = ["/nonexistent", str(store)]
    return run


def test_what_fits_is_accepted(ask: Any) -> None:
    assert ask({"OLLAMA_SCHED_SPREAD": "1", "OLLAMA_CONTEXT_LENGTH": "4096"}) is None
    assert [gpu["index"] for gpu in ask.fit.estimate["gpus"]] == [0, 1, 2, 3]
    assert ask.fit.estimate["held_bytes"] / GIB == pytest.approx(44.5, rel=0.05)
    assert ask.fit.ratio(ask.fit.estimate["held_bytes"]) == 1.0
    assert ask.fit.ratio(0) is None


def test_context_and_parallel_requests_count(ask: Any) -> None:
    """The same model, once more than the four GPUs have: 80 layers, 8 heads, 131072 tokens, 16 requests."""
    why = ask({"OLLAMA_CONTEXT_LENGTH": "131072", "OLLAMA_NUM_PARALLEL": "16"})
    assert why.startswith("m70b does not fit: 68.5 billion parameters, Q4_1, 80 layers and 640.0 GiB of cache")
    assert "(context 131072 × 16)" in why
    assert "free are 139.0 + 139.0 + 139.0 + 139.0 GiB on 4 GPUs" in why
    assert "fewer num_parallel" in why
    assert ask({"OLLAMA_CONTEXT_LENGTH": "131072", "OLLAMA_NUM_PARALLEL": "16", "OLLAMA_KV_CACHE_TYPE": "q4_0"}) is None


def test_the_gpus_that_it_may_use_count(ask: Any) -> None:
    environ = {"OLLAMA_CONTEXT_LENGTH": "4096", "CUDA_VISIBLE_DEVICES": "2"}
    assert ask(environ) is None
    assert [gpu["index"] for gpu in ask.fit.estimate["gpus"]] == [2]
    assert "does not fit" in ask(environ, free=30)


def test_what_the_service_holds_itself_is_free_after_the_restart(ask: Any) -> None:
    environ = {"OLLAMA_CONTEXT_LENGTH": "4096", "OLLAMA_SCHED_SPREAD": "1"}
    assert "does not fit" in ask(environ, free=5)
    assert ask(environ, free=5, held=(20 * GIB,) * 4) is None


def test_the_models_own_context(ask: Any, store: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").symlink_to(store / "blobs")
    manifest = tmp_path / "manifests/registry.ollama.ai/library/m70b/latest"
    manifest.parent.mkdir(parents=True)
    document = json.loads((store / "manifests/registry.ollama.ai/library/m70b/latest").read_text())
    (store / "blobs/sha256-parameters").write_text('{"num_ctx": 8192}')
    document["layers"].append({"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:parameters"})
    manifest.write_text(json.dumps(document))
    ask.stores = [str(tmp_path)]
    assert ask({"OLLAMA_CONTEXT_LENGTH": "4096"}) is None
    assert ask.fit.estimate["context"] == 8192


def test_a_warning_or_nothing(ask: Any) -> None:
    too_much = {"OLLAMA_CONTEXT_LENGTH": "131072", "OLLAMA_NUM_PARALLEL": "16"}
    assert ask(too_much, policy="warn") is None
    assert "does not fit" in ask.warnings[0]
    assert ask(too_much, policy="ignore") is None
    assert (ask.warnings, ask.fit.estimate) == ([], None)


def test_what_cannot_be_estimated_is_accepted(ask: Any) -> None:
    assert ask({}, free=None) is None
    assert ask({"CUDA_VISIBLE_DEVICES": "9"}) is None
    assert "cannot be estimated: There is no GPU 9" in ask.warnings[0]
    ask.stores = ["/nonexistent"]
    assert ask({}) is None
    assert "cannot be estimated" in ask.warnings[0]


def test_a_host_without_gpus(store: Path) -> None:
    warnings: List[str] = []
    facts = {"source": "none", "count": 0, "devices": []}
    assert fit.Fit("m70b", [str(store)], {}, facts, "ollama.service", "root", "refuse", warnings.append)() is None
    assert warnings == []


# --- a store in which the service's user wants root to read something


@pytest.fixture
def trap(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`trap(weights=…, manifest=…, parameters=…)` makes a store, each file by a function of its path; gives its warning."""
    if os.geteuid():
        pytest.skip("needs root, who becomes the user")
    top = Path(tempfile.mkdtemp(prefix="gpufleet-"))
    top.chmod(0o755)
    manifest = top / "manifests/registry.ollama.ai/library/m70b/latest"
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:weights"},
        {"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:parameters"},
    ]

    def ask(**made: Any) -> str:
        manifest.parent.mkdir(parents=True)
        (top / "blobs").mkdir()
        files = {
            "manifest": manifest,
            "weights": top / "blobs/sha256-weights",
            "parameters": top / "blobs/sha256-parameters",
        }
        manifest.write_text(json.dumps({"layers": layers}))
        files["parameters"].write_text("{}")
        (files["weights"]).write_bytes(b"GGUF")
        for which, make in made.items():
            files[which].unlink()
            make(files[which])
        monkeypatch.setattr(fit, "_READING", 1)
        warnings: List[str] = []
        facts = {"source": "nvml", "count": 1, "devices": []}
        found = fit.Fit("m70b", [str(top)], {}, facts, "ollama.service", "nobody", "refuse", warnings.append)
        found.server = SimpleNamespace(devices=lambda _facts: [])  # type: ignore[assignment]
        assert found() is None and len(warnings) == 1 and found.estimate is None
        return warnings[0]

    ask.secret = top / "secret"  # type: ignore[attr-defined]
    ask.secret.write_text("root's own words")  # type: ignore[attr-defined]
    ask.secret.chmod(0o600)  # type: ignore[attr-defined]
    yield ask
    shutil.rmtree(top)


@pytest.mark.parametrize("which", ["weights", "parameters", "manifest"])
def test_a_link_to_a_file_of_root_is_not_read(trap: Any, which: str) -> None:
    said = trap(**{which: lambda path: path.symlink_to(trap.secret)})
    assert "Permission denied" in said and "words" not in said


@pytest.mark.parametrize("which", ["weights", "parameters"])
def test_a_pipe_is_not_waited_for(trap: Any, which: str) -> None:
    assert "it is a named pipe, expected a regular file" in trap(**{which: os.mkfifo})


def test_a_manifest_that_is_a_pipe_is_none(trap: Any) -> None:
    assert "No such file" in trap(manifest=os.mkfifo)


@pytest.mark.parametrize("which", ["weights", "parameters", "manifest"])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/urandom"])
def test_a_device_without_an_end(trap: Any, which: str, device: str) -> None:
    assert "cannot be estimated" in trap(**{which: lambda path: path.symlink_to(device)})


@pytest.mark.parametrize("which", ["weights", "parameters", "manifest"])
def test_a_folder(trap: Any, which: str) -> None:
    assert "cannot be estimated" in trap(**{which: os.mkdir})


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100000, b"7", b'{"layers": 7}', b'{"layers": [7]}', b'{"layers": [{}]}', b"\xff"]
)
def test_a_manifest_that_is_none(trap: Any, content: bytes) -> None:
    assert "cannot be estimated" in trap(manifest=lambda path: path.write_bytes(content))


def test_a_manifest_as_large_as_a_disk(trap: Any) -> None:
    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(1 << 40)

    assert "cannot be estimated" in trap(manifest=sparse)


def test_a_digest_that_leads_elsewhere(trap: Any) -> None:
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../../../etc/passwd"}]
    assert "No such file" in trap(manifest=lambda path: path.write_text(json.dumps({"layers": layers})))
