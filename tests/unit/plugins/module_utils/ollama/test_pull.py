# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pull, by the lines that a real server wrote and by ones that never end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import pull
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.api import ApiError
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Failed

LAYER = "sha256:c2959c5f1595df4d04497b75f6274a696932d9933645d5b1d9675cdbe609a19d"
SMALL = "sha256:19bfea45065fdc1506ed194285a062345641f949148e2f5f7b47bcb5d0268a16"
TOTAL = 673511872


def loading(completed: int, digest: str = LAYER, total: int = TOTAL) -> Dict[str, Any]:
    return {"status": "pulling " + digest[7:19], "digest": digest, "total": total, "completed": completed}


# as a server of 0.32.15 wrote them, most of the lines left out
RECORDED = [
    {"status": "pulling manifest"},
    loading(22544384),
    loading(46399488),
    loading(665695168),
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
    {"status": "success"},
]


class Lines:
    """An Api that tells these lines; an exception among them is raised."""

    def __init__(self, *lines: Any) -> None:
        self.lines = lines
        self.silences: List[float] = []

    def events(self, path: str, body: Dict[str, Any], silence: Any) -> Iterator[Dict[str, Any]]:
        assert (path, body["model"], body["stream"]) == ("/api/pull", "http://mirror/library/big:v1", True)
        for line in self.lines:
            self.silences.append(silence())
            if isinstance(line, Exception):
                raise line
            yield line


def run(api: Any, path: Any = None, stall: float = 60, room: Any = lambda needed: None, expected: int = 0) -> None:
    pull.Pull(
        api,
        "big:v1",
        source="http://mirror/library/big:v1",
        insecure=False,
        stall_timeout=stall,
        finish_timeout=600,
        expected=expected,
        room=room,
        progress=pull.Progress(path),
    ).run()


def test_success_is_the_last_status() -> None:
    api = Lines(*RECORDED)
    run(api)
    assert api.silences[-1] == 600, "the digest is made in silence"
    assert api.silences[1] == pytest.approx(60, abs=1)
    with pytest.raises(Failed, match="ended the pull at 'writing manifest', without success"):
        run(Lines(*RECORDED[:-1]))


@pytest.mark.parametrize(
    "words, advice",
    [
        ("pull model manifest: file does not exist", "the registry has no such model"),
        (
            "max retries exceeded: unexpected EOF",
            "the connection to the registry broke off; what was downloaded is kept",
        ),
        ("context canceled", "the connection to the registry broke off; what was downloaded is kept"),
        ("pull model manifest: 503: busy", "what was downloaded is kept"),
        ("digest mismatch, file must be downloaded again: want sha256:1, got sha256:2", "the file was removed"),
        ("write /x/sha256-1-partial: no space left on device", "free space on the disk"),
    ],
)
def test_the_servers_own_words(words: str, advice: str) -> None:
    with pytest.raises(Failed, match="big:v1: %s; %s" % (words, advice)):
        run(Lines(*RECORDED[:2], {"error": words}))


def test_one_that_joined_the_end_of_another_pull_begins_anew() -> None:
    """The server has it share the download of a pull that was given up a moment ago, and cancels both."""

    class Joins(Lines):
        ends = [{"error": 'Get "http://mirror/v2/x": context canceled'}]

        def events(self, path: str, body: Dict[str, Any], silence: Any) -> Iterator[Dict[str, Any]]:
            yield from (RECORDED[:2] + [self.ends.pop()] if self.ends else RECORDED)

    run(Joins())
    assert not Joins.ends


def test_lines_without_a_new_byte_are_a_stall() -> None:
    """As recorded: a part that stalls is tried again for ever, while lines go on."""

    class Stalls(Lines):
        def events(self, path: str, body: Dict[str, Any], silence: Any) -> Iterator[Dict[str, Any]]:
            yield loading(29360128)
            until = time.monotonic() + 5
            while time.monotonic() < until:
                yield loading(20000000)  # a part that starts anew: less than before
            raise AssertionError("not noticed")

    with pytest.raises(Failed, match=r"no new byte for 0 s \(stall_timeout\) at 29360128 of 673511872 bytes"):
        run(Stalls(), stall=0.1)


def test_silence_is_a_stall_and_broken_connections_are_told() -> None:
    with pytest.raises(Failed, match="stall_timeout.* at 22544384 of 700000000 bytes"):
        run(Lines(*RECORDED[:2], ApiError("late", timed_out=True)), expected=700000000)
    with pytest.raises(Failed, match="silent for 600 s .timeout. at 'verifying sha256 digest'"):
        run(Lines(*RECORDED[:5], ApiError("late", timed_out=True)))
    with pytest.raises(Failed, match="^big:v1: reset$"):
        run(Lines(ApiError("reset")))


def test_room_is_asked_for_once_a_layer() -> None:
    asked: List[int] = []
    run(Lines(loading(1000), loading(2000), loading(279, SMALL, 279), *RECORDED[-3:]), room=asked.append)
    assert asked == [TOTAL - 1000, 0]

    def none(needed: int) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        run(Lines(*RECORDED), room=none)


def test_progress_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_WRITE_EVERY", 0.0)
    path = tmp_path / "progress.json"
    run(Lines(*RECORDED), str(path))
    state = json.loads(path.read_text())
    assert (state["name"], state["completed"], state["total"]) == ("big:v1", 665695168, TOTAL)
    assert state["rate"] > 0
    assert state["seconds_left"] == 0
    run(Lines(*RECORDED), str(tmp_path / "none" / "progress.json"))  # it cannot be written: no harm


def test_what_was_there_before_does_not_count_into_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_WRITE_EVERY", 0.0)
    progress = pull.Progress(str(tmp_path / "p"))
    progress.report("big:v1", "pulling", 500, 1000)
    state = json.loads((tmp_path / "p").read_text())
    assert (state["rate"], state["seconds_left"]) == (0, None)
