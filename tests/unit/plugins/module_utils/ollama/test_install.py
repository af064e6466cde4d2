# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit as upstream writes it, and the libraries of an installation."""

from __future__ import annotations

import os

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import install
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.install import UnitStep
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.manager import UNIT_PATH


def test_the_unit_as_upstream_writes_it(tmp_path):
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    unit = UnitStep("ollama.service", "/opt/o", root=str(tmp_path))
    assert unit.needed()
    assert "ExecStart=/opt/o/bin/ollama serve\nUser=ollama\n" in unit.diff()["after"]
    unit.apply()
    assert (folder / "ollama.service").stat().st_mode & 0o777 == 0o644
    assert os.listdir(folder) == ["ollama.service"]
    assert not UnitStep("ollama.service", "/opt/o", root=str(tmp_path)).needed()
    unit.undo()
    assert os.listdir(folder) == []
    unit.undo()


@pytest.mark.parametrize("folder", UNIT_PATH)
def test_a_unit_of_the_vendor_is_left_alone(tmp_path, folder):
    (tmp_path / folder[1:]).mkdir(parents=True)
    (tmp_path / folder[1:] / "ollama.service").write_text("[Service]\n")
    assert not UnitStep("ollama.service", root=str(tmp_path)).needed()


def test_a_masked_unit_is_left_alone(tmp_path):
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    (folder / "ollama.service").symlink_to("/dev/null")
    assert not UnitStep("ollama.service", root=str(tmp_path)).needed()


def test_a_unit_of_ours_is_remembered(tmp_path, remembered):
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    unit = UnitStep("ollama.service", root=str(tmp_path))
    unit.apply()
    assert install_record.remembered("units") == [unit.path]
    unit.undo()
    assert not remembered.parent.exists()


def test_an_instance_gets_a_template(tmp_path):
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    unit = UnitStep("ollama@second.service", root=str(tmp_path))
    unit.apply()
    assert os.listdir(tmp_path / "etc/systemd/system") == ["ollama@.service"]
    assert not UnitStep("ollama@third.service", root=str(tmp_path)).needed()


def test_a_unit_that_cannot_be_written_leaves_nothing(tmp_path):
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    unit = UnitStep("ollama.service", root=str(tmp_path))
    unit.text = "\u00e4"
    with pytest.raises(UnicodeEncodeError):
        unit.apply()
    assert os.listdir(folder) == []


def test_the_libraries_of_an_installation(tmp_path):
    assert install.libraries(str(tmp_path)) is None
    (tmp_path / "lib/ollama/cuda_v13").mkdir(parents=True)
    (tmp_path / "lib/ollama/llama-server").write_text("")
    assert install.libraries(str(tmp_path)) == ["cuda_v13"]
