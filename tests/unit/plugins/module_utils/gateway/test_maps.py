# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps as a step: files of root's and the running HAProxy agree, before, after and after an undo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from gateways import ALICE, EVE, KEYS, Gateway

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import haproxy, runtime
from ansible_collections.gpufleet.inference.plugins.module_utils.gateway.maps import MapsStep
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused


def wanted(gateway: Gateway, *more: Dict[str, Any]) -> Dict[str, Dict[str, str]]:
    return gateway.maps(keys=[*KEYS, *more])


NEW = {"name": "eve", "key": EVE, "pools": ["chat"]}


@pytest.fixture
def mine(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway with maps as the step writes them, and as they were afterwards."""
    MapsStep(wanted(gateway), True, gateway.place).apply()
    yield gateway
    MapsStep(wanted(gateway), True, gateway.place).apply()


def step(gateway: Gateway, *more: Dict[str, Any], live: bool = True) -> MapsStep:
    return MapsStep(wanted(gateway, *more), live, gateway.place)


def test_what_is_as_declared_is_left_alone(mine: Gateway) -> None:
    assert not step(mine).needed()
    files = {name: os.stat(mine.place.map(name)) for name in wanted(mine)}
    assert {found.st_mode & 0o777 for found in files.values()} == {0o600}


def test_a_new_key_is_in_force_at_once_and_gone_after_an_undo(mine: Gateway) -> None:
    before = {path.name: path.read_text() for path in mine.folder.glob("*.map")}
    new = step(mine, NEW)
    assert new.needed() and EVE not in str(new.diff()) and "keys.map" in new.diff()["after"]
    assert "models.map" not in new.diff()["after"]
    new.apply()
    assert mine.chat(key=EVE).status == mine.chat(key=ALICE).status == 200
    assert EVE not in Path(mine.place.map("keys")).read_text()
    assert not step(mine, NEW).needed()
    new.undo()
    assert mine.chat(key=EVE).status == 401 and mine.chat(key=ALICE).status == 200
    assert {path.name: path.read_text() for path in mine.folder.glob("*.map")} == before


def test_the_maps_of_the_next_configuration_wait_for_the_reload(mine: Gateway) -> None:
    step(mine, NEW, live=False).apply()
    assert mine.chat(key=EVE).status == 401
    mine.options["keys"] = [*KEYS, NEW]
    mine.reload()
    assert mine.chat(key=EVE).status == 200


@pytest.mark.parametrize("where", ["file", "running"])
def test_either_may_have_been_changed_by_somebody_else(mine: Gateway, where: str) -> None:
    if where == "file":
        Path(mine.place.map("keys")).write_text("")
    else:
        runtime.ask("clear map %s" % mine.place.map("keys"), mine.socket)
        assert mine.chat().status == 401
    repair = step(mine)
    assert repair.needed()
    repair.apply()
    assert mine.chat().status == 200 and not step(mine).needed()


def test_a_map_of_many_lines(mine: Gateway) -> None:
    """Longer than one command of the runtime API may be."""
    many = [dict(NEW, name="holder%d" % number, key="%s-%d" % (EVE, number)) for number in range(3000)]
    step(mine, *many).apply()
    assert mine.chat(key=EVE + "-2999").status == mine.chat(key=EVE + "-0").status == 200
    assert not step(mine, *many).needed()


def test_where_no_gateway_runs_the_files_are_written(gateway: Gateway, tmp_path: Path) -> None:
    place = haproxy.Place(str(tmp_path / "new"), str(tmp_path), str(tmp_path / "state"), "")
    absent = MapsStep(wanted(gateway), True, place)
    assert absent.needed()
    absent.apply()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted("%s.map" % n for n in wanted(gateway))
    absent.undo()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_gateway_that_refuses(mine: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ask", lambda command, path: "Permission denied" if "prepare" in command else "")
    with pytest.raises(Refused, match="Permission denied"):
        step(mine, NEW).apply()
    monkeypatch.undo()
    step(mine).apply()


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(runtime.RuntimeFault, match="does not answer"):
        runtime.info(str(tmp_path / "nothing"))
    assert runtime.failed_reloads(str(tmp_path / "nothing")) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llama3.2:3b", "llama3.2:3b"),
        ("Qwen/Qwen3-32B", "Qwen_Qwen3-32B-45363f"),
        ("Qwen_Qwen3-32B", "Qwen_Qwen3-32B"),
        ("a b", "a_b-c8687a"),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert runtime.slug(text) == expected
