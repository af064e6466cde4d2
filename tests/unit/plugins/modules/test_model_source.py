# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: its options and its errors."""

from __future__ import annotations

import os

import pytest

from ansible_collections.gpufleet.inference.plugins.modules import model_source


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_a_directory_that_is_there(run_module, model):
    result = run_module(model_source.main, {"name": model, "source": "directory"})
    assert (result["failed"], result["changed"], result["path"]) == (False, False, model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "/nowhere", "source": "directory"}, "expected a directory with config.json"),
        ({"name": "o/m", "source": "git"}, "source is git: give url"),
        ({"name": "m"}, "expected ORGANISATION/NAME"),
        ({"name": "o/m", "offline": True}, "offline is true: nothing is asked of the network"),
    ],
)
def test_what_is_refused(run_module, tmp_path, arguments, message):
    result = run_module(model_source.main, dict(arguments, root=str(tmp_path / "models")))
    assert result["failed"] and not result["changed"] and message in result["msg"]
    assert not os.path.exists(tmp_path / "models")


def test_the_token_is_no_part_of_a_result(run_module, model):
    result = run_module(model_source.main, {"name": model, "source": "directory", "token": "s3cret"})
    assert "s3cret" not in str({name: value for name, value in result.items() if name != "invocation"})
    assert model_source.argument_spec()["token"]["no_log"]
