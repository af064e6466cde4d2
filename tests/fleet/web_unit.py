# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet-web.service on a lab host: a server on the port that its environment names, and ways to look at it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Dict

sys.path.insert(0, str(Path(__file__).parent))

import on_host

UNIT = "fleet-web.service"
PLACE = "/run/systemd/system/" + UNIT
DROP_INS = "/etc/systemd/system/%s.d" % UNIT
OURS = DROP_INS + "/zz-gpufleet.conf"
SERVER = "/usr/bin/python3 -u -m http.server --bind 127.0.0.1 $PORT"
# Restart= as upstream's ollama.service has it: systemd never gives up
FRAGMENT = """\
[Unit]
Description=Test
[Service]
Type=%s
ExecStart=%s
Restart=always
RestartSec=3
TimeoutStopSec=20
Environment=PORT=18080 PYTHONUNBUFFERED=1
[Install]
WantedBy=multi-user.target
"""


class Unit:
    """fleet-web.service on one host: a server on the port that its environment names."""

    def __init__(self, lab: Any, host: str) -> None:
        self.lab, self.host = lab, host
        self.fragment("simple", SERVER)

    def fragment(self, kind: str, command: str) -> None:
        on_host.put(self.lab, self.host, PLACE, (FRAGMENT % (kind, command)).encode())
        self.sh("systemctl daemon-reload; systemctl restart " + UNIT)
        self.serves(18080)

    def sh(self, command: str, **more: Any) -> str:
        return self.lab.sh(self.host, command, **more)

    def __call__(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        options = dict({"unit": UNIT}, **options)
        # with less verbosity Ansible prints the difference, but leaves it out of the result
        return self.lab.module(self.host, "systemd_override", options, "-vvv", check=check)

    def serves(self, port: int) -> None:
        self.sh("timeout 100 sh -c 'until curl -fsS -o /dev/null http://127.0.0.1:%d/; do sleep 0.1; done'" % port)

    def show(self, name: str) -> str:
        return self.sh("systemctl show %s -p %s --value" % (UNIT, name)).strip()

    def environ(self) -> Dict[str, str]:
        out = self.sh("tr '\\0' '\\n' </proc/$(systemctl show %s -p MainPID --value)/environ" % UNIT)
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def files(self) -> str:
        """Every file that the module could touch: name, mode, owner, time, sum; and what systemd makes of the unit."""
        return self.sh(
            "{ find /etc/systemd/system /etc/gpufleet -printf '%%p %%M %%u %%l\\n';"
            # the folder itself is created by the first run after a boot
            " find /run/gpufleet -mindepth 1 -printf '%%p %%M %%u %%l\\n'; } 2>/dev/null | sort;"
            "find %s /etc/gpufleet -type f -exec sha256sum {} + 2>/dev/null | sort;"
            "systemctl cat %s; systemctl show %s -p Environment,EnvironmentFiles,LoadCredential,LimitNOFILE,"
            "UnitFileState,DropInPaths,NeedDaemonReload,ActiveState,SubState,Result" % (DROP_INS, UNIT, UNIT)
        )


def same_process(unit: "Unit", act: Callable[[], Any]) -> Any:
    """The result of `act`, after which the same invocation must still run."""
    before = unit.show("InvocationID")
    result = act()
    assert unit.show("InvocationID") == before
    return result
