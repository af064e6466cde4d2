# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's stand-in worker, models and archive, as far as they can be tried without a host."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Optional

import pytest

TESTS = Path(__file__).resolve().parents[2]
OLLAMA = TESTS / "lab/ollama"
RECORDED = {row["name"]: row for row in json.loads((TESTS / "unit/fixtures/ollama/placement-h200x4.json").read_text())}
UUIDS = ["GPU-%08d-0000-4000-8000-%012d" % (n, n) for n in range(1, 5)]


def load(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("lab_ollama_" + name.replace("-", "_"), str(OLLAMA / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


worker, models, archive = load("llama-server"), load("models.py"), load("archive.py")


def model(folder: Path, name: str) -> Any:
    """One of the lab's models, as the worker sees it."""
    models.write_gguf(folder / name, name)
    return worker.Model(*worker.gguf(folder / name), cells=4096, batch=512)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("9", []),
        ("foo", []),
        ("1,0", [1, 0]),
        ("0, 1", [0, 1]),
        ("0,9", [0]),
        ("0,-1,1", [0]),
        ("0,,1", [0]),
        ("0,0", []),
        ("1,2,1", []),
        (" 1", [1]),
        ("1x", [1]),
        (UUIDS[2], [2]),
        ("%s,%s" % (UUIDS[3], UUIDS[2]), [3, 2]),
        ("GPU-00000002", [1]),
        ("GPU-0", []),
        ("GPU-", []),
        ("1," + UUIDS[0], [1]),
        (UUIDS[0] + ",1", [0]),
        ("GPU-00000000-dead-beef-0000-000000000000", []),
    ],
)
def test_visible_devices_as_cuda_reads_them(value: Optional[str], left: List[int]) -> None:
    assert worker.visible(value, UUIDS) == left


@pytest.mark.parametrize(
    ("row", "step", "name", "free"),
    [
        ("default", 0, "m70b", [142627, 0, 0, 0]),
        ("howto", 0, "m70b", [142627] * 4),
        ("two-by-index", 0, "m32b", [0, 0, 142627, 142627]),
        ("foreign-3", 0, "m8b", [2543] * 4),
        ("foreign-30", 0, "m70b", [30191] * 4),
    ],
)
def test_layers_are_split_as_recorded(row: str, step: int, name: str, free: List[int], tmp_path: Path) -> None:
    recorded = RECORDED[row]["steps"][step]
    count, shares = worker.place(model(tmp_path, name), [mib for mib in free if mib])
    held = [share.total + worker.CONTEXT + worker.KERNELS for share in shares]
    assert count == models.MODELS[name].layers + 1
    assert held == pytest.approx([mib for mib in recorded["held_mib"] if mib], rel=0.01)
    assert sum(share.total for share in shares) * 2**20 == pytest.approx(recorded["ps"][name]["size_vram"], rel=0.001)


def test_what_does_not_fit_stays_at_home(tmp_path: Path) -> None:
    eight = model(tmp_path, "m8b")
    count, shares = worker.place(eight, [3000, 3000])
    assert 0 < count < 33
    assert all(share.total + 1024 <= 3000 for share in shares)
    assert worker.place(eight, [87] * 4)[0] == 0


def test_header_sizes_are_those_recorded(tmp_path: Path) -> None:
    seventy = model(tmp_path, "m70b")
    assert (tmp_path / "m70b").stat().st_size / 2**30 == pytest.approx(39.86, abs=0.01)
    assert (tmp_path / "m70b").stat().st_blocks * 512 < 1 << 20, "the file must stay sparse"
    assert sum(seventy.layers) + seventy.output == pytest.approx(40813.09, abs=0.01)
    assert models.vocabulary()[198] == "Ċ" and len(models.vocabulary()) == 258


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_model_reads_back(name: str, tmp_path: Path) -> None:
    models.write_gguf(tmp_path / name, name)
    meta, sizes = worker.gguf(tmp_path / name)
    assert dict(meta, **{"llama.attention.layer_norm_rms_epsilon": 0}) == dict(
        ((key, value) for key, _, value in models.metadata(name, models.MODELS[name])),
        **{"llama.attention.layer_norm_rms_epsilon": 0},
    )
    assert sizes == {tensor: models.size_of(dims, kind) for tensor, dims, kind in models.tensors(models.MODELS[name])}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (-1, "data is not within the file bounds"),
        (2000, "failed to read the header"),
        (10, "failed to read the header"),
    ],
)
def test_a_model_cut_short_is_refused(keep: int, message: str, tmp_path: Path) -> None:
    models.write_gguf(tmp_path / "tiny", "tiny")
    (tmp_path / "tiny").write_bytes((tmp_path / "tiny").read_bytes()[:keep])
    with pytest.raises(ValueError, match=message):
        worker.gguf(tmp_path / "tiny")


def test_a_store_is_filled_once(tmp_path: Path) -> None:
    digest = models.put(tmp_path, "tiny")
    manifest = json.loads((tmp_path / "manifests/registry.ollama.ai/library/tiny/latest").read_text())
    blob = tmp_path / "blobs" / manifest["layers"][0]["digest"].replace(":", "-")
    made = blob.stat().st_mtime_ns
    assert models.put(tmp_path, "tiny") == digest
    assert blob.stat().st_mtime_ns == made
    assert blob.stat().st_size == manifest["layers"][0]["size"]
    assert sorted(path.name for path in (tmp_path / "blobs").iterdir()) == sorted(
        part["digest"].replace(":", "-") for part in [manifest["config"], *manifest["layers"]]
    )


def run_worker(*words: str) -> subprocess.CompletedProcess:
    """Run the worker, which is to see no GPU, to its end."""
    command = [str(OLLAMA / "llama-server"), *words]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=no_gpu, timeout=20, check=False)


def test_worker_without_gpus_lists_none_and_ends_well() -> None:
    done = run_worker("--list-devices", "--offline", "--verbose")
    assert done.returncode == 0
    assert "CUDA0" not in done.stdout


def test_worker_says_why_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"no model at all, but long enough for a header")
    done = run_worker("--model", str(tmp_path / "none"), "--port", "0", "-c", "4096")
    assert done.returncode == 1
    assert "error loading model: invalid magic characters" in done.stderr


@pytest.mark.parametrize("suffix", [".tgz", ".tar.zst"])
def test_archives_are_reproducible(suffix: str, tmp_path: Path) -> None:
    members: Dict[str, Any] = {
        "bin/ollama": (b"x" * 1000, 0o755),
        "lib/ollama/a.so": ("a.so.1", 0o777),
        "lib/ollama/a.so.1": (b"", 0o644),
    }
    first, second = tmp_path / "1" / ("a" + suffix), tmp_path / "2" / ("a" + suffix)
    for path in (first, second):
        archive.write(path, members)
    assert first.read_bytes() == second.read_bytes()
    subprocess.run(["sha256sum", "--quiet", "--check", "sha256sum.txt"], cwd=first.parent, check=True)
    subprocess.run(["tar", "-xf", str(first)], cwd=first.parent, check=True)
    assert (first.parent / "bin/ollama").stat().st_mode & 0o777 == 0o755
    assert (first.parent / "lib/ollama/a.so").readlink() == Path("a.so.1")
    if suffix == ".tgz":
        with tarfile.open(first) as tar:
            assert sorted(tar.getnames()) == sorted(members)


def test_another_archive_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_ARCHIVE", str(tmp_path / "other.tgz"))
    with pytest.raises(SystemExit, match="is no file"):
        archive.path()
    (tmp_path / "other.tgz").write_bytes(b"")
    assert archive.path() == tmp_path / "other.tgz"
