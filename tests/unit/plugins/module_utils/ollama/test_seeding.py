# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that seeds: what it offers and to whom, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from waiting import until

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import seeding
from ansible_collections.gpufleet.inference.plugins.module_utils.programs import seed_server
from ansible_collections.gpufleet.inference.plugins.module_utils.seeding import offer
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import ManagerError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock, users
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

TOKEN = "0123456789abcdef" * 2
WEIGHTS = b"weights " * 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def converge(params: Any, check_mode: bool, warn: Any, system: Any) -> Dict[str, Any]:
    models = [{"name": name, "source": "ollama"} for name in params.get("models") or ()]
    return offer.converge(dict(params, models=models), check_mode, warn, {"ollama": seeding.read}, system)


def unable(params: Any, check_mode: bool, system: Any) -> str:
    """What a host that cannot seed warns of."""
    warnings: List[str] = []
    result = converge(params, check_mode, warnings.append, system)
    assert (result["changed"], result["models"], result["unit"]) == (False, {}, "")
    assert warnings == [result["msg"]] and warnings[0].startswith("does not seed: ")
    return warnings[0]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with big:v1."""
    parts = []
    (tmp_path / "blobs").mkdir()
    for content in (b"{}", WEIGHTS):
        (tmp_path / "blobs" / ("sha256-" + sha256(content))).write_bytes(content)
        parts.append({"digest": "sha256:" + sha256(content), "size": len(content)})
    manifest = tmp_path / "manifests/registry.ollama.ai/library/big/v1"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"config": parts[0], "layers": parts[1:]}))
    (tmp_path / "secret").write_text("of somebody else")
    return tmp_path


@pytest.fixture
def port(free_port: Any) -> int:
    return free_port()


class FakeSystem:
    """Runs the program as systemd would: with the file as its standard input."""

    def __init__(self, store: Path) -> None:
        self.environment = {"OLLAMA_MODELS": str(store)}
        self.process: Optional[subprocess.Popen] = None
        self.stopped: List[str] = []
        self.command: List[str] = []
        self.fails, self.state = "", ""

    def names(self, directory: str) -> List[str]:
        return []

    def show(self, unit: str) -> Dict[str, str]:
        if unit == "ollama.service":
            return {"MainPID": str(os.getpid())}
        runs = self.process is not None and self.process.poll() is None
        return {"ActiveState": self.state or ("active" if runs else "inactive")}

    def environ(self, pid: int) -> Dict[str, str]:
        return self.environment

    def run_transient(self, unit: str, description: str, command: List[str], properties: Dict[str, str]) -> None:
        if self.fails:
            raise ManagerError(self.fails)
        file = properties["StandardInput"].partition(":")[2]
        assert os.stat(file).st_mode & 0o777 == 0o600
        self.command, self.properties = command, properties
        with open(file) as program:
            self.process = subprocess.Popen(command, stdin=program)

    def stop(self, unit: str, limit: float) -> None:
        self.stopped.append(unit)
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def system(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystem]:
    monkeypatch.setattr(lock, "FOLDER", str(tmp_path / "run"))
    fake = FakeSystem(store)
    yield fake
    fake.stop("", 0)


def declared(port: int, **more: Any) -> Dict[str, Any]:
    found = {"state": "started", "models": ["big:v1"], "token": TOKEN, "peers": None, "address": "127.0.0.1"}
    return dict(dict(found, port=port, idle_timeout=600, unit="ollama", host=None), **more)


def get(url: str, method: str = "GET", span: str = "") -> Tuple[int, Any, bytes]:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *words: Any) -> None:
            return None

    request = urllib.request.Request(url, method=method, headers={"Range": span} if span else {})
    try:
        with urllib.request.build_opener(Stay, urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_a_peer_gets_what_is_offered_and_nothing_else(system: FakeSystem, store: Path, port: int) -> None:
    result = converge(declared(port), False, print, system)
    manifest = (store / "manifests/registry.ollama.ai/library/big/v1").read_bytes()
    assert result["models"] == {"big:v1": sha256(manifest)}
    assert result["url"] == "http://127.0.0.1:%d" % port
    assert result["msg"] == "http://127.0.0.1:%d offers big:v1" % port
    assert (result["changed"], result["unit"]) == (True, "gpufleet-seed-%d.service" % port)
    base = "%s/v2/gpufleet-%s/%s" % (result["url"], TOKEN, sha256(manifest))
    status, headers, content = get(base + "/manifests/seed")
    assert (status, content) == (200, manifest)

    blob = base + "/blobs/sha256:" + sha256(WEIGHTS)
    status, headers, content = get(blob, "HEAD")
    assert (status, headers["Content-Length"], content) == (200, str(len(WEIGHTS)), b"")
    status, headers, content = get(blob)
    assert status == 307
    there = headers["Location"]
    assert there.startswith("http://[::ffff:127.0.0.1]:%d/" % port), "another host name, or Ollama does not follow"
    there = there.replace("[::ffff:127.0.0.1]", "127.0.0.1")
    assert get(there)[0::2] == (200, WEIGHTS)
    status, headers, content = get(there, span="bytes=100-199")
    assert (status, headers["Content-Range"], content) == (206, "bytes 100-199/%d" % len(WEIGHTS), WEIGHTS[100:200])
    assert get(there, span="bytes=7990-")[2] == WEIGHTS[7990:]
    assert get(there, span="bytes=9000-")[0] == 416

    for path in (
        "/v2/",
        "/secret",
        "/v2/gpufleet-%s/%s/manifests/seed" % ("f" * 32, sha256(manifest)),
        "/v2/gpufleet-%s/%s/blobs/sha256:%s" % ("f" * 32, sha256(manifest), sha256(WEIGHTS)),
        "/gpufleet-%s/blobs/../../secret" % TOKEN,
        "/gpufleet-%s/blobs/sha256:%s" % (TOKEN, "0" * 64),
    ):
        assert get(result["url"] + path)[0] == 404, path


def test_the_token_is_in_no_command_line_and_no_file(system: FakeSystem, port: int, tmp_path: Path) -> None:
    converge(declared(port), False, print, system)
    assert system.command == [sys.executable, "-I", "-"]
    assert TOKEN not in json.dumps(system.properties)
    assert list((tmp_path / "run").iterdir()) == [] and (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert system.properties["User"] == str(os.getuid())
    sandbox = {
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "PrivateDevices": "yes",
    }
    assert sandbox.items() <= system.properties.items()
    assert system.properties["StandardInput"] == "file:%s/run/gpufleet-seed-%d.service.py" % (tmp_path, port)
    own, end = "gpufleet-seed-%d.service" % port, {"state": "stopped", "port": port}
    ended = {"changed": True, "unit": own, "models": {}, "msg": own + " ended"}
    assert converge(end, True, print, system) == ended and system.stopped == []
    assert converge(end, False, print, system) == ended and system.stopped == [own]
    assert converge(end, False, print, system) == {**ended, "changed": False, "msg": "no " + own}
    assert system.stopped == [own]
    for state in ("activating", "deactivating"):
        system.state = state
        assert converge(end, True, print, system)["changed"], "its port is not free yet"


def test_check_mode_starts_nothing(system: FakeSystem, port: int) -> None:
    result = converge(declared(port, unit="ollama.service"), True, print, system)
    assert result["changed"] and result["url"] and result["models"]
    assert system.process is None


def test_one_of_a_killed_run_makes_room(system: FakeSystem, port: int) -> None:
    converge(declared(port), False, print, system)
    converge(declared(port, token="f" * 32), False, print, system)
    assert system.stopped == ["gpufleet-seed-%d.service" % port]


def test_a_port_on_which_there_was_one_just_now(system: FakeSystem, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as former, socket.create_connection(("127.0.0.1", port)):
        former.accept()[0].close()  # which waits in the kernel for a minute
    assert converge(declared(port), False, print, system)["url"]


@pytest.mark.parametrize("wrong", [{"token": "short"}, {"token": None}, {"models": []}])
def test_a_wrong_declaration(system: FakeSystem, port: int, wrong: Dict[str, Any]) -> None:
    with pytest.raises(Refused, match="expected"):
        converge(declared(port, **wrong), False, print, system)


def test_what_cannot_be_offered(system: FakeSystem, store: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search("none: cannot be offered", unable(declared(port, models=["none"]), False, system))
    assert re.search(
        r"finds no address by which its peers \(localhost\) could reach it",
        unable(declared(port, address=None, peers=["localhost"]), False, system),
    )
    assert re.search(
        r"finds no address by which its peers \(none given\)", unable(declared(port, address=None), False, system)
    )
    with socket.create_server(("127.0.0.1", port)):
        assert re.search("cannot listen at 127.0.0.1", unable(declared(port), False, system))
    system.fails = "systemd-run failed"
    assert re.search("systemd-run failed", unable(declared(port), False, system))
    system.fails = ""
    monkeypatch.setattr(offer, "source_of", lambda program: "raise SystemExit(1)")
    monkeypatch.setattr(offer, "_STARTS", 600)
    assert re.search("service ended; see journalctl -u gpufleet-seed-%d" % port, unable(declared(port), False, system))
    monkeypatch.setattr(offer, "source_of", lambda program: "import time\ntime.sleep(60)")
    monkeypatch.setattr(offer, "_STARTS", 0.1)
    monkeypatch.setattr(
        offer, "local_address_towards", lambda peers: setattr(system, "state", "activating") or "127.0.0.1"
    )
    system.stopped.clear()
    assert re.search(
        "service does not listen; see journalctl -u gpufleet-seed-%d" % port,
        unable(declared(port, address=None), False, system),
    )
    system.state = ""
    assert system.stopped == ["gpufleet-seed-%d.service" % port] and list(Path(lock.FOLDER).iterdir()) == []
    (store / "blobs" / ("sha256-" + sha256(WEIGHTS))).unlink()
    assert re.search("its store has no .*sha256-" + sha256(WEIGHTS), unable(declared(port), False, system))
    system.environment = {"X": "1"}
    assert re.search("does not report where its models are", unable(declared(port), False, system))


USER = users.Ids(40404, 40404, [40404])


@pytest.fixture
def users_store(store: Path, system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The store, of a server that runs as a user of its own, in a folder that this one may enter."""
    monkeypatch.setattr(users, "ids_of_process", lambda pid: USER)
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        os.chmod(folder, 0o755)
        place = Path(folder, "store")
        shutil.copytree(store, place)
        for path in [place, *place.rglob("*")]:
            os.chown(path, USER.uid, USER.gid)
        (Path(folder) / "shadow").write_text("of root")
        (Path(folder) / "shadow").chmod(0o600)
        system.environment = {"OLLAMA_MODELS": str(place)}
        yield place


def _manifest_of(digest: str) -> str:
    return json.dumps({"config": {"digest": digest}, "layers": []})


MANIFEST_FILE = "manifests/registry.ollama.ai/library/big/v1"
TRAPS: Dict[str, Callable[[Path], object]] = {
    "a blob leads to root's": lambda at: (at / WEIGHTS_FILE).symlink_to(at.parent / "shadow"),
    "a blob is a pipe": lambda at: os.mkfifo(at / WEIGHTS_FILE),
    "a blob is a device": lambda at: (at / WEIGHTS_FILE).symlink_to("/dev/zero"),
    "the manifest leads to root's": lambda at: (at / MANIFEST_FILE).symlink_to(at.parent / "shadow"),
    "the manifest is a pipe": lambda at: os.mkfifo(at / MANIFEST_FILE),
    "the manifest is a device": lambda at: (at / MANIFEST_FILE).symlink_to("/dev/zero"),
    "the manifest has no end": lambda at: ((at / MANIFEST_FILE).touch(), os.truncate(at / MANIFEST_FILE, 1 << 40)),
    "a digest is a path": lambda at: (at / MANIFEST_FILE).write_text(_manifest_of("sha256:../../../shadow")),
    "a digest leads to readable files": lambda at: (at / MANIFEST_FILE).write_text(
        _manifest_of("../../../../etc/passwd")
    ),
}
WEIGHTS_FILE = "blobs/sha256-" + sha256(WEIGHTS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("check", [True, False])
def test_what_the_user_lays_into_its_store_is_not_offered(
    users_store: Path, system: FakeSystem, port: int, trap: str, check: bool
) -> None:
    name = WEIGHTS_FILE if "blob" in trap else MANIFEST_FILE
    (users_store / name).unlink()
    TRAPS[trap](users_store)
    message = unable(declared(port), check, system)
    assert "big:v1: cannot be offered" in message and "of root" not in message and system.process is None


# --- the program


MANIFEST = "sha256:" + "a" * 64
FILE = "/p/blobs/sha256:"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """`served(idle)`: the program, offering the files full and none, with a connection that is kept."""
    begun: List[Any] = []

    def begin(idle: float = 60) -> Tuple[Any, threading.Thread, http.client.HTTPConnection]:
        blobs = {}
        for letter, content in (("b", WEIGHTS), ("c", b"")):
            (tmp_path / letter).write_bytes(content)
            blobs["sha256:" + letter * 64] = str(tmp_path / letter)
        config = {"address": "127.0.0.1", "port": 0, "idle": idle, "prefix": "p", "type": "t/m", "blobs": blobs}
        server = seed_server.make({**config, "manifests": {MANIFEST: "{}"}})

        def run() -> None:
            with contextlib.suppress(SystemExit):
                server.serve_forever(0.01)

        serving = threading.Thread(target=run, daemon=True)
        serving.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
        begun.extend([connection, server, serving])
        return server, serving, connection

    yield begin
    begun[0].close()
    if begun[2].is_alive():
        begun[1].shutdown()
    begun[1].server_close()


def test_many_requests_over_one_connection(served: Any, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    connection = served()[2]

    def ask(path: str, method: str = "GET", span: str = "") -> Tuple[int, Dict[str, str], bytes]:
        connection.request(method, path, headers={"Range": span} if span else {})
        answer = connection.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.startswith("Content")}
        return answer.status, headers, answer.read()

    manifest, size = "/v2/p/%s/manifests/seed" % ("a" * 64), len(WEIGHTS)
    for method, body in (("HEAD", b""), ("GET", b"{}")):
        assert ask(manifest, method) == (200, {"Content-Type": "t/m", "Content-Length": "2"}, body)
    full, none = FILE + "b" * 64, FILE + "c" * 64
    assert ask(full, "HEAD", "bytes=0-9")[::2] == (206, b"")
    for span, first, last in (("bytes=5-5", 5, 5), ("bytes=100-99999", 100, size - 1), ("bytes=7-", 7, size - 1)):
        length = str(last - first + 1)
        expected = {"Content-Length": length, "Content-Range": "bytes %d-%d/%d" % (first, last, size)}
        assert ask(full, span=span) == (206, expected, WEIGHTS[first : last + 1])
    for path, span in ((full, "bytes=%d-" % size), (none, "bytes=0-")):
        assert ask(path, span=span) == (416, {"Content-Length": "0"}, b"")
    assert ask(none) == (200, {"Content-Length": "0"}, b"")
    assert ask(full, span="bytes=-5") == (200, {"Content-Length": str(size)}, WEIGHTS), "what it does not understand"
    (tmp_path / "b").unlink()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(full)
    os.mkfifo(tmp_path / "b")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(full)
    assert capfd.readouterr().err == "", "neither the paths, in which the token is, nor that a peer or file is gone"


def test_a_server_that_does_not_run(system: FakeSystem, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = {"ActiveState": "inactive"}
    for answers, words in (
        ([idle, {"MainPID": "0"}], "ollama.service does not run"),
        ([idle, {"MainPID": str(os.getpid())}, {}], "ollama.service ended just now"),
    ):
        monkeypatch.setattr(system, "show", lambda unit, answers=answers: answers.pop(0))
        assert re.search(words, unable(declared(port), False, system))


def test_it_ends_when_nobody_asks(served: Any) -> None:
    server, serving, connection = served(idle=0.05)
    serving.join(20)
    assert not serving.is_alive()
    with pytest.raises(SystemExit) as ended:
        server.service_actions()
    assert ended.value.code == 0, "the unit has not failed"


def test_who_still_loads_is_waited_for_and_who_asks_again(served: Any, tmp_path: Path) -> None:
    server, serving, connection = served()
    os.truncate(tmp_path / "b", 64 << 20)  # more than is on its way before somebody reads
    connection.request("GET", FILE + "b" * 64)
    until(lambda: server._busy)
    server.idle = 0.0
    serving.join(0.3)
    assert serving.is_alive()
    server.idle = 0.5
    begun = time.monotonic()
    connection.getresponse().read()
    serving.join(20)
    assert not serving.is_alive() and time.monotonic() - begun > 0.5, "it waits anew after a request"


def test_the_way_to_a_peer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no way to anywhere")
        own = probe.getsockname()[0]
    assert offer.local_address_towards(["no such name.invalid", "127.0.0.1", "192.0.2.1"]) == own
