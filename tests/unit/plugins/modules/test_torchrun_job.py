# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module: options in, result out."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.torchrun import job
from ansible_collections.gpufleet.inference.plugins.modules import torchrun_job


@pytest.fixture
def bring(monkeypatch):
    """What the module does is replaced by `bring.does(params, check)`."""

    class Bring:
        does = staticmethod(lambda params, check: {"changed": False})

        def __call__(self, params, check_mode, warn):
            return self.does(params, check_mode)

    fake = Bring()
    monkeypatch.setattr(job, "converge", fake)
    return fake


def test_defaults_and_check_mode(bring, run_module):
    seen = []
    bring.does = lambda params, check: seen.append((params, check)) or {"changed": True, "msg": "m"}
    result = run_module(torchrun_job.main, {"name": "train"}, check=True)
    assert (result["changed"], result["msg"], result["failed"]) == (True, "m", False)
    params, check = seen[0]
    assert check is True
    assert (params["state"], params["limits"], params["join_timeout"]) == ("started", {"memlock": "infinity"}, 300)


def test_refused(bring, run_module):
    def refuse(params, check):
        raise Refused("no")

    bring.does = refuse
    result = run_module(torchrun_job.main, {"name": "train"})
    assert (result["failed"], result["msg"]) == (True, "no (nothing was changed)")


def test_failed(bring, run_module):
    def fail(params, check):
        raise Failed("it died", {"verdict": "worker_failed", "changed": True})

    bring.does = fail
    result = run_module(torchrun_job.main, {"name": "train"})
    assert (result["failed"], result["msg"], result["verdict"], result["changed"]) == (
        True,
        "it died",
        "worker_failed",
        True,
    )


def test_secrets_are_not_shown(bring, run_module):
    bring.does = lambda params, check: {"changed": False, "echo": "the word s3cr3t-value"}
    result = run_module(torchrun_job.main, {"name": "train", "secret_environment": {"KEY": "s3cr3t-value"}})
    assert "s3cr3t-value" not in str(result)
