# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job of benchmarks/builtin.yml for pyinfra: the same drop-in, service and checks. Run through converge.py."""

from __future__ import annotations

from io import StringIO

from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import files, server, systemd

gpus = len(host.get_fact(Command, "nvidia-smi --query-gpu=index --format=csv,noheader").split())
environment = {
    "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    "OLLAMA_SCHED_SPREAD": "1",
    "OLLAMA_KEEP_ALIVE": host.data.keep_alive,
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
api = "http://127.0.0.1:11434/api/version"
if dropin.will_change:
    wait = "curl -sf -o /dev/null --retry 100 --retry-delay 0 --retry-connrefused %s" % api
    server.shell(name="Wait for the API", commands=[wait])
elif missing or host.get_fact(Command, "curl -sf -o /dev/null -w '%%{http_code}' %s" % api) != "200":
    raise SystemExit("%s: not as declared: %s is missing, or the API does not answer" % (host.name, missing))
