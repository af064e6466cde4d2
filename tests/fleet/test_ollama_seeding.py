# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of a whole play: one download for all hosts, and what happens when the host that seeds cannot be reached."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))
sys.path.insert(0, str(TESTS / "fleet"))

import hostsetup  # noqa: E402
import house_registry  # noqa: E402

HOSTS = ["gpu1", "gpu2", "gpu3"]
MODEL = "tiny:v1"
PORT = 11435
BLOBS = "/usr/share/ollama/.ollama/models/blobs"
PLAY = TESTS / "fleet/models.yml"


@pytest.fixture(scope="module")
def house(lab: Any) -> Iterator[house_registry.Registry]:
    """Three hosts that serve with empty stores, and a registry on the last one that has tiny:v1."""
    for host in HOSTS:
        lab.reset(host)
        hostsetup.sh(host, "rm -rf /var/lib/gpufleet")
        hostsetup.install(host)
    for host in HOSTS:
        hostsetup.wait_for_api(host)
    registry = house_registry.Registry("gpu3")
    registry.offer("gpu3", "tiny", MODEL)
    yield registry
    registry.stop()
    for host in HOSTS:
        hostsetup.uninstall(host)


@pytest.fixture
def bring(lab: Any, house: house_registry.Registry) -> Any:
    """`bring(ok=True, words)` runs the role with seeding on hosts whose stores were emptied before the test."""
    for host in HOSTS:
        empty(host)
    house.sent()

    def run(models: List[Any], *words: str, play: str = str(PLAY), **more: Any) -> Any:
        values = {
            "ollama_models": models,
            "ollama_registry_mirror": house.url,
            "ollama_registry_insecure": True,
            "ollama_seeding": True,
            "ollama_free_space_margin": "0",
        }
        run = lab.playbook(play, "-e", json.dumps(values), *words, **more)
        print(run.output)
        return run

    yield run
    for host in HOSTS:
        left = hostsetup.sh(
            host, "systemctl list-units --all --no-legend 'gpufleet-seed-*'; ls /run/gpufleet 2>/dev/null || :"
        )
        assert left == "", "nothing is left of seeding"


def tags(host: str) -> Dict[str, str]:
    return {one["name"]: one["digest"] for one in hostsetup.api(host, "/api/tags")["models"]}


def empty(host: str) -> None:
    for name in tags(host):
        hostsetup.sh(host, 'curl -fsX DELETE -d \'{"model": "%s"}\' %s/api/delete' % (name, hostsetup.API))


def origins(run: Any) -> Dict[str, List[str]]:
    """Where each host pulled from."""
    found: Dict[str, List[str]] = {host: [] for host in HOSTS}
    for line in run.results:
        for model in line["result"].get("models") or () if line["action"].endswith("ollama_model") else ():
            found[line["host"]] += [model["pulled_from"].rpartition(":")[0]] if "pulled_from" in model else []
    return found


def address(host: str) -> str:
    return hostsetup.sh(host, "hostname -I").split()[0]


def test_three_hosts_cost_one_download(house: house_registry.Registry, bring: Any) -> None:
    run = bring([MODEL])
    sent = house.sent()
    assert sent == pytest.approx(house.size, rel=0.01), "one download, whatever the number of hosts"
    registry, seeder = house.url.rpartition("/")[2].rpartition(":")[0], address("gpu1")
    assert origins(run) == {"gpu1": [registry], "gpu2": [seeder], "gpu3": [seeder]}
    assert {host: list(tags(host)) for host in HOSTS} == {host: [MODEL] for host in HOSTS}
    assert len({tags(host)[MODEL] for host in HOSTS}) == 1
    for host in HOSTS:
        sums = hostsetup.sh(host, "cd %s; for f in sha256-*; do echo $f $(sha256sum $f); done" % BLOBS).splitlines()
        assert sums and all(line.split()[0] == "sha256-" + line.split()[1] for line in sums), sums

    again = bring([MODEL])
    assert again.changed == 0
    calls = [line for line in again.results if line["action"].endswith(("ollama_model", "model_seed"))]
    assert len([line for line in calls if line["status"] != "skipped"]) == len(HOSTS), "one call a host"
    assert house.sent() == 0

    for host in ("gpu1", "gpu3"):
        empty(host)
    run = bring([MODEL])
    assert house.sent() == 0, "the registry gives nothing that a host of the play has"
    assert origins(run) == {"gpu1": [address("gpu2")], "gpu2": [], "gpu3": [address("gpu2")]}


def test_batch_by_batch(house: house_registry.Registry, bring: Any) -> None:
    run = bring([MODEL], "-e", "gpufleet_batch=1", "--limit", "gpu1,gpu2")
    assert house.sent() == pytest.approx(house.size, rel=0.01)
    assert origins(run)["gpu2"] == [address("gpu1")]


def test_peers_that_cannot_reach_it_take_the_registry(house: house_registry.Registry, bring: Any) -> None:
    run = bring([MODEL], "-e", "ollama_seed_address=127.0.0.2", warnings=True)
    assert "cannot be pulled from http://%s:%d, so the registry is used" % ("127.0.0.2", PORT) in run.output.replace(
        "\n", " "
    )
    assert house.sent() == pytest.approx(3 * house.size, rel=0.01)
    assert all(MODEL in tags(host) for host in HOSTS)


def test_site_brings_them_and_verify_misses_them(bring: Any) -> None:
    # Ollama was installed by hand here, and what gpu_host would do is none of this test
    own = json.dumps({"ollama_archive": None, "gpu_host_pynvml": False, "gpu_host_persistence": False})
    words = ["--limit", "gpu1,gpu2", "-e", own]
    proven = bring([MODEL], *words, play="site.yml")
    for host in ("gpu1", "gpu2"):
        assert re.search(
            r"%s: ok · [^']* · models: (tiny:v1 pulled|1 as declared)" % host, " ".join(proven.output.split())
        )
    bring([MODEL], *words, play="playbooks/verify.yml")
    empty("gpu2")
    missed = bring([MODEL], *words, play="playbooks/verify.yml", ok=False)
    assert missed.rc != 0
    assert "gpu2 does not match the inventory: models: tiny:v1 would be pulled" in missed.output.replace("\n", " ")
    assert "gpu1 does not match the inventory" not in missed.output
    assert MODEL not in tags("gpu2"), "verify reads only"


def test_what_a_killed_run_leaves_ends_by_itself(house: house_registry.Registry, bring: Any, lab: Any) -> None:
    bring([MODEL], "--limit", "gpu1")
    offer = {
        "models": [{"name": MODEL, "source": "ollama"}],
        "token": "0" * 32,
        "peers": [address("gpu2")],
        "idle_timeout": 15,
    }
    seeding = lab.module("gpu1", "model_seed", offer)
    assert seeding["url"] == "http://%s:%d" % (address("gpu1"), PORT)
    look = "tr '\\0' ' ' </proc/$(systemctl show -p MainPID --value %s)/cmdline" % seeding["unit"]
    command = hostsetup.sh("gpu1", look)
    assert command.split()[1:] == ["-I", "-"], "no token in a command line"
    gone = "timeout 60 sh -c 'while systemctl is-active --quiet %s; do sleep 0.2; done'" % seeding["unit"]
    hostsetup.sh("gpu1", gone, timeout=90)
