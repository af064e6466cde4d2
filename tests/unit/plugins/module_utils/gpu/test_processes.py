# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which unit a process belongs to: real shapes of /proc/PID/cgroup."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import processes

V1 = """13:pids:{path}
12:devices:{path}
4:cpu,cpuacct:{path}
1:name=systemd:{path}
0::{unified}
"""


@pytest.mark.parametrize(
    "text, unit",
    [
        pytest.param("0::/system.slice/ollama.service\n", "ollama.service", id="v2"),
        pytest.param(
            V1.format(path="/system.slice/ollama.service", unified="/system.slice/ollama.service"),
            "ollama.service",
            id="v1",
        ),
        pytest.param(V1.format(path="/system.slice/ollama.service", unified="/"), "ollama.service", id="hybrid"),
        pytest.param(
            V1.format(path="/", unified="/system.slice/ollama.service"), "ollama.service", id="v1 at the root"
        ),
        pytest.param(
            "0::/system.slice/system-vllm.slice/vllm@a\\x2db.service\n", "vllm@a\\x2db.service", id="escaped name"
        ),
        pytest.param("0::/gpu.slice/gpu-a.slice/gpu-a-b.slice/x.service\n", "x.service", id="nested slices"),
        pytest.param(
            "0::/system.slice/ollama.service/payload/x.service\n", "ollama.service", id="what it delegates to"
        ),
        pytest.param("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope", id="login session"),
        pytest.param(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/jupyter.service\n",
            "user@1000.service",
            id="user manager",
        ),
        pytest.param("0::/system.slice/docker-0123abcd.scope\n", "docker-0123abcd.scope", id="container"),
        pytest.param("0::/machine.slice/libpod-01.scope/container/init.scope\n", "libpod-01.scope", id="podman"),
        pytest.param("0::/../../system.slice/a.service\n", "a.service", id="outside of the own namespace"),
        pytest.param("0::/system.slice/_cgroup.service\n", "cgroup.service", id="a name systemd protects"),
        pytest.param("0::/system.slice/ollama.service (deleted)\n", "ollama.service", id="cgroup that is gone"),
        pytest.param("0::/init.scope\n", "init.scope", id="the manager itself"),
        pytest.param("0::/\n", None, id="no unit"),
        pytest.param("0::/docker/0123abcd\n", None, id="a container outside of systemd"),
        pytest.param("0::/system.slice\n", None, id="a slice alone"),
        pytest.param("", None, id="nothing"),
        pytest.param("rubbish", None, id="rubbish"),
    ],
)
def test_unit_of_cgroup(text, unit):
    assert processes.unit_of_cgroup(text) == unit


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_user_cannot_name_a_control_group_like_another_unit(tmp_path, end):
    """The kernel refuses no line end but \\n in such a name."""
    text = "0::/user.slice/user-1000.slice/user@1000.service/x%s0::ollama.service\n" % end
    (tmp_path / "proc/42").mkdir(parents=True)
    (tmp_path / "proc/42/cgroup").write_bytes(text.encode())
    assert processes.unit_of_cgroup(text) == processes.unit_of(42, str(tmp_path)) == "user@1000.service"


def test_unit_of_reads_procfs(tmp_path):
    (tmp_path / "proc" / "42").mkdir(parents=True)
    (tmp_path / "proc" / "42" / "cgroup").write_text("0::/system.slice/ollama.service\n")
    assert processes.unit_of(42, str(tmp_path)) == "ollama.service"
    assert processes.unit_of(43, str(tmp_path)) is None


def test_held_by_unit():
    def process(unit, used):
        return {"pid": 1, "name": "x", "type": "compute", "used_bytes": used, "unit": unit}

    devices = [
        {"uuid": "GPU-a", "processes": [process("a.service", 5), process("a.service", 7), process("b.service", 100)]},
        {"uuid": "GPU-b", "processes": [process("a.service", None)]},
        {"uuid": "GPU-c", "processes": [process("b.service", 1), process(None, 1)]},
        {"uuid": "GPU-d", "processes": None},
    ]
    assert processes.held_by_unit(devices, "a.service") == {"GPU-a": 12, "GPU-b": 0}
    assert processes.held_by_unit(devices, "c.service") == {}
