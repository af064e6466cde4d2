# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job of benchmarks/builtin.yml for pyinfra: the same drop-in, service and checks. Run through converge.py."""

from __future__ import annotations

from io import StringIO

from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import files, systemd

gpus = len(host.get_fact(Command, "nvidia-smi --query-gpu=index --format=csv,noheader").split())
environment = {
    "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    "OLLAMA_SCHED_SPREAD": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_NO_CLOUD": "1",
}
dropin = files.put(
    name="Write the drop-in",
    src=StringIO("[Service]\n" + "".join('Environment="%s=%s"\n' % one for one in environment.items())),
    dest="/etc/systemd/system/ollama.service.d/50-benchmark.conf",
    mode="644",
    _sudo=True,
)
systemd.service(
    name="Start and enable the service",
    service="ollama.service",
    running=True,
    enabled=True,
    restarted=dropin.will_change,
    daemon_reload=dropin.will_change,
    _sudo=True,
)
there = host.get_fact(Command, "systemctl show ollama.service --property=Environment")
missing = [name for name, value in environment.items() if "%s=%s" % (name, value) not in there]
answers = host.get_fact(Command, "curl -sf -o /dev/null -w '%{http_code}' http://127.0.0.1:11434/api/version")
if not dropin.will_change and (missing or answers != "200"):
    raise SystemExit("%s: not as declared: %s, API %s" % (host.name, missing, answers))
