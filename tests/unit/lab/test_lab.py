# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's pure parts: what it reads off this machine, what it calls its hosts, what it writes for Ansible and ssh."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lab"))

from gpulab import fleet, image, inventory, machine, podman
from gpulab.errors import LabError

DEBIAN = "http://mirror.example/debian/|bookworm|Debian|main"


@pytest.mark.parametrize(
    "indextargets, lines",
    [
        pytest.param(DEBIAN, ["deb http://mirror.example/debian/ bookworm main"], id="debian 12"),
        pytest.param(
            "http://m/debian/|bookworm||main\nhttp://m/sec/|bookworm-security||main",
            ["deb http://m/debian/ bookworm main", "deb http://m/sec/ bookworm-security main"],
            id="before the first apt-get update",
        ),
        pytest.param(
            "http://m/debian/|stable|Debian|main\nhttp://m/debian/|stable-updates|Debian|main",
            ["deb http://m/debian/ bookworm main", "deb http://m/debian/ bookworm-updates main"],
            id="a later Debian",
        ),
        pytest.param("\n".join([DEBIAN] * 3), ["deb http://mirror.example/debian/ bookworm main"], id="once each"),
        pytest.param("http://m/debian/|bookworm-backports|Debian|main", [], id="no backports"),
        pytest.param("http://m/debian/|bookworm|Debian|contrib", [], id="main alone"),
        pytest.param("https://m/docker/|bookworm|Docker|main", [], id="another's repository"),
        pytest.param("http://m/ubuntu/|noble|Ubuntu|main", [], id="ubuntu"),
        pytest.param("http://m/ubuntu/|noble||main", [], id="ubuntu before the first update"),
        pytest.param("", [], id="no sources"),
    ],
)
def test_apt_sources(indextargets: str, lines: list) -> None:
    assert machine.apt_sources(indextargets) == lines


def test_apt_sources_of_a_mirror_list() -> None:
    texts = {
        "/etc/apt/mirrors/debian.list": "# http://old.example/debian\n\nhttps://a.example/debian priority:1\nhttps://b\n"
    }
    lines = machine.apt_sources("mirror+file:/etc/apt/mirrors/debian.list/|bookworm|Debian|main", texts.__getitem__)
    assert lines == ["deb https://a.example/debian bookworm main"]


@pytest.mark.parametrize(
    "env, present, found",
    [
        ({}, {machine.CA_BUNDLE}, machine.CA_BUNDLE),
        ({}, {"/etc/pki/tls/certs/ca-bundle.crt"}, "/etc/pki/tls/certs/ca-bundle.crt"),
        ({"SSL_CERT_FILE": "/own.pem"}, {machine.CA_BUNDLE, "/own.pem"}, "/own.pem"),
        ({"SSL_CERT_FILE": "/own.pem", "PIP_CERT": "/pip.pem"}, {"/own.pem", "/pip.pem"}, "/pip.pem"),
        ({"SSL_CERT_FILE": "/gone.pem"}, {machine.CA_BUNDLE}, machine.CA_BUNDLE),
        ({}, set(), None),
    ],
)
def test_ca_bundle(env: dict, present: set, found: str | None) -> None:
    assert machine.ca_bundle(env, present.__contains__) == found


def test_pip_config_takes_the_way_to_the_index_and_nothing_else() -> None:
    texts = [
        "[global]\nindex-url = https://old/simple\ncert = /here/ca.pem\ncache-dir = /here\n",
        "[global]\nindex_url = https://new/simple\n[install]\ntrusted-host = new\n[list]\nformat = json\n",
    ]
    env = {"PIP_DEFAULT_TIMEOUT": "180", "PIP_REQUIRE_VIRTUALENV": "1", "PIP_FIND_LINKS": "/opt/wheels https://w/x"}
    assert machine.pip_config(texts, env, ca=True).splitlines() == [
        "[global]",
        "index-url = https://new/simple",
        "find-links = https://w/x",
        "trusted-host = new",
        "timeout = 180",
        "cert = " + machine.CA_BUNDLE,
    ]


def test_pip_config_variables_win_and_values_are_kept_as_they_are() -> None:
    text = machine.pip_config(
        ["[global]\nindex-url = https://a/%(x)s\n"], {"PIP_INDEX_URL": "https://u:p%40w@b/"}, ca=False
    )
    assert text == "[global]\nindex-url = https://u:p%40w@b/\n"


def test_proxies_in_both_spellings() -> None:
    lines = machine.proxies({"HTTPS_PROXY": "http://p:3128", "no_proxy": "localhost", "http_proxy": ""}).splitlines()
    assert lines == [
        'https_proxy="http://p:3128"',
        'HTTPS_PROXY="http://p:3128"',
        'no_proxy="localhost"',
        'NO_PROXY="localhost"',
    ]


def test_host_names() -> None:
    assert fleet.host_names(3) == ["gpu1", "gpu2", "gpu3"]
    for count in (0, -1, 65):
        with pytest.raises(LabError, match="%d hosts" % count):
            fleet.host_names(count)


def test_states_of_hosts() -> None:
    states = [fleet.state_of(host) for host in fleet.host_names(16)]
    assert states == ["rtx4090x4", "h200x4", "h200x2"] + ["h200x4"] * 13
    assert set(states) <= {path.name for path in (fleet.SIMULATOR.parent / "states").iterdir()}


@pytest.mark.parametrize("name", ["Lab", "a_b", "../x", "1x", ""])
def test_names_of_labs_that_podman_or_a_path_would_not_take(name: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="GPUFLEET_LAB"):
        fleet.Lab(name, tmp_path, print)


def test_labs_are_apart(tmp_path: Path) -> None:
    default, other = (fleet.Lab(name, tmp_path, print) for name in ("gpufleet", "test"))
    assert default.inventory == fleet.REPOSITORY / "inventories/lab/hosts.yml"
    assert other.inventory == tmp_path / "lab/test/inventory/hosts.yml"
    assert default.name_of("gpu1") == "gpufleet-gpu1"
    assert other.name_of("gpu1") == "test-gpu1"
    assert default.key != other.key


ADDRESSES = {"gpu1": inventory.Address("10.88.0.2", "aaaa1111"), "gpu2": inventory.Address("10.88.0.3", "bbbb2222")}


def test_inventory() -> None:
    text = inventory.render(ADDRESSES, "gpufleet", "/my cache/key", "/my cache/known_hosts", "/a.tar.zst")
    read = yaml.safe_load(text)
    assert list(read["ollama"]["hosts"]) == ["gpu1", "gpu2"]
    assert read["ollama"]["hosts"]["gpu2"]["ansible_host"] == "10.88.0.3"
    shared = read["all"]["vars"]
    assert shared["ansible_user"] == "fleet"
    assert shared["ansible_ssh_private_key_file"] == "/my cache/key"
    assert shared["ollama_archive"] == "/a.tar.zst"
    # ssh takes an option's value apart once more, hence the quotes within.
    assert 'UserKnownHostsFile="/my cache/known_hosts"' in shlex.split(shared["ansible_ssh_common_args"])
    assert not any("StrictHostKeyChecking" in value for value in shared.values())


def test_a_connection_is_not_kept_from_one_life_of_a_host_to_the_next() -> None:
    paths = set()
    for life in ("aaaa1111", "cccc3333"):
        read = yaml.safe_load(inventory.render({"gpu1": inventory.Address("10.88.0.2", life)}, "x", "k", "h", "a"))
        paths.add(read["ollama"]["hosts"]["gpu1"]["ansible_control_path"] % {"directory": "/d"})
    assert paths == {"/d/x-gpu1-aaaa1111", "/d/x-gpu1-cccc3333"}


def test_known_hosts_leaves_the_comment_out() -> None:
    keys = {"gpu1": "ssh-ed25519 AAAA root@gpu1\n", "gpu2": "ssh-ed25519 BBBB root@gpu2\n"}
    assert inventory.known_hosts(ADDRESSES, keys) == "10.88.0.2 ssh-ed25519 AAAA\n10.88.0.3 ssh-ed25519 BBBB\n"


def test_tree_hash_sees_names_contents_modes_and_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    seen = [image.tree_hash(tmp_path)]
    (tmp_path / "a").write_text("y")
    seen.append(image.tree_hash(tmp_path))
    (tmp_path / "a").chmod(0o755)
    seen.append(image.tree_hash(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    seen.append(image.tree_hash(tmp_path))
    (tmp_path / "c").symlink_to("b")
    seen.append(image.tree_hash(tmp_path))
    (tmp_path / "c").unlink()
    (tmp_path / "c").symlink_to("a")
    seen.append(image.tree_hash(tmp_path))
    assert len(set(seen)) == len(seen)
    assert image.tree_hash(tmp_path) == seen[-1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list:
    """Calls of podman that would change something, recorded instead of made."""
    made = []
    for name in ("start", "remove", "create", "import_image"):
        monkeypatch.setattr(podman, name, lambda *words, name=name: made.append((name, words[0])))
    return made


def test_a_root_file_system_put_into_the_cache_is_taken(
    tmp_path: Path, calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(podman, "image_exists", lambda name: False)
    monkeypatch.setattr(machine, "read_apt_sources", list)
    with pytest.raises(LabError, match="no Debian mirror") as refused:
        image.ensure(tmp_path, print)
    archive = Path(str(refused.value).rpartition(" ")[2])
    archive.parent.mkdir(parents=True)
    archive.touch()
    assert image.ensure(tmp_path, print) == "localhost/gpufleet-host:" + image.tree_hash(image.RECIPE)
    assert calls == [("import_image", archive)]


BOOTS, NEVER = object(), object()


@pytest.mark.parametrize(
    "label, alive, old_boot, expected",
    [
        pytest.param(None, False, NEVER, ["create"], id="no such container"),
        pytest.param("same", True, BOOTS, [], id="runs well"),
        pytest.param("same", False, BOOTS, ["start"], id="stopped"),
        pytest.param("same", True, NEVER, ["remove", "create"], id="hangs"),
        pytest.param("same", False, NEVER, ["start", "remove", "create"], id="stopped and does not boot"),
        pytest.param("other", True, BOOTS, ["remove", "create"], id="made of something else"),
    ],
)
def test_a_host_is_kept_started_or_made_anew(
    tmp_path: Path,
    calls: list,
    monkeypatch: pytest.MonkeyPatch,
    label: str | None,
    alive: bool,
    old_boot: object,
    expected: list,
) -> None:
    def wait_booted(self: fleet.Lab, host: str, states: tuple, timeout: float) -> str:
        if old_boot is NEVER and ("create", "test-gpu1") not in calls:
            raise LabError("does not boot")
        # A fault left behind by a test is no reason to lose a host; a new one must be without.
        assert ("degraded" in states) == (("create", "test-gpu1") not in calls)
        return "key"

    monkeypatch.setattr(fleet.Lab, "wait_booted", wait_booted)
    old = podman.Container("test-gpu1", "id", alive, "10.88.0.2", "", {"gpufleet.spec": label}) if label else None
    lab = fleet.Lab("test", tmp_path, lambda line: None)
    assert lab.ensure_host("gpu1", old, "image", {}, "same") == "key"
    assert [name for name, _first in calls] == expected


@pytest.mark.parametrize("boots", [2, None])
def test_a_new_host_that_does_not_boot_is_made_anew_once(
    tmp_path: Path, calls: list, monkeypatch: pytest.MonkeyPatch, boots: int | None
) -> None:
    def wait_booted(self: fleet.Lab, host: str, states: tuple, timeout: float) -> str:
        if calls.count(("create", "test-gpu1")) != boots:
            raise LabError("systemd is degraded")
        return "key"

    said: list = []
    monkeypatch.setattr(fleet.Lab, "wait_booted", wait_booted)
    lab = fleet.Lab("test", tmp_path, said.append)
    if boots:
        assert lab.ensure_host("gpu1", None, "image", {}, "same") == "key"
    else:
        with pytest.raises(LabError, match="degraded"):
            lab.ensure_host("gpu1", None, "image", {}, "same")
    assert [name for name, _first in calls] == ["create", "remove", "create"]
    assert said[-1] == "gpu1 is made anew, once: systemd is degraded"


def test_a_stranger_with_the_remembered_pid_is_not_the_container(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("0::/libpod_parent/libpod-abc/init.scope\n")
    assert podman.is_process_of(7, "abc", tmp_path)
    assert not podman.is_process_of(7, "def", tmp_path)
    assert not podman.is_process_of(8, "abc", tmp_path)


@pytest.mark.parametrize("command, forgotten", [("bash", True), ("conmon", False)])
def test_a_former_boot_is_forgotten_only_if_no_container_runs(tmp_path: Path, command: str, forgotten: bool) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text(command + "\n")
    alive = tmp_path / "alive"
    alive.touch()
    podman.forget_former_boot(alive, tmp_path)
    assert alive.exists() != forgotten
    podman.forget_former_boot(alive, tmp_path)


def test_too_few_inotify_instances_are_said_before_hosts_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "inotify_instances_left", lambda wanted: min(wanted, 8))
    fleet.check_inotify(2)
    with pytest.raises(LabError, match="3 more hosts need 12 .* only 8: .* sysctl -w fs.inotify.max_user_instances="):
        fleet.check_inotify(3)


def test_inotify_instances_asked_for_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert fleet.inotify_instances_left(3) == 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fleet.shutil, "which", lambda tool, path: None if tool in ("podman", "gcc") else "/usr/bin/" + tool
    )
    with pytest.raises(LabError, match="needs podman, gcc, .*: apt-get install podman gcc libc6-dev"):
        fleet.check_tools()


@pytest.mark.parametrize(
    "routes, says",
    [
        ([{"dev": "eth0", "flags": []}, {"dev": "podman0", "flags": []}], ""),
        (
            [{"dev": "eth0", "flags": []}, {"dev": "cni-podman0", "flags": ["linkdown"]}, {"dev": "podman0"}],
            "; the way there leads over cni-podman0, which nothing is plugged into: ip link delete cni-podman0",
        ),
    ],
)
def test_a_bridge_of_the_other_network_backend_is_named(monkeypatch, routes, says):
    told = subprocess.CompletedProcess([], 0, stdout=json.dumps(routes))
    monkeypatch.setattr(fleet.subprocess, "run", lambda *words, **more: told)
    assert fleet.dead_bridge("10.88.1.2") == says
