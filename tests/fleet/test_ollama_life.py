# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a service's life that can go wrong on the way: a killed upgrade, a moved store, adoption, the way back.

The straight way, from a bare host to a bare host, is the molecule scenario ollama_lifecycle.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/ollama"))

import archive
import faults
import hostsetup

STORE = "/usr/share/ollama/.ollama/models"
RELEASES = "/usr/local/lib/gpufleet"
KILL = "kill -9 $(cat /run/gpufleet/ollama.service.lock)"
"""Ends the run that changes the service."""


@pytest.fixture(scope="module")
def mirror():
    return str(archive.mirror())


@pytest.fixture
def host(lab):
    """A host that a person has set up as upstream's install.sh does, with a model; everything is gone afterwards."""
    name = lab.reset("gpu2")
    hostsetup.install(name)
    hostsetup.add_models(name, "m8b")
    hostsetup.wait_for_api(name)
    yield name
    faults.clear(name)
    lab.reset(name)
    hostsetup.uninstall(name)
    lab.sh(
        name,
        "rm -f /etc/sudoers.d/umask; while umount -q /srv/other; do :; done;"
        "rm -rf /srv/llm /srv/other /srv/good /var/lib/gpufleet " + RELEASES,
    )


@pytest.fixture
def bring(lab, host):
    def bring(**options):
        return lab.module(host, "ollama_service", {"visible_devices": "all", "timeout": 90, **options})

    return bring


def version(host):
    return hostsetup.api(host, "/api/version")["version"]


def models(host):
    return [model["name"] for model in hostsetup.api(host, "/api/tags")["models"]]


def files(host, *places):
    """Files with inode, size and owner."""
    return hostsetup.sh(host, "find %s -type f -printf '%%p %%i %%s %%u\\n' | sort" % " ".join(places))


# --- a run that is killed


def test_an_upgrade_killed_after_the_switch(lab, host, bring, mirror):
    """The links lead to the new release, the old process serves: the next run notices, restarts and proves.

    All of it under a strict umask, as hardening guides have it.
    """
    hostsetup.sh(host, "echo 'Defaults umask=0027, umask_override' >/etc/sudoers.d/umask")
    assert bring(version=archive.FORMER, mirror=mirror)["version"] == archive.FORMER
    killed, before = {}, hostsetup.sh(host, "readlink /usr/local/bin/ollama").strip()
    run = threading.Thread(target=lambda: killed.update(bring(version=archive.VERSION, mirror=mirror)))
    run.start()
    switched = "timeout 240 sh -c 'until [ $(readlink /usr/local/bin/ollama) != %s ]; do :; done';%s"
    hostsetup.sh(host, switched % (before, KILL))
    run.join()
    assert killed["failed"]
    hostsetup.sh(host, "test -e %s/.ollama-switch" % RELEASES)
    again = bring(version=archive.VERSION, mirror=mirror)
    assert again["changed"], again["msg"]
    assert again["version"] == version(host) == archive.VERSION
    hostsetup.sh(host, "! test -e %s/.ollama-switch" % RELEASES)
    assert not bring(version=archive.VERSION, mirror=mirror)["changed"]
    odd = "find %s -mindepth 1 ! -path '%s/ollama-*' -o ! -perm -o+r" % (RELEASES, RELEASES)
    assert hostsetup.sh(host, odd) == ""


def test_a_folder_that_root_has_prepared_for_the_models(lab, host, bring, mirror):
    """On a bare host: it is given to the user who is made, and stays when that one goes."""
    hostsetup.uninstall(host)
    hostsetup.sh(
        host, "install -d -o root -m 0755 /srv/llm /srv/llm/blobs; userdel -rf ollama 2>/dev/null || ! id ollama"
    )
    install = {"version": archive.VERSION, "mirror": mirror, "models_dir": "/srv/llm"}
    look = "stat -c '%n %U:%G %a' /srv/llm /srv/llm/*"
    done = bring(**install)
    assert not done["failed"], done["msg"]
    assert hostsetup.sh(host, look).splitlines()[:2] == [
        "/srv/llm ollama:ollama 755",
        "/srv/llm/blobs ollama:ollama 755",
    ]
    assert not bring(**install)["changed"]
    assert not lab.module(host, "ollama_service", {"state": "uninstalled"})["failed"]
    hostsetup.sh(host, "test -d /srv/llm/blobs")


# --- back to what was there before


def test_uninstalling_brings_back_what_a_person_had_installed(lab, host, bring, mirror):
    before = hostsetup.sh(host, "sha256sum /usr/local/bin/ollama /etc/systemd/system/ollama.service; ls /usr/local/lib")
    assert bring(version=archive.FORMER, mirror=mirror, keep_alive="1h")["version"] == version(host) == archive.FORMER
    foretold = lab.module(host, "ollama_service", {"state": "uninstalled"}, check=True)
    assert foretold["changed"]
    assert version(host) == archive.FORMER
    done = lab.module(host, "ollama_service", {"state": "uninstalled"})
    assert done["msg"] == "ollama.service: what was there before is in force again"
    hostsetup.wait_for_api(host)
    assert version(host) == archive.VERSION
    assert models(host) == ["m8b:latest"]
    found = hostsetup.sh(host, "sha256sum /usr/local/bin/ollama /etc/systemd/system/ollama.service; ls /usr/local/lib")
    assert found == before
    assert "OLLAMA_KEEP_ALIVE" not in hostsetup.sh(host, "systemctl show ollama -p Environment,DropInPaths")
    assert not lab.module(host, "ollama_service", {"state": "uninstalled"})["changed"]


def test_instances_beside_a_persons_service_are_uninstalled(lab, host, bring, mirror):
    """The person's service goes on, as the same process; what was put in the place of its program comes back."""
    look = (
        "systemctl show ollama -p MainPID,InvocationID; systemctl list-unit-files --no-legend 'ollama*'; id ollama;"
        "find /usr/local/bin /usr/local/lib /etc/systemd/system -printf '%p %i %m %u %l\\n' | sort"
    )
    before = hostsetup.sh(host, look)
    instances = [{"name": "chat", "visible_devices": [0]}, {"name": "code", "visible_devices": [1]}]
    for number, one in enumerate(instances):
        one["host"] = "127.0.0.1:%d" % (11440 + number)
    done = bring(version=archive.FORMER, mirror=mirror, instances=instances)
    assert not done["failed"], done["msg"]
    refused = lab.module(host, "ollama_service", {"state": "uninstalled", "name": "ollama@chat"})
    assert refused["failed"]
    assert "is used by ollama@code.service as well" in refused["msg"]
    gone = {"state": "uninstalled", "instances": instances}
    assert not lab.module(host, "ollama_service", gone)["failed"]
    assert hostsetup.sh(host, look) == before
    assert not lab.module(host, "ollama_service", gone)["changed"]


def test_instances_take_the_place_of_a_persons_service(lab, host, bring):
    """If one fails, the service runs again; else it is disabled. Tools then name the instance that runs."""
    look = "systemctl is-active ollama ollama@chat || :; systemctl is-enabled ollama || :"
    given = {"instances": [{"name": "chat", "visible_devices": [0]}], "main": "disabled", "prove_model": "m8b"}
    faults.worker(host, "out-of-memory")
    failed = bring(**given)
    assert "load_failed" in failed["msg"] and failed["msg"].endswith("ollama.service runs again."), failed["msg"]
    assert hostsetup.sh(host, look).split() == ["active", "inactive", "enabled"]
    faults.clear(host)
    done = bring(**given)
    assert done["msg"].endswith("ollama.service: stopped and disabled"), done["msg"]
    assert hostsetup.sh(host, look).split() == ["inactive", "active", "disabled"]
    assert not bring(**given)["changed"]
    asked = lab.module(host, "ollama_model", {"models": ["m8b"]})
    assert "ollama.service does not run on this host" in asked["msg"] and "ollama@chat.service" in asked["msg"]
    assert not bring(instances=[{"name": "chat", "state": "absent"}])["failed"]


# --- the store


def test_a_store_moves_with_its_models(lab, host, bring):
    before = files(host, STORE)
    refused = bring(models_dir="/srv/llm/models")
    assert refused["failed"]
    assert "would not see 1 model, 4.4 GB: set models_dir_change to move" in refused["msg"]
    assert files(host, STORE) == before
    moved = bring(models_dir="/srv/llm/models", models_dir_change="move", prove_model="m8b")
    assert not moved["failed"], moved["msg"]
    assert models(host) == ["m8b:latest"]
    assert files(host, "/srv/llm/models") == before.replace(STORE, "/srv/llm/models"), "the same files, by inode"
    assert hostsetup.sh(host, "ls -A %s 2>/dev/null || :" % STORE) == ""
    assert not bring(models_dir="/srv/llm/models", models_dir_change="move", prove_model="m8b")["changed"]


def test_a_move_that_is_not_proven_is_undone(lab, host, bring):
    before = files(host, STORE, "/srv")
    faults.worker(host, "die-at-load")
    failed = bring(models_dir="/srv/llm/models", models_dir_change="move", prove_model="m8b")
    assert failed["verdict"] == "load_failed", failed["msg"]
    assert failed["rolled_back"]
    assert files(host, STORE, "/srv") == before
    hostsetup.wait_for_api(host)
    assert models(host) == ["m8b:latest"]


def test_between_file_systems_the_digests_are_compared(lab, host, bring):
    """A model of true digests, whose weights rot on the way."""
    hostsetup.sh(
        host,
        "mkdir -p /srv/other; mount -t tmpfs none /srv/other; rm -rf {0}/blobs {0}/manifests; cd {0}; mkdir blobs;"
        "mkdir -p manifests/registry.ollama.ai/library/small; printf weights >w;"
        'digest=$(sha256sum w | cut -d" " -f1); mv w blobs/sha256-$digest;'
        'printf \'{{"layers":[{{"digest":"sha256:%s"}}]}}\' $digest >manifests/registry.ollama.ai/library/small/latest;'
        "chown -R ollama: .; cp -a {0} /srv/good; printf rotten! >blobs/sha256-$digest".format(STORE),
    )
    before = files(host, STORE)
    rotten = bring(models_dir="/srv/other/models", models_dir_change="move")
    assert rotten["failed"]
    assert "is damaged: its SHA-256 is" in rotten["msg"]
    assert files(host, STORE) == before
    assert hostsetup.sh(host, "ls -A /srv/other") == ""
    hostsetup.sh(host, "rm -rf {0}; cp -a /srv/good {0}; rm -rf /srv/good".format(STORE))
    moved = bring(models_dir="/srv/other/models", models_dir_change="move")
    assert not moved["failed"], moved["msg"]
    assert "/srv/other/models/manifests/registry.ollama.ai/library/small/latest" in files(host, "/srv/other/models")
    assert files(host, STORE.rpartition("/")[0]).count("\n") == 2, "the server's keys alone"


def small_model(host, store, size):
    """The only model of a store: zeros, by their true digest."""
    hostsetup.sh(
        host,
        "rm -rf {0}/blobs {0}/manifests; cd {0}; mkdir blobs; mkdir -p manifests/registry.ollama.ai/library/small;"
        'truncate -s {1} w; digest=$(sha256sum w | cut -d" " -f1); mv w blobs/sha256-$digest;'
        'printf \'{{"layers":[{{"digest":"sha256:%s"}}]}}\' $digest >manifests/registry.ollama.ai/library/small/latest;'
        "chown -R ollama: .".format(store, size),
    )


def test_a_move_killed_in_the_middle_of_a_copy(lab, host, bring):
    """The run is killed, its child ends with it, and the former inventory leaves neither half a model nor a record."""
    hostsetup.sh(host, "mkdir -p /srv/other; mount -t tmpfs none /srv/other")
    small_model(host, STORE, "200M")
    before = files(host, STORE)
    killed = {}
    run = threading.Thread(
        target=lambda: killed.update(bring(models_dir="/srv/other/models", models_dir_change="move"))
    )
    run.start()
    hostsetup.sh(
        host,
        "timeout 60 sh -c 'until ls /srv/other/models/blobs/*.gpufleet 2>/dev/null; do :; done';"
        "%s; timeout 20 sh -c 'while pgrep -u ollama python3; do :; done'; ls /var/lib/gpufleet/move-*" % KILL,
    )
    run.join()
    assert killed["failed"] and files(host, STORE) == before
    again = bring()
    assert again["changed"] and not again["failed"], again["msg"]
    assert files(host, STORE) == before and models(host) == ["small:latest"]
    assert hostsetup.sh(host, "find /srv/other -type f; ls -A /var/lib/gpufleet | grep move || :") == ""
    assert not bring()["changed"]


def test_what_a_hostile_server_lays_into_its_store(lab, host, bring):
    """Checked, run and moved by root: root's files are as they were, the user cannot read them, and nothing hangs."""
    home, root, marker = "/usr/share/ollama", "/run/victim", STORE + "/.gpufleet-moved-from"
    look = "find %s -printf '%%p %%i %%m %%u %%s %%n\\n' | sort; cat %s/secret" % (root, root)

    def lay(command):
        hostsetup.sh(host, "runuser -u ollama -- sh -c '%s'" % command)

    hostsetup.sh(
        host,
        "mkdir -p {0}/r/l/m {0}/blobs; chmod 0700 {0}; for file in secret r/l/m/t blobs/sha256-{1}; do"
        " echo what-root-alone-knows >{0}/$file; chmod 0600 {0}/$file; done".format(root, "a" * 64),
    )
    try:
        before = hostsetup.sh(host, look)
        lay("mkdir -p {0}/evil; ln -s {1} {0}/evil/manifests; echo {0}/evil >{2}".format(home, root, marker))
        for mode in (["--check"], []):
            lab.playbook("site.yml", "--limit", host, *mode)
        lay("rm {0}; mkfifo {0}; ln -s {1} {2}/new".format(marker, root, home))
        lab.playbook("site.yml", "--limit", host, "--check")
        assert bring(models_dir=home + "/new", models_dir_change="move")["failed"]
        lay(
            "rm {0}/new; mv {1}/manifests {0}; ln -s {2} {1}/manifests; ln -s {2}/r {0}/manifests/x".format(
                home, STORE, root
            )
        )
        assert bring(models_dir="/srv/llm/models", models_dir_change="move")["failed"]
        assert hostsetup.sh(host, look) == before
        found = hostsetup.sh(host, "runuser -u ollama -- grep -rs -D skip what-root-alone-knows %s /srv || :" % home)
        assert found == "", "the user reads what is root's"
    finally:
        hostsetup.sh(host, "rm -rf %s %s/new %s/evil %s/manifests" % (root, home, home, home))


# --- adoption (three kinds of hosts with all of site.yml: the molecule scenario ollama_adopt)


def test_an_adopted_service_is_not_touched(lab, host):
    hostsetup.override(host, {"OLLAMA_KEEP_ALIVE": "24h", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "HF_TOKEN": "hf_hidden"})
    hostsetup.wait_for_api(host)
    look = (
        "systemctl show ollama -p MainPID,InvocationID; find /etc/systemd /usr/local -xdev -printf '%p %T@\\n' | sort"
    )
    before = hostsetup.sh(host, look)
    adopted = lab.module(host, "ollama_adopt", {"name": "ollama"}, check=True)
    assert not adopted["failed"], adopted["msg"]
    assert "hf_hidden" not in str(adopted)
    variables = {name[len("ollama_") :]: value for name, value in adopted["variables"].items() if name[:3] == "oll"}
    assert variables == {"visible_devices": "all", "keep_alive": "24h", "no_cloud": False}
    result = lab.module(host, "ollama_service", variables)
    assert not result["failed"], result["msg"]
    assert not result["changed"]
    assert result["environment"] == {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "OLLAMA_KEEP_ALIVE": "24h"}
    assert hostsetup.sh(host, look) == before
    changed = lab.module(host, "ollama_service", dict(variables, keep_alive="25h"))
    assert changed["restarted"], "and from then on it is managed"
    assert "HF_TOKEN=hf_hidden" in hostsetup.sh(
        host, "tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value ollama)/environ"
    )
