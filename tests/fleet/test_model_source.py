# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models on a lab host: from a hub of static files, and with the real git and git-lfs."""

from __future__ import annotations

import hashlib
import json

import pytest

COMMIT = "c" * 40
HUB = "http://127.0.0.1:8099"


@pytest.fixture
def bring(module, host, sh):
    sh(host, "systemctl stop fleet-hub 2>/dev/null; rm -rf /var/lib/gpufleet/models /srv/hub /srv/git; true")

    def run(check=False, **arguments):
        return module(host, "model_source", arguments, check=check)

    yield run
    sh(host, "systemctl stop fleet-hub 2>/dev/null; true")


def hub(sh, host):
    """A hub whose listing is a file: what a client asks behind the question mark a static server does not look at."""
    weights = b"w" * 3000000
    siblings = [
        {"rfilename": "config.json", "size": 3, "blobId": hashlib.sha1(b"blob 3\0{}\n").hexdigest()},
        {
            "rfilename": "model.safetensors",
            "size": len(weights),
            "lfs": {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        },
    ]
    listing = json.dumps({"sha": COMMIT, "siblings": siblings})
    folder = "/srv/hub/o/m/resolve/%s" % COMMIT
    sh(host, "mkdir -p %s /srv/hub/api/models/o/m/revision && echo '{}' > %s/config.json" % (folder, folder))
    sh(host, "head -c 3000000 /dev/zero | tr '\\0' w > %s/model.safetensors" % folder)
    sh(host, "echo '%s' > /srv/hub/api/models/o/m/revision/main" % listing)
    sh(host, "systemd-run --quiet --unit fleet-hub python3 -m http.server -d /srv/hub -b 127.0.0.1 8099")
    sh(host, "until curl -sf %s/ >/dev/null; do sleep 0.1; done" % HUB)
    return folder


def test_from_a_hub(bring, host, sh):
    folder = hub(sh, host)
    would = bring(check=True, name="o/m", url=HUB)
    assert would["changed"] and "would load main of o/m, 2 files, 2.9 MiB" in would["msg"]
    assert "model_source" not in sh(host, "find /var/lib/gpufleet 2>/dev/null; true")
    result = bring(name="o/m", url=HUB)
    assert result["changed"] and result["commit"] == COMMIT, result
    assert result["path"] == "/var/lib/gpufleet/models/huggingface/o/m/" + COMMIT
    assert sh(host, "sha256sum < %s/model.safetensors" % result["path"]) == sh(
        host, "sha256sum < %s/model.safetensors" % folder
    )
    assert sh(host, "su -s /bin/sh nobody -c 'cat %s/config.json'" % result["path"]) == "{}\n"
    sh(host, "systemctl stop fleet-hub")
    again = bring(name="o/m", url=HUB)
    assert not again["changed"] and not again["failed"]
    unreached = bring(name="o/m", url=HUB, update=True)
    assert unreached["failed"] and "is not reached" in unreached["msg"]
    assert sh(host, "ls %s" % result["path"]).split() == ["config.json", "gpufleet.json", "model.safetensors"]


def test_from_a_hub_that_sends_something_else(bring, host, sh):
    folder = hub(sh, host)
    sh(host, "printf x | dd of=%s/model.safetensors conv=notrunc 2>/dev/null" % folder)
    failed = bring(name="o/m", url=HUB)
    assert failed["failed"] and "expected " + hashlib.sha256(b"w" * 3000000).hexdigest() in failed["msg"]
    assert COMMIT not in sh(host, "ls /var/lib/gpufleet/models/huggingface/o/m").split()


def test_by_git(bring, host, sh):
    sh(
        host,
        "command -v git-lfs || (apt-get update && apt-get install --yes --no-install-recommends git git-lfs)",
        timeout=300,
    )
    sh(
        host,
        "mkdir -p /srv/git && cd /srv/git && git init --quiet --bare house.git && git init --quiet -b main work"
        " && cd work && git lfs install --local && git lfs track '*.safetensors' && git config user.email x@example.com"
        " && git config user.name x && echo '{}' > config.json && head -c 2000000 /dev/urandom > model.safetensors"
        " && git add . && git commit --quiet -m one && git tag v1 && git push --quiet file:///srv/git/house.git main v1"
        " && git --git-dir=/srv/git/house.git symbolic-ref HEAD refs/heads/main",
    )
    result = bring(name="house/chat", source="git", url="file:///srv/git/house.git", revision="v1")
    assert result["changed"], result
    there = sh(host, "sha256sum < %s/model.safetensors" % result["path"])
    assert there == sh(host, "sha256sum < /srv/git/work/model.safetensors")
    assert ".git" not in sh(host, "ls -A %s" % result["path"]).split()
    declared = {"name": "house/chat", "source": "git", "url": "file:///srv/git/house.git", "revision": "v1"}
    for check in (True, False):
        assert not bring(check=check, update=True, **declared)["changed"]
    sh(host, "rm -rf /srv/git")
    assert not bring(**declared)["changed"]


def test_a_fleet_costs_one_download(lab, sh, tmp_path):
    """The hub is reached by the first host alone; the second one has the model by model_seed, and from nowhere else."""
    play, hosts = tmp_path / "play.yml", ("gpu1", "gpu2")
    play.write_text(
        json.dumps([{"hosts": ",".join(hosts), "gather_facts": False, "roles": ["gpufleet.inference.vllm"]}])
    )
    variables = {"vllm_models": [{"name": "o/m", "url": HUB}], "vllm_seeding": True}
    sh("gpu1", "systemctl stop fleet-hub 2>/dev/null; rm -rf /var/lib/gpufleet/models /srv/hub")
    sh("gpu2", "systemctl stop fleet-hub 2>/dev/null; rm -rf /var/lib/gpufleet/models")
    folder = hub(sh, "gpu1")

    def run():
        return lab.playbook(str(play), "-e", json.dumps(variables))

    assert run().changed
    place = "/var/lib/gpufleet/models/huggingface/o/m/" + COMMIT
    expected = sh("gpu1", "cd %s && sha256sum *" % folder)
    for host in hosts:
        assert sh(host, "cd %s && sha256sum config.json model.safetensors" % place) == expected
        units = sh(host, "systemctl list-units --all --no-legend 'gpufleet-seed*'")
        assert units == "" and sh(host, "ls /run/gpufleet 2>/dev/null; true") == "", "nothing of it stays"
    sh("gpu1", "systemctl stop fleet-hub")
    assert run().changed == 0
    sh("gpu1", "rm -rf /var/lib/gpufleet/models")
    assert run().changed, "the second host gives it back"
    assert sh("gpu1", "cd %s && sha256sum config.json model.safetensors" % place) == expected
    for host in hosts:
        sh(host, "rm -rf /var/lib/gpufleet/models")
