# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of each instance, out of the common ones and its own."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import instances
from ansible_collections.gpufleet.inference.plugins.modules import ollama_service

NONE = dict.fromkeys(ollama_service.argument_spec()["instances"]["options"])


def services(*given, **common):
    params = {name: option.get("default") for name, option in ollama_service.argument_spec().items()}
    params.update(common, instances=[dict(NONE, **one) for one in given])
    return instances.services(params)


@pytest.mark.parametrize("name", ["ollama", "ollama.service"])
def test_without_instances_it_is_one_service(name):
    (one,) = services(name=name, keep_alive="5m")
    assert (one["unit"], one["keep_alive"]) == ("ollama.service", "5m")
    (instance,) = services(name="ollama@second")
    assert instance["unit"] == "ollama@second.service"


def test_an_instance_has_its_own_options_over_the_common_ones():
    chat, code = services(
        {"name": "chat", "host": ":11435", "environment": {"B": "3"}, "enabled": False, "sched_spread": False},
        {"name": "code", "state": "absent"},
        keep_alive="-1",
        sched_spread=True,
        environment={"A": "1", "B": "2"},
        isolate=True,
    )
    assert (chat["unit"], code["unit"]) == ("ollama@chat.service", "ollama@code.service")
    assert (chat["state"], code["state"]) == ("present", "absent")
    assert (chat["host"], code["host"]) == (":11435", None)
    assert (chat["sched_spread"], code["sched_spread"]) == (False, True)
    assert (chat["enabled"], code["enabled"]) == (False, True)
    assert chat["environment"] == {"A": "1", "B": "3"}
    assert chat["keep_alive"] == code["keep_alive"] == "-1"
    assert chat["isolate"] is True


def test_instances_that_share_a_store_do_not_prune_it():
    own, first, second, gone = services(
        {"name": "own", "models_dir": "/srv/own"},
        {"name": "first"},
        {"name": "second", "noprune": False},
        {"name": "gone", "models_dir": "/srv/own", "state": "absent"},
    )
    assert (own["noprune"], first["noprune"], second["noprune"], gone["noprune"]) == (None, True, False, None)


@pytest.mark.parametrize(
    "given, common, words",
    [
        ([{"name": "a b"}], {}, "'a b' is no name of an instance"),
        ([{"name": "a-b"}], {}, "is no name of an instance"),
        ([{"name": "a"}, {"name": "a"}], {}, "a is there twice"),
        ([{"name": "a"}], {"name": "ollama@b"}, "the part before the @"),
    ],
)
def test_what_cannot_be_meant(given, common, words):
    with pytest.raises(instances.InstanceError, match=words):
        services(*given, **common)


def test_an_instance_may_have_every_option_of_a_service_but_no_default():
    whole, own = ollama_service.argument_spec(), ollama_service.argument_spec()["instances"]["options"]
    host_wide = set(whole) - set(own)
    assert host_wide >= {"archive", "archive_checksum", "remote_src", "prefix", "facts_timeout", "instances"}
    assert [name for name, option in own.items() if option.get("default") is not None] == []
