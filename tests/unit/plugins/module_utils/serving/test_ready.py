# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit that waits for a service: what is in it, written and removed as a step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.programs import await_ready
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import ready, run
from ansible_collections.gpufleet.inference.plugins.module_utils.systemd.unit import parse
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.source import source_of

URL = "http://127.0.0.1:8000/health"


def test_what_it_says():
    found = {}
    for line in parse(ready.text("vllm@chat.service", URL).encode(), "").assignments:
        found.setdefault(line.section, {})[line.key] = line.value
    assert found["Unit"]["After"] == "vllm@chat.service"
    assert "Wants" not in found["Unit"], "it must not start what was declared stopped or asleep"
    assert found["Service"]["Type"] == "oneshot" and found["Service"]["TimeoutStartSec"] == "infinity"
    assert "Install" not in found, "it is started by those that need it"
    command = found["Service"]["ExecStart"]
    assert command.endswith('" ' + URL) and "\n" not in command
    program = command.split(" -I -c ")[1].rpartition(" ")[0]
    assert program.strip('"').encode().decode("unicode_escape").replace("%%", "%").replace("$$", "$") == source_of(
        await_ready
    )


def test_written_put_back_and_removed(tmp_path):
    path = tmp_path / "vllm-ready@chat.service"
    step = ready.ReadyStep(str(path), "new")
    assert step.needed() and not step.restarts and step.diff() == {"before": "", "after": "new"}
    step.apply()
    assert path.read_text() == "new" and not ready.ReadyStep(str(path), "new").needed()
    step.undo()
    assert not path.exists()
    path.write_text("old")
    step = ready.ReadyStep(str(path), None)
    assert step.needed() and step.diff() == {"before": "old", "after": ""}
    step.apply()
    assert not path.exists()
    step.undo()
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("ollama.service", "ollama-ready.service"),
        ("vllm@chat.service", "vllm-ready@chat.service"),
        ("llama-server@a.service", "llama-server-ready@a.service"),
    ],
)
def test_its_name(unit, name, tmp_path):
    read = []
    system = SimpleNamespace(root=str(tmp_path), read=lambda path: read.append(path))
    service, host = SimpleNamespace(unit=unit), SimpleNamespace(system=system)
    assert run._ready_unit(service, "", host) == [] and read == ["/etc/systemd/system/" + name]
    (step,) = run._ready_unit(service, URL, host)
    assert step.path == "%s/etc/systemd/system/%s" % (tmp_path, name) and step.text == ready.text(unit, URL)
    system.read = lambda path: b"old"
    assert run._ready_unit(service, "", host)[0].text is None
