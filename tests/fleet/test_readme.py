# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's way from nothing to serving, on a host without Ollama: its inventory and its commands, as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/lab/ollama"), str(ROOT / "tests/fleet")]

import archive  # noqa: E402
import hostsetup  # noqa: E402
import house_registry  # noqa: E402

SECTION = re.search(r"^## From nothing to serving\n(.*?)^## ", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)[1]
INVENTORY = re.search(r"^```yaml\n(.*?)^```", SECTION, re.M | re.S)[1]
PREVIEW, CHANGE, VERIFY = re.search(r"^```shell\n(.*?)^```", SECTION, re.M | re.S)[1].splitlines()
(HOST,) = yaml.safe_load(INVENTORY)["ollama"]["hosts"]
MODEL = yaml.safe_load(INVENTORY)["ollama"]["vars"]["ollama_prove_model"]


@pytest.fixture(scope="module")
def registry(lab):
    """A registry on gpu3 that has the README's model; gpu1 has no Ollama, and no model."""
    for name in ("gpu1", "gpu3"):
        hostsetup.uninstall(lab.reset(name))
    hostsetup.install("gpu3")
    hostsetup.wait_for_api("gpu3")
    registry = house_registry.Registry("gpu3")
    registry.offer("gpu3", "tiny", MODEL)
    yield registry
    registry.stop()
    for name in ("gpu1", "gpu3"):
        hostsetup.uninstall(lab.reset(name))


@pytest.fixture(scope="module")
def fleet(lab, registry, tmp_path_factory):
    """The folder of a reader. What is different in the lab is in a file for the host: its address, and two mirrors."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "fleet/host_vars").mkdir(parents=True)
    (folder / "fleet/ollama.yml").write_text(INVENTORY, encoding="utf-8")
    inventory = yaml.safe_load(Path(lab.inventory).read_text(encoding="utf-8"))
    own = {name: value for name, value in inventory["all"]["vars"].items() if name.startswith("ansible_")}
    own.update(inventory["ollama"]["hosts"]["gpu1"])
    own.update(ollama_mirror=str(archive.mirror()), ollama_archive_checksum="{{ omit }}")
    own.update(ollama_registry_mirror=registry.url, ollama_registry_insecure=True, ollama_free_space_margin="0")
    (folder / ("fleet/host_vars/%s.yml" % HOST)).write_text(yaml.safe_dump(own), encoding="utf-8")
    return folder


def run(folder, command):
    """Run a command in the reader's folder, as a reader does who has installed the collection."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment.update(PATH="%s:%s" % (Path(sys.executable).parent, environment["PATH"]), ANSIBLE_NOCOLOR="1")
    environment.update(ANSIBLE_COLLECTIONS_PATH=str(ROOT / ".collections"))
    words = dict(cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True, timeout=300)
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **words)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_from_nothing_to_serving(fleet):
    run(fleet, PREVIEW)
    assert "no ollama" in hostsetup.sh("gpu1", "command -v ollama || echo no ollama")

    said = run(fleet, CHANGE)
    assert re.search(r"%s: ok .*%s on 4 GPUs" % (HOST, MODEL), said)
    assert min(sum(gpu.values()) for gpu in hostsetup.held("gpu1")) > 0

    assert re.search(r"%s .* changed=0 " % HOST, run(fleet, VERIFY))
