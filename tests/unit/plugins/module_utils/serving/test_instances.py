# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of each instance: its own, and those next to ``instances``."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving.instances import services
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

COMMON = {
    "state": "present",
    "port": None,
    "spread": None,
    "enabled": True,
    "environment": {"A": "1", "B": "2"},
    "secret_environment": {"S": "1", "T": "2"},
}


def of(*instances, **common):
    none = dict.fromkeys(COMMON)
    return services(dict(COMMON, **common, instances=[dict(none, **one) for one in instances]), "engine")


@pytest.mark.parametrize("base", ["engine", "engine@second"])
def test_without_instances_it_is_one_service(base):
    (one,) = services(dict(COMMON, instances=None), base)
    assert (one.unit, one.name, one.options["enabled"], one.siblings) == (base + ".service", "", True, ())


def test_an_empty_list_is_no_service():
    assert services(dict(COMMON, instances=[]), "engine") == []


def test_an_instance_has_its_own_options_over_the_common_ones():
    chat, code = of(
        {"name": "chat", "port": 1, "enabled": False, "environment": {"B": "3"}, "secret_environment": {"T": "3"}},
        {"name": "code"},
        spread=4,
    )
    assert [(one.unit, one.name) for one in (chat, code)] == [
        ("engine@chat.service", "chat"),
        ("engine@code.service", "code"),
    ]
    assert chat.options["secret_environment"] == {"S": "1", "T": "3"}
    assert (chat.options["port"], code.options["port"]) == (1, None)
    assert (chat.options["enabled"], code.options["enabled"]) == (False, True)
    assert chat.options["spread"] == code.options["spread"] == 4
    assert chat.options["environment"] == {"A": "1", "B": "3"}
    assert code.options["environment"] == {"A": "1", "B": "2"}


def test_siblings_are_the_others_that_stay():
    first, second, leaving = of({"name": "a"}, {"name": "b"}, {"name": "c", "state": "absent"})
    assert [one.name for one in first.siblings] == ["b"]
    assert [one.name for one in second.siblings] == ["a"]
    assert [one.name for one in leaving.siblings] == ["a", "b"]


def test_the_main_service_goes_where_instances_take_its_place():
    one = {"name": "a"}
    assert [service.unit for service in of(one)] == ["engine@a.service"]
    *_others, main = of(one, main="disabled")
    assert (main.unit, main.name, main.replaced, main.options["state"]) == ("engine.service", "", True, "absent")
    assert len(of(dict(one, state="absent"), main="disabled")) == 1, "then nothing would be left"


@pytest.mark.parametrize(
    "names, words",
    [
        (["a b"], "'a b' is not a valid name"),
        (["a-b"], "'a-b' is not a valid name; .* as in engine@NAME.service"),
        ([""], "'' is not a valid name"),
        (["a", "a"], "a is there twice"),
    ],
)
def test_names_that_cannot_be_meant(names, words):
    with pytest.raises(Refused, match=words):
        of(*({"name": name} for name in names))


def test_an_instance_of_an_instance():
    with pytest.raises(Refused, match="expected the part before the @"):
        services(dict(COMMON, instances=[{"name": "a"}]), "engine@b")
