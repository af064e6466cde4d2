# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random drift: the check at the start of site.yml must find the same as the roles themselves."""

from __future__ import annotations

import random
from typing import Any, Callable, List, Tuple

#: What may happen to a service: a shell command, and another one that takes it back. Some change nothing that counts.
DRIFT = [
    ("systemctl disable {unit}", "systemctl enable {unit}"),
    ("systemctl stop {unit}", "systemctl start {unit}"),
    ("touch {folder}/zz-gpufleet.conf", "true"),
    ("chmod 0600 {folder}/zz-gpufleet.conf", "chmod 0644 {folder}/zz-gpufleet.conf"),
    ("mv {folder}/zz-gpufleet.conf /root/", "mv /root/zz-gpufleet.conf {folder}/"),
    ("echo '# mine' >>{folder}/zz-gpufleet.conf", "sed -i '$d' {folder}/zz-gpufleet.conf"),
    ("printf '[Service]\\nNice=1\\n' >{folder}/zzz.conf", "rm {folder}/zzz.conf"),
    ("printf '[Service]\\nEnvironment=CUDA_VISIBLE_DEVICES=0\\n' >{folder}/zzz.conf", "rm {folder}/zzz.conf"),
    ("printf '[Service]\\nEnvironment=X_OF_SOMEBODY=1\\n' >{folder}/a.conf", "rm {folder}/a.conf"),
    ("nvidia-smi --persistence-mode=0", "nvidia-smi --persistence-mode=1"),
    ("nvidia-smi -L", "true"),
]


def disagreements(
    lab: Any, host: str, unit: str, rounds: int, settle: Callable[[], Any]
) -> List[Tuple[str, bool, bool]]:
    """Where question and roles disagree: the drift, whether the host was said to be as declared, and whether it was.

    :param rounds: how many of the drifts are tried.
    :param settle: returns when the service answers again.
    """
    found = []
    for make, unmake in random.sample(DRIFT, rounds):
        names = {"unit": unit, "folder": "/etc/systemd/system/%s.service.d" % unit}
        lab.sh(host, make.format(**names) + "; systemctl daemon-reload")
        try:
            common = ("site.yml", "--check", "--limit", host)
            asked = lab.playbook(*common, ok=False, warnings=True)
            full = lab.playbook(*common, "-e", "gpufleet_check_first=false", ok=False, warnings=True)
        finally:
            lab.sh(host, unmake.format(**names) + "; systemctl daemon-reload")
            settle()
        (said,) = asked.of("host_check", host)
        row = (make, said["as_declared"], full.rc == 0 and full.changed == 0)
        print("%s\n    as declared: %s, by the roles: %s; %s" % (*row, said["msg"]))
        if row[1] != row[2]:
            found.append(row)
    return found
