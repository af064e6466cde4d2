# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random drift: the check at the start of site.yml must find the same as the roles themselves."""

from __future__ import annotations

import os
import random
from typing import Any, Callable, List, Sequence, Tuple

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

SELF_CHECK = ("-e", "gpu_host_self_check=12h")  # it runs only when a test starts it
OWN_VERDICT = (
    "systemctl start gpufleet-self-check && sed -n 's/^gpufleet_as_declared //p' /var/lib/prometheus/*/gpufleet.prom"
)


def sample(number: int) -> List[Tuple[str, str]]:
    """Some of DRIFT in a random order. GPUFLEET_DRIFT_SEED repeats the choice that a failed test has printed."""
    seed = os.environ.get("GPUFLEET_DRIFT_SEED") or str(random.randrange(10**6))
    print("GPUFLEET_DRIFT_SEED=%s" % seed)
    return random.Random(seed).sample(DRIFT, number)


def assert_agreement(
    lab: Any,
    hosts: Sequence[str],
    unit: str,
    rows: Sequence[Tuple[str, str]],
    settle: Callable[[str], Any],
    self_check: bool = False,
) -> None:
    """The question and the roles agree on each drift; as many are tried at once as there are hosts.

    :param settle: waits until the service on a host answers again.
    :param self_check: the hosts were left SELF_CHECK, which must agree, too.
    """
    names = {"unit": unit, "folder": "/etc/systemd/system/%s.service.d" % unit}
    found = []
    for start in range(0, len(rows), len(hosts)):
        tried = dict(zip(hosts, rows[start:]))
        for host, (make, _unmake) in tried.items():
            lab.sh(host, make.format(**names) + "; systemctl daemon-reload")
        try:
            common = ("site.yml", "--check", "--limit", ",".join(tried), *(SELF_CHECK if self_check else ()))
            asked = lab.playbook(*common, ok=False, warnings=True)
            own = {host: lab.sh(host, OWN_VERDICT).strip() if self_check else "–" for host in tried}
            full = lab.playbook(*common, "-e", "gpufleet_check_first=false", ok=False, warnings=True)
        finally:
            for host, (_make, unmake) in tried.items():
                lab.sh(host, unmake.format(**names) + "; systemctl daemon-reload")
                settle(host)
        for host, (make, _unmake) in tried.items():
            (said,) = asked.of("host_check", host)
            stats = full.stats[host]
            nothing = not (stats["changed"] or stats["failures"] or stats["unreachable"])
            words = (host, make, said["msg"], own[host], stats)
            line = "%s: %s\n    by the question: %s; by the host: %s; by the roles: %s" % words
            print(line)
            if said["as_declared"] != nothing or own[host] not in ("–", str(int(nothing))):
                found.append("%s\n%s" % (line, full.output[-4000:]))
    assert not found, "\n".join(found)
