# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that keep a service to its own GPUs and folders, and what of a unit stands against them."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving.isolation import Isolation
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.model import Declared
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import merge
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

BOTH = {"isolate": True, "sandbox": True}
NONE = {"isolate": False, "sandbox": False}


def isolation(fakes, there=True, indexes=(2,), **options):
    devices = [device for device in fakes.facts()["devices"] if device["index"] in indexes]
    return Isolation(dict(NONE, **options), devices, there, "vLLM")


def unit(text):
    return merge([("/x.conf", b"[Service]\n" + text)])


def test_nothing_is_declared(fakes):
    assert isolation(fakes).settings("a.service", Declared("root")) == {}


def test_only_its_own_gpus_can_be_opened(fakes):
    settings = isolation(fakes, isolate=True).settings("a.service", Declared("root"))
    assert settings["DevicePolicy"] == ["closed"]
    assert settings["DeviceAllow"][:2] == ["", "/dev/nvidia2 rw"]
    assert "/dev/nvidia3 rw" not in settings["DeviceAllow"]
    assert "ProtectSystem" not in settings


def test_the_sandbox_may_write_where_the_service_does(fakes):
    declared = Declared("root", writable=["/srv/models"], sandbox={"ProtectHome": ["no"]})
    settings = isolation(fakes, sandbox=True).settings("a.service", declared)
    assert settings["ReadWritePaths"] == ["-/srv/models"]
    assert settings["ProtectHome"] == ["no"], "as the engine needs it"
    assert "DeviceAllow" not in settings


@pytest.mark.parametrize("key", ["writable", "readable"])
def test_a_folder_that_the_sandbox_would_hide(fakes, key, tmp_path):
    link = tmp_path / "models"
    link.symlink_to("/home/fleet/models")
    for path, shown in (("/home/fleet/models", "/home/fleet/models, but"), (str(link), "(/home/fleet/models), but")):
        with pytest.raises(Refused, match="a.service needs ") as refused:
            isolation(fakes, sandbox=True).settings("a.service", Declared("root", **{key: [path]}))
        assert shown + " the sandbox hides /home from it" in str(refused.value)


def test_nodes_that_are_not_known(fakes):
    devices = [dict(fakes.facts()["devices"][0], minor=None, unavailable={"minor": "no /proc"})]
    with pytest.raises(Refused, match="isolate: "):
        Isolation(BOTH, devices, True, "vLLM")
    assert Isolation(NONE, devices, True, "vLLM").nodes == []


def test_a_unit_that_would_hide_the_gpus(fakes):
    check = isolation(fakes).check()
    assert check(unit(b"PrivateDevices=yes")).startswith("PrivateDevices=yes in /x.conf:2 keeps /dev/nvidia2")
    assert "so that vLLM would serve on the CPU" in check(unit(b"PrivateDevices=yes"))
    assert check(unit(b"DeviceAllow=char-nvidia*")) is None
    assert isolation(fakes, there=False).check()(unit(b"PrivateDevices=yes")) is None, "there is none to hide"


def test_a_unit_that_would_open_more(fakes):
    wider = unit(b"DeviceAllow=char-nvidia* rw")
    assert "isolate: DeviceAllow=char-nvidia* rw in /x.conf:2" in isolation(fakes, isolate=True).check()(wider)
    assert isolation(fakes).check()(wider) is None
