# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong while a model comes: a clear error, nothing corrupted, and the next run ends where it should."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))
sys.path.insert(0, str(TESTS / "fleet"))

import faults  # noqa: E402
import hostsetup  # noqa: E402
import house_registry  # noqa: E402
import models  # noqa: E402

STORE = "/srv/small"  # a file system of its own, which is soon full
MIB = 1 << 20
SIZE = 24  # MiB of it
MODEL = "big:v1"


@pytest.fixture(scope="module")
def served(lab: Any) -> Iterator[str]:
    """A host that serves from a small file system."""
    host = lab.reset("gpu1")
    hostsetup.install(host)
    hostsetup.sh(host, "rm -rf /var/lib/gpufleet")
    hostsetup.wait_for_api(host)
    yield host
    hostsetup.uninstall(host)
    hostsetup.sh(host, "umount -q {0} || :; rm -rf {0}".format(STORE))


@pytest.fixture(scope="module")
def registry(served: str) -> Iterator[house_registry.Registry]:
    """A registry on the host that has big:v1, of 12 MiB; the server then changes to a small store that is empty."""
    models.MODELS["big"] = models.Shape(512, 1, 1024, 8, 8, models.F32, "3M", 2048)
    found = house_registry.Registry(served)
    found.offer(served, "big", MODEL)
    hostsetup.sh(
        served,
        "mkdir -p {0}; mountpoint -q {0} || mount -t tmpfs -o size={1}m tmpfs {0}; chown ollama: {0}".format(
            STORE, SIZE
        ),
    )
    hostsetup.override(served, {"OLLAMA_NO_CLOUD": "1", "OLLAMA_MODELS": STORE, "OLLAMA_CONTEXT_LENGTH": "4096"})
    hostsetup.wait_for_api(served)
    yield found
    found.stop()


@pytest.fixture
def pull(lab: Any, served: str, registry: house_registry.Registry) -> Iterator[Callable[..., Dict[str, Any]]]:
    """`pull(**options)` declares big:v1 from the registry; the store was emptied before the test."""
    registry.fault()
    registry.rate(limited=False)
    hostsetup.sh(served, 'curl -fsX DELETE -d \'{"model": "%s"}\' %s/api/delete || :' % (MODEL, hostsetup.API))
    hostsetup.sh(
        served, "systemctl stop ollama; rm -rf {0}/blobs {0}/manifests {0}/filler; systemctl start ollama".format(STORE)
    )
    hostsetup.wait_for_api(served)
    registry.sent()

    def run(**options: Any) -> Dict[str, Any]:
        arguments = {
            "models": [MODEL],
            "registry_mirror": registry.here,
            "insecure": True,
            "progress": False,
            "free_space_margin": "0",
        }
        result = lab.module(served, "ollama_model", dict(arguments, **options))
        print("%4.1f s %s" % (result["seconds"], result["msg"]))
        return result

    yield run
    registry.fault()


def stored(host: str) -> List[str]:
    return [one["name"] for one in hostsetup.api(host, "/api/tags")["models"]]


def corrupt(host: str) -> List[str]:
    """Files of the store whose content is not what their name says; what is unfinished has another name."""
    look = "cd %s/blobs 2>/dev/null || exit 0; for f in sha256-*; do case $f in *-partial*) ;; sha256-\\*) ;;" % STORE
    look += " *) [ sha256-$(sha256sum <$f | cut -d' ' -f1) = $f ] || echo $f;; esac; done"
    return hostsetup.sh(host, look).split()


def converges(host: str, pull: Callable[..., Dict[str, Any]]) -> None:
    result = pull()
    assert not result["failed"], result["msg"]
    assert stored(host) == [MODEL]
    assert corrupt(host) == []
    assert pull()["changed"] is False


def wait_for_bytes(host: str, share: float, size: int) -> None:
    """Until a download holds so much of the model."""
    wanted = int(share * size / 1024)
    hostsetup.sh(
        host,
        "timeout 60 sh -c 'until [ $(du -sk %s/blobs 2>/dev/null | cut -f1) -ge %d ] 2>/dev/null; do sleep 0.05; done'"
        % (STORE, wanted),
        timeout=90,
    )


def meanwhile(pull: Callable[..., Dict[str, Any]], **options: Any) -> Any:
    """The pull in the background; call what is given back for its result."""
    found: List[Dict[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(pull(**options)))
    thread.start()

    def result() -> Dict[str, Any]:
        thread.join(180)
        return found[0]

    return result


def test_a_broken_pull_goes_on_where_it_ended(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.rate(registry.size // 10)
    running = meanwhile(pull, stall_timeout=10)
    wait_for_bytes(served, 0.5, registry.size)
    registry.rate(0)
    assert "stall_timeout" in running()["msg"]
    assert stored(served) == []
    registry.rate(limited=False)
    assert pull()["models"][0]["actions"] == ["pulled"]
    total = registry.sent()
    assert registry.size <= total < 1.4 * registry.size, "%d bytes of %d were sent" % (total, registry.size)
    assert corrupt(served) == []


def test_the_registry_goes_in_mid_pull(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.rate(registry.size // 10)
    running = meanwhile(pull, stall_timeout=10)
    wait_for_bytes(served, 0.3, registry.size)
    registry.fault("gone")
    result = running()
    assert result["failed"]
    seen = "the registry or the network stalls", "the connection to the registry broke off"
    assert any(text + "; what was downloaded is kept" in result["msg"] for text in seen), result["msg"]
    assert stored(served) == []
    registry.fault()
    registry.rate(limited=False)
    converges(served, pull)


def test_a_registry_that_refuses(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.fault("503")
    result = pull()
    assert result["failed"]
    assert "big:v1: pull model manifest: 503" in result["msg"]
    registry.fault()
    converges(served, pull)


def test_a_layer_that_is_not_what_was_promised(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.fault("corrupt")
    result = pull()
    assert result["failed"]
    assert "digest mismatch" in result["msg"]
    assert "the file was removed" in result["msg"]
    assert stored(served) == []
    assert corrupt(served) == []
    registry.fault()
    converges(served, pull)


def test_a_disk_that_is_full_at_nine_tenths(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.rate(registry.size // 8)
    running = meanwhile(pull)
    wait_for_bytes(served, 0.3, registry.size)
    # somebody else takes what is free but for nine tenths of the model
    room = SIZE * MIB - int(0.9 * registry.size)
    hostsetup.sh(served, "dd if=/dev/zero of=%s/filler bs=64k count=%d 2>/dev/null" % (STORE, room // 65536))
    result = running()
    assert result["failed"]
    assert "no space left on device; free space on the disk of the store" in result["msg"], result["msg"]
    assert stored(served) == []
    registry.rate(limited=False)
    again = pull()
    assert again["failed"]
    assert "on the disk of %s and must leave" % STORE in again["msg"], "found out before the next download"
    hostsetup.sh(served, "rm %s/filler" % STORE)
    converges(served, pull)


def test_the_service_is_killed_in_mid_pull(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.rate(registry.size // 10)
    running = meanwhile(pull)
    wait_for_bytes(served, 0.4, registry.size)
    hostsetup.sh(served, "systemctl kill -s KILL ollama")
    result = running()
    assert result["failed"]
    registry.rate(limited=False)
    hostsetup.wait_for_api(served)
    assert stored(served) == []
    converges(served, pull)


def test_the_service_is_killed_in_mid_load(served: str, lab: Any, pull: Any) -> None:
    pull()
    faults.worker(served, "slow-load:30")
    loaded = {"models": [{"name": MODEL, "state": "loaded"}], "progress": False}
    found: List[Dict[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(lab.module(served, "ollama_model", loaded)))
    thread.start()
    try:
        hostsetup.sh(
            served, "timeout 60 sh -c 'until pgrep -x llama-server; do sleep 0.05; done' >/dev/null", timeout=90
        )
        hostsetup.sh(served, "systemctl kill -s KILL ollama")
        thread.join(120)
    finally:
        faults.clear(served)
    assert found[0]["failed"]
    assert "127.0.0.1:11434" in found[0]["msg"], found[0]["msg"]
    hostsetup.wait_for_api(served)
    again = lab.module(served, "ollama_model", loaded)
    assert again["models"][0]["actions"] == ["loaded"], again["msg"]
    lab.module(served, "ollama_model", {"models": [{"name": MODEL, "state": "unloaded"}]})


def test_two_runs_at_once(served: str, registry: house_registry.Registry, pull: Any) -> None:
    registry.rate(registry.size // 4)
    one, other = meanwhile(pull), meanwhile(pull)
    results = [one(), other()]
    assert not any(result["failed"] for result in results), json.dumps([result["msg"] for result in results])
    registry.rate(limited=False)
    assert [result["changed"] for result in results].count(True) == 1, "the second one finds it there"
    assert registry.sent() < 1.5 * registry.size
    assert corrupt(served) == []
    converges(served, pull)
