# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared models against a server in memory, which answers as a real one was recorded to."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import (
    catalog,
    loader,
    models,
    names,
    records,
    registry,
    server,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.api import Answer, ApiError
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError, System
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.modules import ollama_model

TESTS = Path(__file__).resolve().parents[4]
GIB = 1 << 30
UNIT = "ollama.service"

_spec = importlib.util.spec_from_file_location("lab_models", TESTS / "lab/ollama/models.py")
lab_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab_models)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FakeServer:
    """An Ollama with a store and a memory; `done` holds what changed anything."""

    address, port, url = "127.0.0.1", 11434, "http://127.0.0.1:11434"

    def __init__(self, blobs: Path) -> None:
        self.blobs = blobs
        self.store: Dict[str, Dict[str, Any]] = {}
        self.memory: Dict[str, Dict[str, Any]] = {}
        self.uploads: Dict[str, int] = {}
        self.done: List[str] = []
        self.offers: Dict[str, str] = {}  # what a pull brings, by name
        self.lines: List[Dict[str, Any]] = []  # of the next pull or create, instead of the usual ones
        self.on_load = Answer(200, {"done": True, "done_reason": "load"})
        self.capabilities = ["completion"]
        self.parameters = ""
        self.on_gpu = 1.0  # part of a loaded model that is on GPUs
        self.forgets = False  # a loaded model is gone at once
        self.keeps = False  # a model stays loaded whatever it is told

    def have(self, name: str, content: str = "") -> None:
        self.store[name] = {"name": name, "digest": digest(content or name), "size": 100}

    def key(self, name: str) -> str:
        return next((own for own in self.store if names.same(own, name)), name)

    def tags(self) -> List[Dict[str, Any]]:
        return list(self.store.values())

    def loaded(self, timeout: float = 5.0) -> List[Dict[str, Any]]:
        return list(self.memory.values())

    def show(self, name: str) -> Answer:
        return Answer(
            200,
            {
                "modelfile": "# x\nFROM %s\nTEMPLATE {{ .Prompt }}\n" % (self.blobs / "sha256-weights"),
                "parameters": self.parameters,
                "capabilities": self.capabilities,
                "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
            },
        )

    def load(self, name: str, timeout: float, embedding: bool = False, **more: Any) -> Answer:
        self.done.append("load %s %s" % (self.key(name), json.dumps(dict(more, embedding=embedding), sort_keys=True)))
        if self.on_load.status == 200 and not self.forgets:
            size = 5 * GIB
            context = (more.get("options") or {}).get("num_ctx", 4096)
            forever = more.get("keep_alive") == -1
            self.memory[self.key(name)] = {
                "name": self.key(name),
                "size": size,
                "size_vram": int(size * self.on_gpu),
                "context_length": context,
                "expires_at": "%d-03-04T08:22:52Z" % (2319 if forever else 2026),
            }
        return self.on_load

    def unload(self, name: str) -> Answer:
        self.done.append("unload %s" % self.key(name))
        if not self.keeps:
            self.memory.pop(self.key(name), None)
        return Answer(200, {})

    def copy(self, source: str, destination: str) -> Answer:
        self.done.append("copy %s" % destination)
        if self.key(source) not in self.store:
            return Answer(404, {"error": "model not found"})
        name = destination.rpartition("/")[2]
        self.store[name] = dict(self.store[self.key(source)], name=name)
        return Answer(200, {})

    def delete(self, name: str) -> Answer:
        self.done.append("delete %s" % self.key(name))
        return Answer(200, {}) if self.store.pop(self.key(name), None) else Answer(404, {"error": "not found"})

    def has_blob(self, sha256: str) -> bool:
        return sha256 in self.uploads

    def upload(self, sha256: str, file: Any, silence: float) -> Answer:
        self.done.append("upload")
        self.uploads[sha256] = len(file.read())
        return Answer(201, {})

    def events(self, path: str, body: Dict[str, Any], silence: Any) -> Iterator[Dict[str, Any]]:
        self.done.append("%s %s" % (path, body["model"]))
        silence()
        for line in self.lines or [{"status": "pulling manifest"}, {"status": "success"}]:
            yield line
        if not self.lines and path == "/api/create":
            base = self.store.get(self.key(body.get("from", "none")), {}).get("digest", "")
            self.have(body["model"].rpartition("/")[2], json.dumps(body, sort_keys=True) + base)
        elif not self.lines:
            name = body["model"]
            self.store[self.key(name)] = {"name": name, "digest": self.offers.get(name, digest(name)), "size": 100}


class FakeSystem:
    def __init__(self, root: Path) -> None:
        self.pid, self.environment, self.refuses = 10, {"HOME": "/nonexistent"}, False
        self.instances: Dict[str, int] = {}
        self.lock = System(str(root)).lock
        self.not_yet = 0  # looks at a process that is not executed yet

    def show(self, unit: str) -> Dict[str, str]:
        assert unit in (UNIT, *self.instances)
        return {"MainPID": str(self.instances.get(unit, self.pid))}

    def names(self, directory: str) -> List[str]:
        return [UNIT + ".d", "ollama.service.wants", "sshd.service.d", *(unit + ".d" for unit in self.instances)]

    def environ(self, pid: int) -> Optional[Dict[str, str]]:
        if self.refuses:
            raise ManagerError("/proc/10/environ: only root may read it; run this with become: true")
        if self.not_yet:
            self.not_yet -= 1
            return None
        return dict(self.environment)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    lab_models.write_gguf(file, "tiny")
    return file.read_bytes()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any, tiny: bytes) -> Any:
    """A host: `api`, `system`, `held` (bytes by GPU while a model is loaded), `run(*models, check=False, **options)`."""

    class World:
        api = FakeServer(tmp_path)
        system = FakeSystem(tmp_path)
        held = [5 * GIB, 0, 0, 0]
        source = "nvml"
        warnings: List[str] = []
        total = 140

        def gather(self) -> Dict[str, Any]:
            facts = fakes.facts(tuple(self.held if self.api.memory else [0] * len(self.held)), source=self.source)
            for device in facts["devices"]:
                device["memory"] = {"total_bytes": self.total * GIB, "free_bytes": (self.total - 1) * GIB}
            return facts

        def run(self, *items: Dict[str, Any], check: bool = False, **options: Any) -> Dict[str, Any]:
            World.warnings = []
            suboptions = ollama_model.argument_spec()["models"]["options"]
            listed = [dict(dict.fromkeys(suboptions), state="present") for _item in items]
            for one, item in zip(listed, items):
                one.update(item)
            params = {key: spec.get("default") for key, spec in ollama_model.argument_spec().items()}
            params.update(options, models=listed)
            return models.converge(params, check, World.warnings.append, self.system, self.gather)

    monkeypatch.setattr(server, "Api", lambda address, port: World.api)
    monkeypatch.setattr(server, "_files_named", lambda proc, pid: ["llama-server", "sha256-weights"])
    monkeypatch.setattr(records, "FOLDER", str(tmp_path / "records"))
    monkeypatch.setattr(loader, "_MEMORY_DELAY", 0.05)
    monkeypatch.setattr(loader, "_UNLOADS", 0.05)
    monkeypatch.setattr(users, "ids_of_process", lambda pid: users.ids_of(str(os.getuid())))

    def unreachable(name: str, **more: Any) -> Any:
        raise Failed("no way")

    monkeypatch.setattr(registry, "manifest", unreachable)
    head, _size = lab_models.header("m8b", lab_models.MODELS["m8b"])
    with open(tmp_path / "sha256-weights", "wb") as file:
        file.write(head)
        file.truncate(len(head) + _size)
    (tmp_path / "tiny.gguf").write_bytes(tiny)
    World.warnings = []
    return World()


def offered(monkeypatch: pytest.MonkeyPatch, content: str, size: int = 1000) -> None:
    found = registry.Manifest(digest(content), {"sha256:layer": size})
    monkeypatch.setattr(registry, "manifest", lambda name, **more: found)


# --- present


def test_pulled_once(world: Any) -> None:
    look = world.run({"name": "big:v1"}, check=True)
    assert look["changed"]
    assert look["msg"] == "big:v1 would be pulled"
    assert look["diff"] == {"before": "big:v1: absent\n", "after": "big:v1: created in this run\n"}
    assert world.api.done == []
    result = world.run({"name": "big:v1"}, {"name": "other"})
    assert world.api.done == ["/api/pull big:v1", "/api/pull other"]
    assert result["models"][0]["actions"] == ["pulled"]
    assert result["models"][0]["digest"] == digest("big:v1")
    assert result["diff"]["after"].startswith("big:v1: %s\n" % digest("big:v1"))
    again = world.run({"name": "BIG:v1"}, {"name": "other:latest"})
    assert again["changed"] is False
    assert again["msg"] == "2 unchanged"
    assert len(world.api.done) == 2


def test_a_pinned_digest(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.api.have("big:v1", "old")
    wanted = {"name": "big:v1", "digest": "sha256:" + digest("new")[:12].upper()}
    world.api.offers["big:v1"] = digest("new")
    assert world.run(wanted)["models"][0]["actions"] == ["pulled"]
    assert world.run(wanted)["changed"] is False
    world.api.offers["big:v1"] = digest("third")
    with pytest.raises(Failed, match="big:v1: was pulled with digest"):
        world.run(dict(wanted, digest=digest("fourth")))
    assert "big:v1" in world.api.store, "it was there before"
    world.api.offers["small"] = digest("x")
    with pytest.raises(Failed, match="small: was pulled with digest"):
        world.run({"name": "small", "digest": digest("y")})
    assert "small" not in world.api.store
    before = len(world.api.done)
    offered(monkeypatch, "fifth")
    with pytest.raises(Failed, match="the registry offers digest %s; declared is" % digest("fifth")):
        world.run(dict(wanted, digest=digest("fourth")))
    assert len(world.api.done) == before, "nothing was downloaded"


def test_updates_are_asked_for(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.api.have("big:v1", "old")
    assert world.run({"name": "big:v1"}, update=True)["changed"] is False
    assert "the registry cannot be reached" in world.warnings[0]
    offered(monkeypatch, "old")
    assert world.run({"name": "big:v1"}, update=True)["changed"] is False
    assert world.warnings == []
    offered(monkeypatch, "new")
    world.api.offers["big:v1"] = digest("new")
    assert world.run({"name": "big:v1"})["changed"] is False
    assert world.run({"name": "big:v1"}, update=True)["models"][0]["digest"] == digest("new")


def test_what_does_not_go_on_the_disk(world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world.system.environment["OLLAMA_MODELS"] = str(tmp_path / "not" / "yet")
    offered(monkeypatch, "new", 1 << 60)
    with pytest.raises(
        Failed, match=r"needs 1073741824.0 GiB on the disk of %s and must leave 2.0 GiB free" % tmp_path
    ):
        world.run({"name": "big:v1"})
    world.api.uploads["layer"] = 1  # the layer is in the store already
    assert world.run({"name": "big:v1"})["changed"]
    del world.api.store["big:v1"]
    monkeypatch.setattr(registry, "manifest", lambda name, **more: (_ for _ in ()).throw(Failed("x")))
    world.api.lines = [{"status": "pulling l", "digest": "sha256:l", "total": 1 << 60, "completed": 0}]
    with pytest.raises(Failed, match="big:v1: needs 1073741824.0 GiB"):
        world.run({"name": "big:v1"})
    monkeypatch.setattr(catalog.os, "statvfs", lambda path: (_ for _ in ()).throw(OSError()), raising=False)
    world.api.lines = []
    assert world.run({"name": "big:v1"})["changed"]


def test_a_failed_pull_keeps_what_was_done(world: Any) -> None:
    world.api.have("a:latest")
    world.api.lines = [{"error": "pull model manifest: file does not exist"}]
    with pytest.raises(Failed, match="^none: pull model manifest: file does not exist; the registry has no") as error:
        world.run({"name": "a", "state": "absent"}, {"name": "none"}, {"name": "later"})
    assert error.value.result["changed"] is True
    assert [entry["name"] for entry in error.value.result["models"]] == ["a", "none"]
    world.api.lines = [{"status": "success"}]
    with pytest.raises(Failed, match="reported success, but its store has no such model"):
        world.run({"name": "none"})


def test_told_before_a_pull(world: Any) -> None:
    world.api.have("a:latest")
    result = world.run(
        {"name": "a", "state": "absent"}, {"name": "big:v1"}, {"name": "c", "digest": "a" * 12}, defer_downloads=True
    )
    assert world.api.done == []
    assert result["needs"] == ["big:v1", "c@sha256:" + "a" * 12] and not result["changed"]
    assert result["models"] == [{"name": "a", "digest": digest("a:latest")}]
    assert result["unit"] == UNIT
    assert world.run({"name": "a"}, defer_downloads=True)["changed"] is False
    assert world.run({"name": "big:v1"}, defer_downloads=True, check=True)["changed"]


# --- from elsewhere than the registry

TOKEN = "0123456789abcdef" * 2


def seed(name: str, content: str, place: str = "10.0.0.5") -> Dict[str, Any]:
    return {"url": "http://%s:11435" % place, "token": TOKEN, "models": {name: digest(content)}}


def lent(content: str, place: str = "10.0.0.5") -> str:
    return "%s:11435/gpufleet-%s/%s:seed" % (place, TOKEN, digest(content))


@pytest.fixture
def network(world: Any, monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """What can be asked for a manifest, by name; what is there is what a pull brings, too."""
    there: Dict[str, Any] = {}

    def manifest(name: str, **_more: Any) -> Any:
        if name not in there:
            raise Failed("%s: no way" % name)
        return registry.Manifest(there[name], {"sha256:" + digest("layer"): 1000})

    monkeypatch.setattr(registry, "manifest", manifest)
    world.api.offers = there
    return there


def test_a_mirror_gives_it_under_its_own_name(world: Any, network: Dict[str, Any]) -> None:
    network["mirror.example.com/library/big:v1"] = digest("big")
    result = world.run({"name": "big:v1"}, registry_mirror="mirror.example.com")
    assert world.api.done == [
        "/api/pull mirror.example.com/library/big:v1",
        "copy registry.ollama.ai/library/big:v1",
        "delete mirror.example.com/library/big:v1",
    ]
    assert list(world.api.store) == ["big:v1"]
    assert result["models"][0]["pulled_from"] == "mirror.example.com"
    assert world.run({"name": "big:v1"}, registry_mirror="mirror.example.com")["changed"] is False


def test_two_runs_take_turns(world: Any, network: Dict[str, Any], tmp_path: Path) -> None:
    """What one has borrowed and not verified yet is nothing for the other, which then has nothing to pull."""
    network["mirror.example.com/library/big:v1"] = digest("big")
    other: Dict[str, Any] = {}
    seen: List[Any] = []

    def second() -> None:
        other.update(world.run({"name": "big:v1"}, registry_mirror="mirror.example.com", progress_file=str(told)))

    told = tmp_path / "progress.json"
    thread = threading.Thread(target=second)
    copy = world.api.copy

    def copied(source: str, destination: str) -> Any:
        thread.start()
        until(told.exists)
        seen.append(json.loads(told.read_text()))
        return copy(source, destination)

    world.api.copy = copied
    result = world.run({"name": "big:v1"}, registry_mirror="mirror.example.com")
    thread.join(30)
    assert seen[0]["status"] == "waits for process %d of another run to pull" % os.getpid()
    assert result["models"][0]["actions"] == ["pulled"]
    assert other["changed"] is False
    assert other["models"][0]["digest"] == digest("big")
    assert [one for one in world.api.done if "pull" in one] == ["/api/pull mirror.example.com/library/big:v1"]


def test_what_a_run_that_pulls_has_there_is_left_to_it(world: Any) -> None:
    world.api.have(lent("big"))
    records.Records("127.0.0.1:11434").write(".unverified", {"blobs": ["sha256:" + "0" * 64]})
    with world.system.lock("models-127.0.0.1-11434", 0):
        world.run()
    assert list(world.api.store) == [lent("big")]
    assert records.Records("127.0.0.1:11434").read(".unverified")


def test_what_a_run_killed_meanwhile_left_is_not_taken_as_good(
    world: Any, network: Dict[str, Any], tmp_path: Path
) -> None:
    """It is killed while this one waits for its turn."""
    blob = tmp_path / "store" / "blobs" / ("sha256-" + digest("layer"))
    blob.parent.mkdir(parents=True)
    world.system.environment["OLLAMA_MODELS"] = str(tmp_path / "store")
    network["big:v1"] = digest("big")
    lock = world.system.lock

    @contextmanager
    def killed(*arguments: Any) -> Iterator[None]:
        with lock(*arguments):
            blob.write_text("not the layer")
            records.Records("127.0.0.1:11434").write(".unverified", {"blobs": ["sha256:" + digest("layer")]})
            yield

    world.system.lock = killed
    world.run({"name": "big:v1"}, free_space_margin="0")
    assert not blob.exists()


def test_what_was_there_by_the_mirrors_name_stays(world: Any, network: Dict[str, Any]) -> None:
    name = "mirror.example.com/library/big:v1"
    network[name] = digest("big")
    world.api.store[name] = {"name": name, "digest": digest("big"), "size": 1}
    world.run({"name": "big:v1"}, registry_mirror="mirror.example.com")
    assert sorted(world.api.store) == ["big:v1", name]


def test_another_registrys_model_has_no_mirror(world: Any) -> None:
    result = world.run({"name": "reg.example.com/team/a:v1"}, registry_mirror="mirror.example.com")
    assert world.api.done == ["/api/pull reg.example.com/team/a:v1"]
    assert result["models"][0]["pulled_from"] == "reg.example.com"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"registry_mirror": "mirror.example.com/path"}, r"expected \[http://\]HOST\[:PORT\]"),
        ({"registry_mirror": "http://mirror.example.com"}, "expected insecure: true with it"),
    ],
)
def test_a_wrong_mirror(world: Any, options: Dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        world.run({"name": "big:v1"}, **options)


def test_a_host_seeds_it(world: Any, network: Dict[str, Any]) -> None:
    network["http://" + lent("big")] = digest("big")
    result = world.run({"name": "big:v1"}, seeds=[seed("registry.ollama.ai/library/big:v1", "big")])
    assert world.api.done == [
        "/api/pull http://" + lent("big"),
        "copy registry.ollama.ai/library/big:v1",
        "delete http://" + lent("big"),
    ]
    assert list(world.api.store) == ["big:v1"]
    assert result["models"][0]["pulled_from"] == "10.0.0.5:11435"
    assert world.warnings == []


def test_the_registry_is_asked_where_the_host_does_not_answer(world: Any, network: Dict[str, Any]) -> None:
    network["big:v1"] = digest("big")
    result = world.run({"name": "big:v1"}, seeds=[seed("big:v1", "big")])
    assert result["models"][0]["pulled_from"] == "registry.ollama.ai"
    assert len(world.warnings) == 1
    assert "big:v1: cannot be pulled from http://10.0.0.5:11435, so the registry is used: " in world.warnings[0]


def test_what_a_host_seeds_must_be_what_ansible_was_told(world: Any, network: Dict[str, Any]) -> None:
    """Who stands between the hosts cannot put another model in."""
    network["http://" + lent("big")] = digest("evil")
    network["big:v1"] = digest("big")
    assert world.run({"name": "big:v1"}, seeds=[seed("big:v1", "big")])["models"][0]["digest"] == digest("big")
    assert "the registry offers digest %s; declared is %s" % (digest("evil"), digest("big")) in world.warnings[0]

    world.api.store.clear()
    network["http://" + lent("big")] = digest("big")
    world.api.offers = {"http://" + lent("big"): digest("evil"), "big:v1": digest("big")}  # asked again, it lies
    assert world.run({"name": "big:v1"}, seeds=[seed("big:v1", "big")])["models"][0]["digest"] == digest("big")
    assert list(world.api.store) == ["big:v1"]


def test_a_seed_that_is_not_wanted(world: Any, network: Dict[str, Any]) -> None:
    network["big:v1"] = digest("newer")
    network["http://" + lent("big")] = digest("big")
    world.run({"name": "big:v1", "digest": digest("newer")}, seeds=[seed("big:v1", "big"), seed("other", "big")])
    world.api.have("big:v1", "older")
    world.run({"name": "big:v1"}, seeds=[seed("big:v1", "big")], update=True)
    assert world.api.done == ["/api/pull big:v1"] * 2
    assert world.warnings == []


def test_a_full_disk_is_full_for_the_registry_too(
    world: Any, network: Dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.system.environment["OLLAMA_MODELS"] = str(tmp_path)
    network["http://" + lent("big")] = digest("big")
    with pytest.raises(Failed, match="big:v1: needs 0.0 MiB on the disk"):
        world.run({"name": "big:v1"}, seeds=[seed("big:v1", "big")], free_space_margin="100TiB")
    assert world.warnings == []


def test_what_a_killed_run_left_is_taken_away(world: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "blobs").mkdir(parents=True)
    good, bad = ("sha256-" + digest("good"), "sha256-" + digest("bad"))
    (store / "blobs" / good).write_text("good")
    (store / "blobs" / bad).write_text("broken")
    world.system.environment["OLLAMA_MODELS"] = str(store)
    world.api.have(lent("big"))
    records.Records("127.0.0.1:11434").write(
        ".unverified", {"blobs": [name.replace("-", ":") for name in (good, bad, "sha256-" + "0" * 64)]}
    )
    world.run(check=True)
    assert (store / "blobs" / bad).exists()
    world.run()
    assert [path.name for path in (store / "blobs").iterdir()] == [good]
    assert world.api.store == {}
    assert records.Records("127.0.0.1:11434").read(".unverified") == {}


def test_what_a_broken_pull_left_is_checked_at_once(world: Any, network: Dict[str, Any], tmp_path: Path) -> None:
    world.system.environment["OLLAMA_MODELS"] = str(tmp_path / "store")
    blob = tmp_path / "store" / "blobs" / ("sha256-" + digest("layer"))
    blob.parent.mkdir(parents=True)
    network["big:v1"] = digest("big")

    def broken(*_words: Any) -> Iterator[Dict[str, Any]]:
        blob.write_text("not the layer")
        yield {"error": "the connection broke"}

    world.api.events = broken
    with pytest.raises(Failed, match="the connection broke"):
        world.run({"name": "big:v1"}, free_space_margin="0")
    assert not blob.exists()


@pytest.fixture
def users_store(world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The store of a server with a user of its own, who may write there; next to it root has a file and a folder."""
    user = users.Ids(40404, 40404, [40404])
    monkeypatch.setattr(users, "ids_of_process", lambda pid: user)
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "store/blobs").mkdir(parents=True)
        for path in (Path(folder) / "store", Path(folder) / "store/blobs"):
            os.chown(path, user.uid, user.gid)
        (Path(folder) / "root").mkdir(mode=0o700)
        (Path(folder) / "root" / ("sha256-" + digest("layer"))).write_text("of root")
        world.system.environment["OLLAMA_MODELS"] = str(Path(folder) / "store")
        yield Path(folder) / "store"


TRAPS: Dict[str, Callable[[Path, str], object]] = {
    "a link to a file of root": lambda blobs, name: (blobs / name).symlink_to(blobs.parent.parent / "root" / name),
    "blobs lead to a folder of root": lambda blobs, name: (
        blobs.rmdir(),
        blobs.symlink_to(blobs.parent.parent / "root"),
    ),
    "a pipe": lambda blobs, name: os.mkfifo(blobs / name),
    "a device": lambda blobs, name: (blobs / name).symlink_to("/dev/zero"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
@pytest.mark.parametrize("trap", TRAPS)
def test_what_a_broken_pull_left_is_looked_at_as_the_user(world: Any, users_store: Path, trap: str) -> None:
    TRAPS[trap](users_store / "blobs", "sha256-" + digest("layer"))
    records.Records("127.0.0.1:11434").write(
        ".unverified", {"blobs": ["sha256:" + digest("layer"), "sha256:../../root/sha256-" + digest("layer")]}
    )
    world.run()
    assert (users_store.parent / "root" / ("sha256-" + digest("layer"))).read_text() == "of root"
    assert records.Records("127.0.0.1:11434").read(".unverified") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
@pytest.mark.parametrize("place", ["secret", "pipe", "/dev/zero"])
def test_weights_are_read_as_the_user_wherever_the_server_says_they_lie(
    world: Any, users_store: Path, place: str
) -> None:
    if place == "secret":
        (users_store.parent / "root" / "sha256-weights").write_text("a secret")
    else:
        os.mkfifo(users_store / "sha256-weights")
    world.api.blobs = {"secret": users_store.parent / "root", "pipe": users_store, "/dev/zero": Path("/dev/zero")}[
        place
    ]
    world.api.have("m8b:latest")
    world.run({"name": "m8b", "state": "loaded"}, check=True)
    assert "its need of GPU memory cannot be estimated" in world.warnings[0] and "secret" not in world.warnings[0]


def test_a_pull_that_broke_with_its_server_is_looked_at_by_the_next_run(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.system.environment["OLLAMA_MODELS"] = str(tmp_path / "store")
    record = {"blobs": ["sha256:" + digest("layer")]}
    records.Records("127.0.0.1:11434").write(".unverified", record)
    monkeypatch.undo()  # there is no process 4194305
    monkeypatch.setattr(records, "FOLDER", str(tmp_path / "records"))
    monkeypatch.setattr(server, "Api", lambda address, port: world.api)
    world.system.pid = (1 << 22) + 1
    world.run()
    assert records.Records("127.0.0.1:11434").read(".unverified") == record


def test_a_source_that_is_no_file(world: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(Failed, match="it is a named pipe, expected a regular file; expected a GGUF file"):
        world.run({"name": "mine", "from_file": str(tmp_path / "pipe.gguf")}, check=True)


def test_nothing_runs_yet_in_check_mode(world: Any) -> None:
    world.system.pid = 0
    look = world.run({"name": "big:v1"}, check=True)
    assert look["changed"]
    assert look["msg"] == "not compared, as ollama.service does not run yet: big:v1"
    with pytest.raises(Refused, match="does not run"):
        world.run({"name": "big:v1"})


def test_copies(world: Any) -> None:
    world.api.have("a:latest")
    copy = {"name": "b:v1", "copy_of": "a"}
    assert world.run(copy, check=True)["msg"] == "b:v1 would be copied"
    assert world.run(copy)["models"][0]["actions"] == ["copied"]
    assert world.run(copy)["changed"] is False
    world.api.have("a:latest", "another")
    assert world.run(copy)["changed"]
    with pytest.raises(Failed, match="b:v1: has digest .*; declared is 000000000000"):
        world.run(dict(copy, digest="0" * 12))
    with pytest.raises(Failed, match="copy_of none: the store has no such model"):
        world.run({"name": "c", "copy_of": "none"})
    world.api.copy = lambda source, destination: Answer(404, {"error": "gone"})
    with pytest.raises(Failed, match="d: cannot be copied: HTTP 404: gone"):
        world.run({"name": "d", "copy_of": "a"})


def test_created_from_a_file_and_remembered(world: Any, tmp_path: Path) -> None:
    wanted = {"name": "mine", "from_file": str(tmp_path / "tiny.gguf")}
    assert world.run(wanted, check=True)["msg"] == "mine would be created"
    assert world.api.done == []
    assert world.run(wanted)["models"][0]["actions"] == ["created"]
    assert world.api.done == ["upload", "/api/create registry.ollama.ai/library/mine:latest"]
    assert world.run(wanted)["changed"] is False
    assert world.run(wanted, check=True)["changed"] is False
    assert len(world.api.done) == 2
    # lost record: made again, found to be the same
    for file in (tmp_path / "records").rglob("*.json"):
        file.unlink()
    assert world.run(wanted)["changed"] is False
    assert world.api.done[2:] == ["/api/create registry.ollama.ai/library/mine:latest"], "the file is still there"
    # somebody else made another one of that name
    world.api.have("mine:latest", "foreign")
    assert world.run(wanted)["changed"] is True
    # another content
    with open(tmp_path / "tiny.gguf", "ab") as file:
        file.write(bytes(32))
    assert world.run(wanted)["changed"] is True
    assert world.run({"name": "mine", "state": "absent"})["changed"]
    assert not list((tmp_path / "records").rglob("*.json"))


def test_created_from_a_modelfile(world: Any, tmp_path: Path) -> None:
    world.api.have("base:latest")
    wanted = {"name": "terse", "modelfile": "FROM base\nSYSTEM Be brief."}
    assert world.run(wanted)["changed"]
    assert world.run(wanted)["changed"] is False
    assert world.run({"name": "terse", "modelfile": "FROM base\nSYSTEM Be long."})["changed"]
    world.api.have("base:latest", "newer")
    assert world.run({"name": "terse", "modelfile": "FROM base\nSYSTEM Be long."})["changed"]
    with pytest.raises(Failed, match="FROM none: the store has no such model"):
        world.run({"name": "x", "modelfile": "FROM none"})


def test_what_cannot_be_created(world: Any, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="none.gguf: No such file or directory; expected a GGUF file on this host"):
        world.run({"name": "mine", "from_file": str(tmp_path / "none.gguf")})
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    with pytest.raises(Failed, match="junk.gguf begins with b'junk'"):
        world.run({"name": "mine", "from_file": str(tmp_path / "junk.gguf")})
    assert world.api.done == []
    for lines, reason in (
        ([{"error": "supplied file was not in GGUF format"}], "cannot be created: supplied file was not"),
        ([{"status": "parsing GGUF"}], "the server ended at 'parsing GGUF', without success"),
    ):
        world.api.lines = lines
        with pytest.raises(Failed, match=reason):
            world.run({"name": "mine", "from_file": str(tmp_path / "tiny.gguf")})


# --- absent, unloaded


def test_absent_is_out_of_memory_too(world: Any) -> None:
    world.api.have("a:latest")
    world.api.load("a:latest", 1)
    world.api.done.clear()
    look = world.run({"name": "a", "state": "absent"}, check=True)
    assert look["models"][0]["actions"] == ["unloaded", "deleted"]
    assert look["diff"]["after"] == "a: absent\n"
    assert world.api.done == []
    assert world.run({"name": "a", "state": "absent"})["msg"] == "a unloaded and deleted"
    assert world.api.done == ["unload a:latest", "delete a:latest"]
    assert world.run({"name": "a", "state": "absent"})["changed"] is False


def test_a_busy_model_stays(world: Any) -> None:
    world.api.have("a:latest")
    world.api.load("a:latest", 1)
    world.api.keeps = True
    with pytest.raises(Failed, match="is still loaded after the request to unload it"):
        world.run({"name": "a", "state": "unloaded"})


# --- loaded


def test_loaded_once(world: Any) -> None:
    world.api.have("m8b:latest")
    wanted = {"name": "m8b", "state": "loaded", "keep_alive": "-1", "options": {"num_ctx": 4096}}
    look = world.run(wanted, check=True)
    assert look["models"][0]["reason"] == "is not loaded"
    assert look["models"][0]["estimate"]["fits"] is True
    assert look["models"][0]["estimate"]["gpus"][0]["index"] == 0
    assert world.api.done == []
    (entry,) = world.run(wanted)["models"]
    assert world.api.done == ['load m8b:latest {"embedding": false, "keep_alive": -1, "options": {"num_ctx": 4096}}']
    assert entry["actions"] == ["loaded"]
    assert entry["held_bytes"] == {"0": 5 * GIB}
    assert entry["estimate_ratio"] == pytest.approx(5 * GIB / entry["estimate"]["held_bytes"], abs=0.001)
    assert entry["reported"]["context"] == 4096
    again = world.run(wanted)
    assert again["changed"] is False
    assert again["models"][0]["held_bytes"] == {"0": 5 * GIB}
    assert len(world.api.done) == 1


def test_loaded_means_present(world: Any) -> None:
    look = world.run({"name": "m8b", "state": "loaded"}, check=True)
    assert look["msg"] == "m8b would be pulled and loaded"
    assert world.run({"name": "m8b", "state": "loaded"})["msg"] == "m8b pulled and loaded"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"options": {"num_ctx": 8192}}, "is loaded with a context of 4096, declared is 8192"),
        ({"keep_alive": "-1"}, "would be unloaded at 2026-03-04T08:22:52Z"),
    ],
)
def test_loaded_otherwise(world: Any, change: Dict[str, Any], reason: str) -> None:
    world.api.have("m8b:latest")
    world.run({"name": "m8b", "state": "loaded", "keep_alive": "30m"})
    assert world.run({"name": "m8b", "state": "loaded", "keep_alive": "1h"})["changed"] is False
    assert world.run(dict({"name": "m8b", "state": "loaded"}, **change))["models"][0]["reason"] == reason
    assert world.run(dict({"name": "m8b", "state": "loaded"}, **change))["changed"] is False


def test_no_more_context_than_it_was_trained_with(world: Any) -> None:
    world.api.have("m8b:latest")
    world.run({"name": "m8b", "state": "loaded"})
    world.api.memory["m8b:latest"]["context_length"] = 131072
    wanted = {"name": "m8b", "state": "loaded", "options": {"num_ctx": 200000}}
    assert world.run(wanted, check=True)["changed"] is False
    world.api.memory["m8b:latest"]["context_length"] = 4096
    assert world.run(wanted, check=True)["changed"] is True


def test_a_dead_worker_is_found_out(world: Any) -> None:
    world.api.have("m8b:latest")
    wanted = {"name": "m8b", "state": "loaded"}
    world.run(wanted)
    world.held = [0, 0, 0, 0]
    look = world.run(wanted, check=True)
    assert look["models"][0]["reason"] == (
        "its worker is dead: the server reports that it holds 5.0 GiB of GPU memory, NVML shows 0.0 GiB"
    )
    with pytest.raises(Failed, match="m8b: was loaded, but its worker is dead"):
        world.run(wanted)
    world.source = "procfs"
    assert world.run(wanted)["changed"] is False, "nothing can be told without NVML"


def test_refused_when_it_does_not_fit(world: Any) -> None:
    world.api.have("m8b:latest")
    world.total = 2
    wanted = {"name": "m8b", "state": "loaded", "options": {"num_ctx": 131072}}
    for check in (True, False):
        with pytest.raises(Failed, match=r"m8b: does not fit: 7.0 billion parameters, Q4_1, 32 layers and 16.0"):
            world.run(wanted, check=check)
    assert world.api.done == []
    (entry,) = world.run(wanted, fit="warn")["models"]
    assert entry["estimate"]["fits"] is False
    assert "does not fit" in world.warnings[0]
    world.api.memory.clear()
    (entry,) = world.run(wanted, fit="ignore")["models"]
    assert "estimate" not in entry


def test_other_models_must_go_first(world: Any, fakes: Any) -> None:
    world.api.have("m8b:latest")
    world.api.memory["other"] = {"name": "other", "size": 1, "size_vram": 1}
    world.held = [134 * GIB] * 4
    facts = world.gather()
    for device in facts["devices"]:
        device["memory"]["free_bytes"] = 1 * GIB
    world.gather = lambda: facts
    models_named = {"server": ["sha256-other"]}
    server._files_named = lambda proc, pid: models_named["server"]
    world.run({"name": "m8b", "state": "loaded"}, check=True)
    assert "fits only when Ollama unloads models" in world.warnings[0]


def test_the_context_by_the_servers_order(world: Any) -> None:
    world.api.have("m8b:latest")

    def context(**options: Any) -> int:
        item = dict({"name": "m8b", "state": "loaded"}, **options)
        return world.run(item, check=True)["models"][0]["estimate"]["context"]

    assert context() == 131072, "by the memory of the GPUs, up to what it was trained with"
    world.system.environment["OLLAMA_CONTEXT_LENGTH"] = "16384"
    assert context() == 16384
    world.api.parameters = "temperature                    0\nnum_ctx                        512\n"
    assert context() == 512
    assert context(options={"num_ctx": 2048}) == 2048
    world.system.environment["OLLAMA_NUM_PARALLEL"] = "4"
    estimate = world.run({"name": "m8b", "state": "loaded"}, check=True)["models"][0]["estimate"]
    assert (estimate["parallel"], estimate["cache_bytes"]) == (4, 2048 * 131072)


def test_the_gpus_of_the_server(world: Any) -> None:
    world.api.have("m8b:latest")
    world.system.environment.update(CUDA_VISIBLE_DEVICES="2,3", OLLAMA_SCHED_SPREAD="1", OLLAMA_KV_CACHE_TYPE="q8_0")
    estimate = world.run({"name": "m8b", "state": "loaded"}, check=True)["models"][0]["estimate"]
    assert [gpu["index"] for gpu in estimate["gpus"]] == [2, 3]
    world.system.environment["CUDA_VISIBLE_DEVICES"] = "7"
    assert world.run({"name": "m8b", "state": "loaded"}, check=True)["models"][0]["estimate"] is None
    assert "its need of GPU memory cannot be estimated: There is no GPU 7" in world.warnings[0]


def test_an_embedding_model(world: Any) -> None:
    world.api.have("embed:latest")
    world.api.capabilities = ["embedding"]
    world.api.on_load = Answer(200, {"embeddings": [[1.0]]})
    assert world.run({"name": "embed", "state": "loaded", "keep_alive": "10m"})["changed"]
    assert world.api.done == ['load embed:latest {"embedding": true, "keep_alive": "10m"}']


@pytest.mark.parametrize(
    "answer, reason",
    [
        (Answer(500, {"error": "cudaMalloc failed: out of memory"}), "cannot be loaded: HTTP 500: cudaMalloc failed"),
        (Answer(200, {"done": False}), "HTTP 200, but done is False"),
    ],
)
def test_a_load_that_fails(world: Any, answer: Answer, reason: str) -> None:
    world.api.have("m8b:latest")
    world.api.on_load = answer
    with pytest.raises(Failed, match=reason):
        world.run({"name": "m8b", "state": "loaded"})


def test_gone_at_once(world: Any) -> None:
    world.api.have("m8b:latest")
    world.api.forgets = True
    with pytest.raises(Failed, match="was loaded, but /api/ps no longer lists it: keep_alive is 0"):
        world.run({"name": "m8b", "state": "loaded", "keep_alive": "0"})


def test_partly_on_the_cpu(world: Any) -> None:
    world.api.have("m8b:latest")
    world.api.on_gpu = 0.5
    wanted = {"name": "m8b", "state": "loaded"}
    with pytest.raises(Failed, match="has 2.5 of its 5.0 GiB on GPUs, the rest runs on the CPU; it was unloaded"):
        world.run(wanted)
    assert world.api.memory == {}
    world.run(wanted, fit="warn")
    assert "has 2.5 of its 5.0 GiB on GPUs" in world.warnings[0]
    world.api.memory.clear()
    assert world.run(dict(wanted, options={"num_gpu": 0}))["changed"], "as declared"


def test_without_gpus_there_is_nothing_to_estimate(world: Any) -> None:
    world.api.have("m8b:latest")
    world.api.on_gpu = 0
    world.held = []
    (entry,) = world.run({"name": "m8b", "state": "loaded"})["models"]
    assert entry["estimate"] is None
    assert "estimate_ratio" not in entry


def test_weights_that_cannot_be_read(world: Any, tmp_path: Path) -> None:
    world.api.have("m8b:latest")
    (tmp_path / "sha256-weights").unlink()
    world.run({"name": "m8b", "state": "loaded"})
    assert "cannot be estimated" in world.warnings[0]
    world.api.memory.clear()
    world.api.show = lambda name: Answer(200, {"modelfile": "FROM scratch"})
    world.source = "procfs"
    world.run({"name": "m8b", "state": "loaded"})
    assert "the server does not report where its weights are" in world.warnings[0]


# --- declarations, and the server


@pytest.mark.parametrize(
    "items, reason",
    [
        ([{"name": "a b"}], "'a b' is not a model name"),
        ([{"name": "a", "copy_of": "/"}], "is not a model name"),
        (
            [{"name": "a", "copy_of": "b", "from_file": "/c"}],
            "a: from_file and copy_of are given; expected one of them",
        ),
        ([{"name": "a", "state": "absent", "digest": "0" * 12}], "a: digest has no meaning with state absent"),
        ([{"name": "a", "state": "unloaded", "copy_of": "b"}], "a: copy_of has no meaning with state unloaded"),
        ([{"name": "a", "keep_alive": "1h"}], "a: keep_alive and options are for state loaded only"),
        ([{"name": "a", "digest": "xyz"}], "a: digest xyz; expected 12 to 64 hexadecimal digits"),
        ([{"name": "a", "state": "loaded", "keep_alive": "1d"}], "a: keep_alive: '1d' is not a duration"),
        ([{"name": "a", "from_file": "b.gguf"}], "a: from_file b.gguf; expected an absolute path"),
        ([{"name": "a", "modelfile": "SYSTEM x"}], "a: modelfile: there is no FROM"),
        ([{"name": "a"}, {"name": "A:latest"}], "A:latest: is declared twice"),
    ],
)
def test_declarations_that_mean_nothing(world: Any, items: List[Dict[str, Any]], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        world.run(*items)


def test_the_margin_has_a_unit(world: Any) -> None:
    with pytest.raises(Refused, match="free_space_margin is '2 potatoes'; expected bytes, or a size such as 2GiB"):
        world.run({"name": "a"}, free_space_margin="2 potatoes")


def test_no_server(world: Any) -> None:
    world.api.tags = lambda: (_ for _ in ()).throw(ApiError("127.0.0.1:11434: Connection refused"))
    with pytest.raises(Refused, match="refused; expected Ollama's API at http://127.0.0.1:11434"):
        world.run({"name": "a"})
    world.system.pid = 0
    with pytest.raises(Refused, match="does not run on this host; expected a running Ollama: start it"):
        world.run({"name": "a"})
    world.system.instances = {"ollama@chat.service": 20, "ollama@down.service": 0}
    with pytest.raises(
        Refused, match="ollama.service does not run.*: name one of those that do: ollama@chat.service, "
    ):
        world.run({"name": "a"})
    world.system.pid, world.system.refuses = 10, True
    with pytest.raises(Refused, match="only root may read it; run this with become: true"):
        world.run({"name": "a"})


def test_a_server_that_systemd_has_just_started_again(world: Any) -> None:
    """Between fork and exec it has no environment of its own, which does not mean that it does not run."""
    world.system.not_yet = 2
    world.system.environment = {"HOME": "/x", "OLLAMA_MODELS": "/srv/models"}
    assert server.find(UNIT, None, world.system).store == "/srv/models"


def test_another_server_than_the_units(world: Any) -> None:
    found = server.find(UNIT, "127.0.0.1:9999", world.system)
    assert found.environ == {}
    assert found.store is None
    assert server.find(UNIT, "127.0.0.1:11434", world.system).store == "/nonexistent/.ollama/models"
    world.system.environment = {"OLLAMA_HOST": "0.0.0.0:9999", "OLLAMA_MODELS": "/srv/models"}
    assert server.find(UNIT, None, world.system).store == "/srv/models"
    with pytest.raises(Failed, match="host: "):
        server.find(UNIT, "127.0.0.1:x", world.system)


def test_no_gpu_answers(world: Any) -> None:
    facts = world.gather()
    for device in facts["devices"]:
        device["health"]["lost"] = True
    with pytest.raises(ValueError, match="no GPU of this host answers"):
        server.Server(world.api, UNIT, {}).devices(facts)


@pytest.mark.parametrize("value, spread", [("1", True), ("off", True), ("0", False), ("false", False), ("", False)])
def test_spread_as_ollama_reads_it(world: Any, value: str, spread: bool) -> None:
    assert server.Server(world.api, UNIT, {"OLLAMA_SCHED_SPREAD": value}).serving[1] is spread


def test_the_worker_by_its_command_line(tmp_path: Path, fakes: Any) -> None:
    (tmp_path / "100").mkdir()
    (tmp_path / "100" / "cmdline").write_bytes(b"llama-server\0--model\0/srv/blobs/sha256-a\0--port\x001\0")
    facts = fakes.facts((5, 0, 7, 0))
    assert server.held_by_worker(facts, UNIT, "sha256-a", str(tmp_path)) == ({fakes.uuid(0): 5, fakes.uuid(2): 7}, True)
    assert server.held_by_worker(facts, UNIT, "sha256-b", str(tmp_path))[0] == {}
    assert server.held_by_worker(facts, "other.service", "sha256-a", str(tmp_path))[0] == {}
    assert server.held_by_worker(facts, UNIT, "sha256-a", str(tmp_path / "none"))[0] == {}
    facts["devices"][0]["processes"][0]["used_bytes"] = None
    assert server.held_by_worker(facts, UNIT, "sha256-a", str(tmp_path)) == (
        {fakes.uuid(0): 0, fakes.uuid(2): 7},
        False,
    )
