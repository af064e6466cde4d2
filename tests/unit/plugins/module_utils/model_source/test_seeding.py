# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model goes from host to host by the real program; what is damaged or not given comes from the hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from typing import Any, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import download, source
from ansible_collections.gpufleet.inference.plugins.module_utils.programs import seed_server
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import model, offer
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused

COMMIT, TOKEN = "a" * 40, "5" * 32
PARAMETERS = {"state": "started", "token": TOKEN, "address": "127.0.0.1", "peers": None, "idle_timeout": 60}
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 300000}


def converge(params: Any, check_mode: bool, warn: Any, system: Any) -> Any:
    return offer.converge(params, check_mode, warn, {"huggingface": model.read, "modelscope": model.read}, system)


def unable(params: Any, check_mode: bool, system: Any) -> str:
    """What a host that cannot seed warns of."""
    warnings: List[str] = []
    result = converge(params, check_mode, warnings.append, system)
    assert (result["changed"], result["models"], result["unit"]) == (False, {}, "")
    assert warnings == [result["msg"]] and warnings[0].startswith("does not seed: ")
    return warnings[0]


@pytest.fixture
def owner(tmp_path):
    """A host's folder with the model, as model_source leaves it."""
    folder = tmp_path / "owner/huggingface/o/m"
    (folder / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT + "\n")
    for name, content in FILES.items():
        (folder / COMMIT / name).write_bytes(content)
    sizes = {name: len(content) for name, content in FILES.items()}
    (folder / COMMIT / "gpufleet.json").write_text(json.dumps({"files": sizes}))
    return tmp_path / "owner"


@pytest.fixture
def offered(owner, monkeypatch, free_port):
    """What peers are told of it, while the real program serves it."""
    running = []

    def start(own, uid, config, system):
        assert uid == 65534, "who may read what all may read, and nothing else"
        running.append(seed_server.make(config))
        threading.Thread(target=running[0].serve_forever, args=(0.01,), daemon=True).start()

    monkeypatch.setattr(offer, "_start", start)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    model = {"name": "o/m", "source": "huggingface", "revision": None, "root": str(owner)}
    yield converge(asked(free_port(), [model]), False, print, NoUnit())
    running[0].shutdown()
    running[0].server_close()


class NoUnit:
    """A systemd that knows none."""

    def show(self, unit):
        return {"ActiveState": "inactive"}


def asked(port, models, **more):
    return {**PARAMETERS, "models": models, "port": port, **more}


def peer(tmp_path, offered, warnings, token=TOKEN, check=False, **more):
    others = {"url": "http://127.0.0.1:9", "token": token, "models": {"huggingface o/others main": {}}}
    seeds = [others, {"url": offered["url"], "token": token, "models": offered["models"]}]
    params = {"name": "o/m", "source": "huggingface", "revision": None, "url": "http://127.0.0.1:9", "token": None}
    params.update(include=[], exclude=[], update=False, offline=False, defer_downloads=False, seeds=seeds)
    params.update({"free_space_margin": "0", "root": str(tmp_path / "peer"), **more})
    return source.converge(params, check, warnings.append)


def test_a_peer_has_it_from_there(tmp_path, offered):
    warnings = []
    result = peer(tmp_path, offered, warnings)
    assert result["changed"] and result["commit"] == COMMIT and warnings == []
    assert result["msg"] == "loaded main of o/m from %s, 2 files, 0.3 MiB" % offered["url"]
    assert result["bytes"] == 300002
    there = tmp_path / "peer/huggingface/o/m" / COMMIT
    assert {name: (there / name).read_bytes() for name in FILES} == FILES
    record = json.loads((there / "gpufleet.json").read_text())
    assert record["sha256"]["config.json"] == hashlib.sha256(b"{}").hexdigest(), "which it need not count to give it on"
    again = peer(tmp_path, offered, [])
    assert not again["changed"]
    offered["models"]["huggingface o/m v1"] = offered["models"].pop("huggingface o/m main")
    assert peer(tmp_path, offered, [], token="of no use", revision="v1")["changed"], "its name alone"
    assert not peer(tmp_path, {"url": "", "models": {}}, [], revision="v1")["changed"]
    assert TOKEN not in str(offered) + str(result)


def test_a_damaged_file_is_not_taken(tmp_path, owner, offered):
    (owner / "huggingface/o/m" / COMMIT / "config.json").write_bytes(b"[]")
    warnings = []
    with pytest.raises((Refused, Failed), match="127.0.0.1:9"):
        peer(tmp_path, offered, warnings)
    assert "so the hub is used" in warnings[0] and hashlib.sha256(b"{}").hexdigest() in warnings[0]
    assert not (tmp_path / "peer/huggingface/o/m" / COMMIT).exists()


def test_who_does_not_know_the_token_gets_nothing(tmp_path, offered):
    warnings, wrong = [], "6" * 32
    with pytest.raises((Refused, Failed)):
        peer(tmp_path, offered, warnings, token=wrong)
    assert "so the hub is used" in warnings[0] and wrong not in warnings[0]
    assert "/gpufleet-…/blobs/sha256:" in warnings[0]


def test_only_told_whether_it_is_there(tmp_path, offered):
    told = peer(tmp_path, offered, [], defer_downloads=True)
    assert (told["changed"], told["needs"], told["path"]) == (False, ["huggingface o/m main"], None)
    peer(tmp_path, offered, [])
    assert "needs" not in peer(tmp_path, offered, [], defer_downloads=True)


def test_one_that_is_to_be_updated_and_is_as_it_was(tmp_path, offered):
    assert peer(tmp_path, offered, [], update=True)["changed"]
    again = peer(tmp_path, offered, [], update=True)
    assert (again["changed"], again["bytes"], again["msg"]) == (False, 0, "main of o/m is there")


def test_check_mode_asks_no_other_host(tmp_path, offered):
    warnings = []
    with pytest.raises((Refused, Failed), match="127.0.0.1:9"):
        peer(tmp_path, offered, warnings, check=True)
    assert warnings == [] and not (tmp_path / "peer").exists()


def test_no_space(tmp_path, offered):
    part = tmp_path / "peer/huggingface/o/m" / (".%s.part" % COMMIT)
    part.mkdir(parents=True)
    (part / "model.safetensors.part").write_bytes(b"w" * 100000)
    with pytest.raises((Refused, Failed), match=r"needed are 0\.2 MiB"):
        peer(tmp_path, offered, [], free_space_margin="1000TB")
    assert peer(tmp_path, offered, [])["changed"]


def test_an_unsafe_name_is_not_taken(tmp_path, offered):
    offered["models"]["huggingface o/m main"]["files"][0]["path"] = "../../evil"
    warnings = []
    with pytest.raises((Refused, Failed)):
        peer(tmp_path, offered, warnings)
    assert "unsafe name" in warnings[0]
    offered["models"]["huggingface o/m main"].update(commit="../../../evil", files=[])
    with pytest.raises((Refused, Failed)):
        peer(tmp_path, offered, warnings)
    assert "names '../../../evil' as the commit; expected hexadecimal digits" in warnings[1]


def test_what_cannot_be_offered(owner, free_port):
    model = {"name": "o/other", "source": "huggingface", "revision": None, "root": str(owner)}
    assert re.search("main of o/other is not in", unable(asked(free_port(), [model]), False, NoUnit()))
    assert re.search("is not in", unable(asked(free_port(), [dict(model, revision=COMMIT)]), False, NoUnit()))
    for wrong in ({"token": "short"}, {"models": []}, {"models": [dict(model, name="no-slash")]}):
        with pytest.raises(Refused, match="expected"):
            converge({**asked(free_port(), [model]), **wrong}, False, print, NoUnit())


def test_a_checksum_that_is_known_is_not_counted_again(owner, free_port):
    marker = owner / "huggingface/o/m" / COMMIT / "gpufleet.json"
    known = {"config.json": "0" * 64}
    marker.write_text(json.dumps({"sha256": known, **json.loads(marker.read_text())}))
    model = {"name": "o/m", "source": "huggingface", "revision": COMMIT, "root": str(owner)}
    told = converge(asked(free_port(), [model]), True, print, NoUnit())
    weights = {"path": "model.safetensors", "size": 300000, "sha256": hashlib.sha256(b"w" * 300000).hexdigest()}
    files = [{"path": "config.json", "size": 2, "sha256": "0" * 64}, weights]
    key = "huggingface o/m " + COMMIT
    assert told["models"] == {key: {"commit": COMMIT, "files": files}}
    assert told["msg"] == "%s offers %s" % (told["url"], key)
