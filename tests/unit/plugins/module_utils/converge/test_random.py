# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode against the real run, from random states of a unit that somebody has then disturbed.

Check mode writes nothing and predicts the run; a good run leaves nothing to do; a failed one leaves the files from before.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.converge.model import (
    Change,
    Outcome,
    ServiceError,
    Verdict,
)
from ansible_collections.gpufleet.inference.plugins.module_utils.converge.run import converge

from ...conftest import UNIT, FakeSystem

ROUNDS = 100  # for each seed
DROP_INS = "/etc/systemd/system/ollama.service.d/"
OURS = DROP_INS + "zz-gpufleet.conf"
FOLDERS = {"/etc/gpufleet", DROP_INS.rstrip("/")}
"""A run removes folders of ours that are empty, also where somebody has emptied them."""


def declared(rng: random.Random) -> Dict[str, Any]:
    """Options of a change."""
    file = "/etc/gpufleet/f.yaml"
    return {
        "environment": {name: rng.choice("12") for name in "AB" if rng.random() < 0.5},
        "secret_environment": {"T": rng.choice(["s1", "s2"])} if rng.random() < 0.3 else {},
        "credentials": {name: rng.choice(["c1", "c2"]) for name in "xy" if rng.random() < 0.2},
        "settings": rng.choice(
            [{}, {"Service": {"LimitNOFILE": ["7"]}}, {"Service": {"Restart": ["no"]}}, {"X-Own": {"K": ["v"]}}]
        ),
        "files": rng.choice([{}, {file: rng.choice(["a\n", "b\n"])}, {file: None}]),
        "enabled": rng.choice([None, True, False]),
        "started": rng.choice([None, True, True, False]),
        "state": rng.choice(["present"] * 6 + ["absent"]),
    }


def gate(rng: random.Random) -> Optional[Callable[[Any, bool], Verdict]]:
    """None, or a gate that finds the same each time: before a change, and after one."""
    if rng.random() < 0.4:
        return None
    first, later = rng.choice(["ok"] * 5 + ["bad", "remedy"]), rng.choice([True] * 6 + [False])

    def ask(_running: Any, changed: bool) -> Verdict:
        if changed:
            return Verdict("ok" if later else "not_ready", "later")
        return (
            Verdict("ok")
            if first == "ok"
            else Verdict("cpu_fallback", "first", remedy={"remedy": "restart"}.get(first, ""))
        )

    return ask


def disturb(rng: random.Random, system: FakeSystem, root: str) -> None:
    """What people, kills and crashes do to a unit."""
    ours, secrets = Path(root + OURS), Path(root + "/etc/gpufleet/ollama.service.env")
    half = Path(root + DROP_INS + ".zz-gpufleet.conf.previous")

    def ends(active: str, sub: str) -> None:
        if system.processes:
            system.processes.clear()
            system.state.update(ActiveState=active, SubState=sub, MainPID="0", Result="exit-code")

    what: List[Callable[[], Any]] = [
        lambda: system.write(DROP_INS + "10-x.conf", "[Service]\nEnvironment=A=1\nEnvironment=B=2\n"),
        lambda: system.write(DROP_INS + "zzz.conf", "[Service]\nEnvironment=A=2\n"),
        lambda: system.processes and system.environment.update(A="9"),
        lambda: ends("failed", "failed"),
        lambda: ends("activating", "auto-restart"),
        lambda: ours.exists() and ours.chmod(0o600),
        lambda: secrets.exists() and secrets.unlink(),
        lambda: ours.exists() and not os.path.lexists(half) and os.link(ours, half),
    ]
    for _time in range(rng.randrange(3)):
        rng.choice(what)()


def run(system: FakeSystem, options: Dict[str, Any], asks: Any, check: bool) -> Tuple[Outcome, Optional[ServiceError]]:
    try:
        change = Change("ollama", settle=0, timeout=0.2, **options)
        return converge(change, gate=asks, check_mode=check, system=system), None
    except ServiceError as error:
        return error.outcome, error


def kept(tree: Dict[str, Any]) -> Dict[str, Any]:
    """What a failed run must leave: all but what an earlier, killed run had left."""
    return {path: held for path, held in tree.items() if path not in FOLDERS and not Path(path).name.startswith(".")}


@pytest.mark.parametrize("seed", range(4))
def test_check_mode_predicts_the_run(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
            system = FakeSystem(Path(root))
            system.write("/usr/lib/systemd/system/ollama.service", UNIT)
            os.makedirs(root + "/etc/systemd/system")
            system.boot(running=rng.random() < 0.8)
            run(system, declared(rng), None, False)
            disturb(rng, system, root)
            options, asks, before = declared(rng), gate(rng), system.tree()
            case = "seed %d, round %d: %s" % (seed, number, options)

            predicted, refused = run(system, options, asks, True)
            assert system.tree() == before, case
            real, failed = run(system, options, asks, False)
            after = system.tree()
            if refused:
                assert failed, case
            elif not failed:
                for field in ("changed", "restarted", "reloaded", "diff", "planned"):
                    assert getattr(predicted, field) == getattr(real, field), (case, field)
                assert real.changed == bool(real.planned), case
            else:
                assert predicted.changed, case
            if failed and (real.rolled_back or not real.changed):
                assert kept(after) == kept(before), (case, str(failed))
            if not failed and not asks:
                again, problem = run(system, options, None, True)
                assert not problem and not again.changed, (case, again.reasons)
