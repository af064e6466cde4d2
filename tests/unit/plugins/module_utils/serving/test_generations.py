# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded of an accepted configuration, what is believed of it later, and how a service goes back to it."""

from __future__ import annotations

import json
import os
import re
import stat

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import Outcome
from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import options as llama_server
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import options as ollama
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import generations
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Service
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import record
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import options as vllm

UNIT = "vllm@chat.service"
TABLES = (ollama.OPTIONS, vllm.OPTIONS, llama_server.OPTIONS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the histories."""
    monkeypatch.setattr(generations, "FOLDER", str(tmp_path / "gpufleet/generations"))
    return tmp_path / "gpufleet/generations"


@pytest.fixture
def clock(monkeypatch):
    """Sets the time: `clock("2026-11-30T08:00:12Z")`."""
    return lambda now: monkeypatch.setattr(generations.time, "strftime", lambda form, when: now)


def declared(name="chat", **options):
    return Service(UNIT, name, dict({"state": "present", "generation": None, "port": 8000, "api_key": None}, **options))


def accept(service=None, figures=(), version="0.33.0", installed=False, **options):
    outcome = Outcome(downtime_ms=1900)
    found = generations.accept(service or declared(**options), "vLLM", dict(figures), version, installed, outcome)
    return found[0]["number"] if found else None, outcome.warnings


def back(**options):
    return generations.back([declared(**options)], "vLLM")[0]


# --- recording


def test_what_a_generation_holds(folder, clock):
    clock("2026-11-30T08:00:12Z")
    assert accept(figures={"ready_seconds": 3.1, "answer": "a token", "seen": ["more"]}) == (1, [])
    assert generations.read(UNIT, "vLLM") == [
        {
            "number": 1,
            "accepted": "2026-11-30T08:00:12Z",
            "changes": [],
            "verdict": "ok",
            "figures": {"ready_seconds": 3.1, "answer": "a token"},
            "version": "0.33.0",
            "downtime_ms": 1900,
            "options": {"port": 8000},
        }
    ]
    found = os.stat(folder / (UNIT + ".json"))
    assert stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.geteuid()


def test_only_what_changed_is_recorded_and_the_last_five_are_kept():
    assert accept() == (1, [])
    assert accept() == (None, []), "a restart of the same configuration is not one more"
    for number in range(2, 9):
        assert accept(port=8000 + number) == (number, [])
    assert [one["number"] for one in generations.read(UNIT)] == [4, 5, 6, 7, 8]
    assert accept() == (9, []), "what was there before is one more: the order is that of time"


@pytest.mark.parametrize(
    "before, after, said",
    [
        ({"keep_alive": None}, {"keep_alive": "1h"}, ["keep_alive none → 1h"]),
        ({"isolate": False}, {"isolate": True}, ["isolate false → true"]),
        ({"environment": {}}, {"environment": {"A": "1"}}, ["environment"]),
        ({"model": "a"}, {"model": "b" * 41}, ["model"]),
        ({"model": "a"}, {"model": "b\x1b[2J"}, ["model a → b"]),
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, ["a 1 → none", "b 2 → 3", "c none → 4"]),
    ],
)
def test_what_changed_in_words(before, after, said):
    accept(**before)
    accept(**after)
    assert generations.read(UNIT)[-1]["changes"] == said


def test_where_a_release_came_from_is_no_change():
    """The run that sends it names the copy on the host, the next one that on the controller."""
    sent = {"archive": "/root/.ansible/tmp/x/ollama.tgz", "remote_src": True, "mirror": None, "addons": []}
    accept(declared("", version="0.32.0", **sent), installed=True)
    later = dict(sent, archive="/srv/ollama.tgz", remote_src=False)
    assert accept(declared("", version="0.32.0", **later)) == (None, [])
    assert accept(declared("", version="0.32.0", **later), installed=True) == (2, [])
    assert accept(declared("", version="0.33.0", **later), installed=True) == (3, [])
    assert [one["changes"] for one in generations.read(UNIT)] == [[], ["release"], ["version 0.32.0 → 0.33.0"]]
    restored = back(name="", generation="1", version="0.33.0", **later)
    assert restored.options["archive"] == sent["archive"], "by its name its checksum is found"
    assert restored.held == "generation 1, not as declared: version"


SESAME = "open-sesame"


@pytest.mark.parametrize("name", ["chat", ""])
def test_no_secret_is_recorded(folder, name):
    secret = {
        "api_key": SESAME,
        "hf_token": SESAME,
        "secret_environment": {"TOKEN": SESAME},
        "client_keys": {"alice": SESAME},
        "https_proxy": "http://me:%s@proxy:3128" % SESAME,
        "mirror": "https://me:%s@mirror/releases" % SESAME,
        "archive": "https://mirror/ollama.tgz?signature=%s" % SESAME,
        "addons": ["rocm", "https://me:%s@mirror/rocm.tgz" % SESAME],
        "drain_command": ["/bin/drain", "--token", SESAME],
        "undrain_command": ["/bin/drain", "--token", SESAME],
        "environment": {"HTTPS_PROXY": "http://me:%s@proxy:3128" % SESAME},
        "models": [{"name": "m", "source": "https://me:%s@mirror/m.gguf" % SESAME}],
        "extra_args": {"otlp": {"endpoints": ["https://otlp/v1?key=%s" % SESAME]}},
    }
    assert accept(declared(name, keep_alive="1h", **secret))[0] == 1
    text = (folder / (UNIT + ".json")).read_text()
    assert SESAME not in text and "keep_alive" in text
    # those of the inventory are used
    restored = back(name=name, generation="1", keep_alive="5m", **dict(secret, api_key="new"))
    assert restored.options["api_key"] == "new" and restored.options["mirror"] == secret["mirror"]
    assert accept(declared(name, keep_alive="1h", **dict(secret, api_key="new"))) == (None, [])


def test_a_variable_that_becomes_a_secret_is_removed_from_all_generations(folder):
    accept(environment={"A": "1", "TOKEN": SESAME}, secret_environment={})
    accept(environment={"A": "2", "TOKEN": SESAME}, secret_environment={})
    secret = {"TOKEN": SESAME}
    assert back(generation="1", environment={}, secret_environment=secret).options["environment"] == {"A": "1"}
    assert accept(environment={"A": "2"}, secret_environment=secret) == (3, [])
    assert SESAME not in (folder / (UNIT + ".json")).read_text()
    assert [one["options"]["environment"] for one in generations.read(UNIT)] == [{"A": "1"}, {"A": "2"}, {"A": "2"}]


def test_the_options_that_are_left_out_are_those_of_the_tables():
    """A secret of any engine is among them, and no name is one that no engine has."""
    assert {row.name for table in TABLES for row in table if row.no_log} == generations.SECRETS
    known = {row.name for table in TABLES for row in table}
    assert known >= generations._OF_A_RUN | generations._OF_A_HOST
    host = {row.name for table in TABLES for row in table if row.per_host}
    assert host - generations._OF_A_RUN - generations._OF_A_HOST == {"model_paths"}


def test_a_kill_leaves_a_history_that_can_be_read(kills):
    def prepare():
        record.forget(generations.place_of(UNIT))
        accept()
        return lambda: accept(port=9000)

    for _point in kills.each(prepare):
        numbers = [one["number"] for one in generations.read(UNIT)]
        assert numbers in ([1], [1, 2])
        accept(port=9000)
        assert [one["number"] for one in generations.read(UNIT)] == [1, 2]
    assert kills.points >= 2


def test_without_space_the_history_stays_as_it_is_and_the_run_says_so(monkeypatch):
    accept()

    def full(*words, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(generations.record, "write", full)
        number, warnings = accept(port=9000)
    assert number is None and "is verified, but its generation is not recorded" in warnings[0]
    assert [one["options"]["port"] for one in generations.read(UNIT)] == [8000]


def test_a_service_that_leaves_leaves_no_history(folder):
    accept()
    (folder / (".%s.json.new" % UNIT)).write_text("left by a kill")
    other = folder / "ollama.service.json"
    other.write_text("{}")
    record.forget(generations.place_of(UNIT))
    assert os.listdir(folder) == [other.name]
    for _ in range(2):
        record.forget(generations.place_of("ollama.service"))
        assert not folder.exists()


# --- what is believed


def test_a_link_is_not_followed(folder, tmp_path):
    accept()
    place, elsewhere = folder / (UNIT + ".json"), tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    before = elsewhere.read_text()
    with pytest.raises(Refused, match="does not hold generations"):
        generations.read(UNIT)
    assert accept(port=9000)[0] is None and elsewhere.read_text() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["the file", "the folder", "a folder above it"])
def test_what_another_user_could_have_written_is_not_used(folder, tmp_path, what):
    """A generation decides what runs: whoever could write one could choose the user, the program and the port."""
    accept()
    owned = {"the file": folder / (UNIT + ".json"), "the folder": folder}.get(what, folder.parent)
    os.chown(owned, 12345, 12345)
    with pytest.raises(Refused, match="belongs to user 12345; expected a file that only root can write"):
        generations.read(UNIT)
    before = (folder / (UNIT + ".json")).read_text()
    number, warnings = accept(port=9000)
    assert number is None and "belongs to user 12345" in warnings[0]
    assert (folder / (UNIT + ".json")).read_text() == before


def test_a_file_that_all_may_write_is_not_used(folder):
    accept()
    (folder / (UNIT + ".json")).chmod(0o666)
    with pytest.raises(Refused, match="may be written by any user"):
        back(generation="1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"generations"', '"other"'),
        lambda text: text.replace('"number": 1', '"number": "1"'),
        lambda text: text.replace('"options": {', '"options": 3, "more": {'),
        lambda text: text.replace(UNIT, "vllm@code.service"),
        lambda text: "[" * 100000,
    ],
)
def test_a_damaged_history_or_one_of_another_unit_is_not_used(folder, damage):
    accept()
    place = folder / (UNIT + ".json")
    place.write_text(damage(place.read_text()))
    damaged = place.read_text()
    with pytest.raises(Refused, match="does not hold generations of %s: remove it" % UNIT):
        back(generation="1")
    number, warnings = accept(port=9000)
    assert number is None and "does not hold generations" in warnings[0]
    assert place.read_text() == damaged, "a person may want to look at it"
    place.unlink()
    assert accept(port=9000) == (1, [])


def test_a_pipe_is_not_waited_for(folder):
    folder.mkdir(parents=True)
    os.mkfifo(folder / (UNIT + ".json"))
    with pytest.raises(Refused, match="does not hold generations"):
        generations.read(UNIT)


def test_a_history_of_another_engine_is_not_used():
    accept()
    with pytest.raises(Refused, match="holds generations of vLLM, while %s is declared as Ollama" % UNIT):
        generations.back([declared(generation="1")], "Ollama")


# --- going back


@pytest.fixture
def three(clock):
    """Three generations: ports 8001 to 8003, at eight, nine and ten."""
    for number, hour in enumerate(("08:00:12", "09:00:12", "10:00:12"), 1):
        clock("2026-11-30T%sZ" % hour)
        accept(port=8000 + number)


@pytest.mark.parametrize(
    "wanted, port",
    [
        ("1", 8001),
        (3, 8003),
        ("2026-11-30T09:00:12Z", 8002),
        ("2026-11-30T09:00:11Z", 8001),
        ("2026-11-30T09:00Z", 8002),
        ("2026-11-30 09:59", 8002),
        ("2026-11-30 09:00:12+00:00", 8002),
        ("2026-12-24T00:00Z", 8003),
    ],
)
def test_which_generation_is_meant(three, wanted, port):
    assert back(generation=wanted).options["port"] == port


@pytest.mark.parametrize(
    "wanted, said",
    [
        ("4", "has no generation 4; it has: 1 of 2026-11-30T08:00:12Z, 2 of"),
        ("2026-11-30T07:59Z", "has no generation that was accepted by 2026-11-30T07:59Z; it has: 1 of"),
        ("yesterday", "'yesterday'; expected a number, or a time in UTC such as"),
        ("-1", "expected a number"),
        ("2026-11-30", "expected a number"),
    ],
)
def test_a_generation_that_does_not_exist_is_rejected(three, wanted, said):
    with pytest.raises(Refused, match=said):
        back(generation=wanted)


def test_without_any_generation():
    with pytest.raises(Refused, match="has no generation 1; it has: none"):
        back(generation="1")


def test_the_options_of_a_generation_take_the_place_of_the_declared_ones(three):
    service = back(generation="1", port=8009, timeout=60, api_key="new")
    assert service.options == {"state": "present", "generation": "1", "port": 8001, "api_key": "new", "timeout": 60}
    assert service.held == "generation 1, not as declared: port"
    assert back(generation="1", port=8001).held == "generation 1, which is as declared"


def test_an_option_that_was_not_set_then_is_not_set_again():
    accept(keep_alive=None)
    assert back(generation="1", keep_alive="1h").options["keep_alive"] is None


def test_who_is_not_taken_back(three):
    assert (back().options, back().held) == (declared().options, "")
    gone = declared(state="absent", generation="1", port=8009)
    assert generations.back([gone], "vLLM")[0].options["port"] == 8009


def test_the_other_services_see_it_as_it_is_then(three):
    chat = declared(generation="1")
    code = Service("vllm@code.service", "code", dict(declared().options), siblings=[chat])
    assert generations.back([chat, code], "vLLM")[1].siblings[0].options["port"] == 8001


def test_an_instance_does_not_change_the_release_of_all():
    service = Service("ollama@a.service", "a", dict(declared().options, version="0.3.0", prefix="/usr/local"))
    assert set(accept(service) and generations.read(service.unit)[0]["options"]) == {"port"}
    alone = declared("", version="0.3.0")
    accept(alone)
    assert back(name="", generation="1", version="0.4.0").options["version"] == "0.3.0"


@pytest.mark.parametrize("option", ["renamed", "state", "undrain_command", "api_key"])
def test_an_option_that_no_generation_may_have_is_rejected(folder, option):
    """One that has another name by now, and those that are never recorded."""
    accept()
    place = folder / (UNIT + ".json")
    history = json.loads(place.read_text())
    history["generations"][0]["options"][option] = "x"
    place.write_text(json.dumps(history))
    with pytest.raises(Refused, match="generation 1 of %s has %s, which this version" % (UNIT, option)):
        back(generation="1")


# --- showing


def test_the_table(three):
    generations.accept(
        Service("ollama.service", "", {"keep_alive": "1h"}),
        "Ollama",
        {"ready_seconds": 0.4, "answer": "a token", "latency_seconds": 0.05},
        None,
        False,
        Outcome(),
    )
    lines = generations.report({"unit": None}, False, pytest.fail)["table"]
    assert [line.split("  ") for line in map(squeezed, lines)] == [
        ["service", "no.", "accepted", "verdict", "proof", "unserved", "changed"],
        ["ollama.service", "1", TEN, "ok", "ready in 0.4 s, a token in 0.05 s", "0.0 s", "(the first)"],
        [UNIT, "3", TEN, "ok", "0.33.0", "1.9 s", "port 8002 → 8003"],
        [UNIT, "2", "2026-11-30T09:00:12Z", "ok", "0.33.0", "1.9 s", "port 8001 → 8002"],
        [UNIT, "1", "2026-11-30T08:00:12Z", "ok", "0.33.0", "1.9 s", "(the first)"],
    ]
    assert len({line.index("2026") for line in lines[1:]}) == 1, "the columns stand under each other"


def squeezed(line):
    return re.sub("  +", "  ", line)


TEN = "2026-11-30T10:00:12Z"
