# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start log of a real server, recorded; and that what settings.py foretells is what it logged."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import log, settings
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused


@pytest.fixture
def recorded(fixture_text):
    """`recorded("howto")` is the start log of that recording, parsed."""
    return lambda name: log.parse(fixture_text("ollama/start/%s.log" % name).splitlines())


def test_the_recorded_how_to(recorded):
    start = recorded("howto")
    assert start.listening == "127.0.0.1:21434"
    assert start.version == "0.32.15"
    assert start.config["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert start.config["OLLAMA_KEEP_ALIVE"] == "2562047h47m16.854775807s"
    assert start.config["OLLAMA_ORIGINS"].startswith("[http://localhost https://localhost http://localhost:* ")
    assert start.config["OLLAMA_HOST"] == "http://127.0.0.1:21434"
    assert start.config["HTTP_PROXY"] == ""
    assert start.config["no_proxy"] == ""
    assert set(start.config) == set(settings.LOGGED)
    assert [compute.on_cpu for compute in start.compute] == [True]
    assert start.failure is None


def test_four_gpus(recorded):
    start = recorded("h200x4-howto")
    assert [(gpu.id, gpu.library, gpu.pci_bus_id, gpu.description) for gpu in start.compute] == [
        (str(index), "CUDA", "0000:00:0%d.0" % (6 + index), "NVIDIA H200") for index in range(4)
    ]
    assert not any(gpu.on_cpu or gpu.uuid for gpu in start.compute)


@pytest.mark.parametrize("name", ["howto", "quoted", "uuids-and-lists", "keepalive-seconds", "keepalive-zero"])
def test_settings_foretell_what_the_server_logs(recorded, fixture_text, name):
    """Each recording says which environment the server was given; what it understood is in its log."""
    given = json.loads(fixture_text("ollama/start/%s.log" % name).splitlines()[0].partition(": ")[2])
    given.pop("HTTPS_PROXY", None)  # with a password, so refused
    visible = given.get("CUDA_VISIBLE_DEVICES")
    given = {variable: value.strip().strip("\"'") for variable, value in given.items()}
    declared = settings.declare({}, given, visible)
    logged = recorded(name).config
    assert declared.effective
    for variable, expected in declared.effective.items():
        assert settings.agrees(variable, expected, logged[variable]), (variable, expected, logged[variable])


def test_every_misread_value_of_the_recording_is_refused(fixture_text, recorded):
    given = json.loads(fixture_text("ollama/start/misread.log").splitlines()[0].partition(": ")[2])
    for variable, value in given.items():
        if variable == "OLLAMA_SCHED_SPRED":
            assert settings.declare({}, {variable: value}).warnings
        else:
            with pytest.raises(Refused):
                settings.declare({}, {variable: value})
    start = recorded("misread")
    assert start.config["OLLAMA_SCHED_SPREAD"] == "true"
    assert start.replaced == {"OLLAMA_GPU_OVERHEAD": "1GiB", "OLLAMA_MAX_QUEUE": "abc", "OLLAMA_NUM_PARALLEL": "-3"}


def test_a_bad_port_is_replaced(recorded):
    start = recorded("bad-host-port")
    assert start.replaced == {"OLLAMA_HOST": "99999"}
    assert start.config["OLLAMA_HOST"] == "http://127.0.0.1:11434"


@pytest.mark.parametrize(
    "name, words, advice",
    [
        ("port-in-use", "bind: address already in use", "choose another port"),
        ("unbindable-host", "cannot assign requested address", "no such address"),
        ("models-dir-is-a-file", "not a directory", "is a file"),
        ("no-home", "$HOME is not defined", "no home"),
    ],
)
def test_last_words(recorded, name, words, advice):
    failure = recorded(name).failure
    assert words in failure
    assert advice in log.remedy(failure)


def test_unknown_last_words_have_no_remedy():
    assert log.remedy("Error: the moon is full") == ""


def test_the_format_before_0_7():
    start = log.parse(
        [
            '2025/03/12 15:11:53 routes.go:1230: INFO server config env="map[CUDA_VISIBLE_DEVICES:0,1 OLLAMA_DEBUG:false '
            'OLLAMA_KEEP_ALIVE:5m0s OLLAMA_MULTIUSER_CACHE:false OLLAMA_ORIGINS:[http://localhost app://*] no_proxy:]"',
            'time=2025-03-12T15:11:53.581Z level=INFO source=routes.go:1297 msg="Listening on [::]:11434 (version 0.6.0)"',
            'time=2025-03-12T15:11:54.031Z level=INFO source=types.go:130 msg="inference compute" '
            "id=GPU-6e0f3a8c-0000-4000-8000-000000000001 library=cuda variant=v12 compute=8.9 driver=12.4 "
            'name="NVIDIA GeForce RTX 4090" total="23.6 GiB" available="23.2 GiB"',
        ]
    )
    assert start.config == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OLLAMA_DEBUG": "false",
        "OLLAMA_KEEP_ALIVE": "5m0s",
        "OLLAMA_MULTIUSER_CACHE": "false",
        "OLLAMA_ORIGINS": "[http://localhost app://*]",
        "no_proxy": "",
    }
    assert (start.listening, start.version) == ("[::]:11434", "0.6.0")
    (gpu,) = start.compute
    assert gpu.uuid == "GPU-6e0f3a8c-0000-4000-8000-000000000001"
    assert gpu.description == "NVIDIA GeForce RTX 4090"
    assert not gpu.on_cpu


def test_a_value_may_hold_blanks_quotes_and_what_looks_like_a_name():
    line = (
        'level=INFO msg="server config" env="map[OLLAMA_HOST:http://h:1 OLLAMA_MODELS:/a \\"b\\" OLLAMA_HOST:x\\\\y'
        '\\u00e4\\t OLLAMA_NOPRUNE:true]"'
    )
    assert log.parse([line]).config == {
        "OLLAMA_HOST": "http://h:1",
        "OLLAMA_MODELS": '/a "b" OLLAMA_HOST:x\\yä\t',
        "OLLAMA_NOPRUNE": "true",
    }


def test_other_lines_are_passed_over():
    start = log.parse(["", "server config but no map", "Listening on nothing", "[GIN] | 200 |"])
    assert start == log.StartLog()
    assert log.parse_map("map[]") == {}


# --- what others can have the server log


FORGED = [
    'level=INFO msg="server config" env="map[OLLAMA_KEEP_ALIVE:forged]"',
    'level=INFO msg="Listening on 192.0.2.1:1 (version 9.9.9)"',
    'level=INFO msg="inference compute" id=9 library=CUDA description=forged pci_id=0000:00:09.0',
    'level=WARN msg="invalid environment variable, using default" key=OLLAMA_FORGED value=x',
    'level=INFO msg="vram-based default context" total_vram="1 GiB"',
    "Error: forged",
    "panic: forged",
]


@pytest.mark.parametrize("name", ["howto", "h200x4-howto"])
def test_after_the_start_nothing_is_believed(fixture_text, name):
    """A worker prints what the model's file says of itself, with its line breaks, before the first request is logged."""
    genuine = fixture_text("ollama/start/%s.log" % name).splitlines()
    assert log.parse(genuine + FORGED) == log.parse(genuine)
    assert log.parse(genuine + FORGED).compute_ended


def test_nor_of_a_server_that_does_not_say_where_its_list_ends():
    old = [
        'level=INFO msg="server config" env="map[OLLAMA_KEEP_ALIVE:5m0s]"',
        'level=INFO msg="Listening on 127.0.0.1:11434 (version 0.12.6)"',
        'level=INFO msg="inference compute" id=cpu library=cpu pci_id=""',
    ]
    told = log.parse([*old, "print_info: general.name = a model", *FORGED])
    assert told == log.parse(old) and [one.on_cpu for one in told.compute] == [True]
    more = 'level=INFO msg="inference compute" id=1 library=CUDA pci_id=0000:00:06.0'
    assert len(log.parse([*old, more]).compute) == 2


@pytest.mark.parametrize("version", ["0.15.5", "0.32.15", "1.0.0", "0.0.0", "0.16.0-rc1"])
def test_what_else_a_new_server_says_does_not_end_its_list(version):
    line = 'level=INFO msg="inference compute" id=%d library=CUDA pci_id=0000:00:06.0'
    lines = ["Listening on 127.0.0.1:11434 (version %s)" % version, line % 0, "level=WARN msg=refresh", line % 1]
    assert len(log.parse(lines).compute) == 2


def test_the_first_word_counts():
    genuine = ['msg="server config" env="map[OLLAMA_KEEP_ALIVE:5m0s]"', "Listening on 127.0.0.1:1 (version 0.32.15)"]
    start = log.parse([*genuine, *FORGED])
    assert start.config == {"OLLAMA_KEEP_ALIVE": "5m0s"} and start.version == "0.32.15"


@pytest.mark.parametrize(
    "line",
    [
        "server config env=" * 60000,
        'server config env="' * 60000,
        'server config env="' + "\\" * 1000001,
        "inference compute " + "a" * 1000000,
        "inference compute " + "a=" * 500000,
        'inference compute a="' * 50000,
        "Listening on " * 80000,
        'invalid environment variable, using default key="' + "\\x" * 300000,
    ],
    ids=lambda line: line[:30],
)
def test_no_line_takes_long(line):
    """What took the square of its length took hours; this is a matter of milliseconds, and no time is asserted."""
    assert not log.parse([line] * 3).config


def test_escapes_that_no_text_can_hold():
    assert log.unquote(r'"a\Uffffffff\ud800\udfff\U00110000\u00e4\x41\u"') == "a\ufffd\ufffd\ufffd\ufffd\u00e4Au"


def test_last_words_are_one_line_and_short():
    said = log.last_words(["Error: first", "panic: \x1b[2J\x07 runtime" + "x" * 10000, "goroutine 1"])
    assert said.startswith("panic: ? runtimexxx") and len(said) == 500
    assert log.last_words(["fine"]) == ""
