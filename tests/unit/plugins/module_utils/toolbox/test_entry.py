# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each way in which a module can end."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed, Needed, Refused

SPEC = {"name": {"type": "str", "required": True}, "state": {"type": "str"}}


@pytest.fixture
def ends(run_module: Any) -> Any:
    """`ends(work, **params)` is the result of a module that does this work."""

    def ends(work: Any, check: bool = False, warnings: Any = (), more: Any = None, **params: Any) -> Dict[str, Any]:
        return run_module(lambda: run(SPEC, work, **(more or {})), {"name": "a", **params}, check, warnings=warnings)

    return ends


def fails(error: Exception) -> Any:
    def work(*words: Any) -> Any:
        raise error

    return work


@pytest.mark.parametrize("check", [True, False])
def test_the_work_gets_the_options_and_its_result_is_returned(ends: Any, check: bool) -> None:
    def work(params: Any, check_mode: bool, warn: Any) -> Dict[str, Any]:
        warn("the disk is nearly full")
        return {"changed": True, "msg": "%s %s" % (params["name"], check_mode)}

    result = ends(work, check, warnings=("the disk is nearly full",))
    assert (result["changed"], result["msg"], result["failed"]) == (True, "a %s" % check, False)


def test_a_refusal_says_that_nothing_was_changed(ends: Any) -> None:
    result = ends(fails(Refused("no GPU 9")))
    assert (result["failed"], result["changed"], result["msg"]) == (True, False, "no GPU 9 (nothing was changed)")


def test_files_that_are_needed_are_no_failure(ends: Any) -> None:
    result = ends(fails(Needed(["/a.tgz", "/b.tgz"])))
    assert (result["failed"], result["changed"], result["needs"]) == (False, False, ["/a.tgz", "/b.tgz"])


def test_a_failure_keeps_what_was_done(ends: Any) -> None:
    result = ends(fails(Failed("it broke", {"changed": True, "verdict": "dead", "msg": "fine"})))
    assert (result["failed"], result["changed"], result["verdict"]) == (True, True, "dead")
    assert result["msg"] == "it broke"
    assert ends(fails(Failed("it broke")))["changed"] is False


def test_a_part_of_an_option_is_masked(ends: Any) -> None:
    more = {"secrets": lambda params: [params["name"].partition(":")[2]]}
    result = ends(lambda params, *words: {"changed": False, "msg": params["name"]}, more=more, name="user:s3cret")
    assert "s3cret" not in str(result) and "user" in result["msg"]


def test_what_ansible_refuses_by_itself(ends: Any) -> None:
    assert (
        "parameters are required together: name, state"
        in ends(None, more={"required_together": [("name", "state")]})["msg"]
    )
