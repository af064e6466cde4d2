# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault of GPUs, worker, server and input, met by site.yml: named in one line, in time, and the host as before.

FAULTS_TABLE=path    also run the cases that other files of this folder hold, and write the table of docs/faults.md
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/ollama"))

import archive
import faults
import hostsetup
from faults_table import BACK, DECLARED, TABLE, UNTOUCHED, Row

HOST = "gpu1"
MODEL = "m8b"
LONGEST = 400  # characters of a message that a person reads at once

CHANGE = "OLLAMA_KEEP_ALIVE={keep_alive}"
"""Condition for a server's fault: the value that this run declares, so that the former configuration is well."""


@dataclass
class Case:
    """One fault: how it is made, how the run is called, what it must say and how it must leave the host."""

    fault: str
    says: Tuple[str, ...]
    after: str = UNTOUCHED
    verdict: str = ""
    gpus: Tuple[str, ...] = ()
    """State of the simulated GPUs and faults of it."""
    worker: str = ""
    server: Tuple[str, ...] = ()
    make: str = ""
    """Shell script on the host before the run, and after it:"""
    unmake: str = ""
    variables: Dict[str, Any] = field(default_factory=dict)
    change: bool = False
    """Whether the run declares something new, so that the service is restarted and proven."""
    elsewhere: str = ""
    """The file that holds the case in the gate."""


def gpu(fault: str, *says: str, **more: Any) -> Case:
    return Case("GPUs: " + fault, says, gpus=("rtx4090x4", fault), **more)


def worker(fault: str, verdict: str, *says: str, **more: Any) -> Case:
    return Case("worker: " + fault, says, **{"after": BACK, **more}, verdict=verdict, worker=fault, change=True)


def server(fault: str, verdict: str, *says: str, **more: Any) -> Case:
    only = () if verdict == "ok" else (CHANGE,)
    after = DECLARED if verdict == "ok" else BACK
    return Case("server: " + fault, says, after, verdict=verdict, server=(fault, *only), change=True, **more)


def install(what: str, *says: str, **more: Any) -> Case:
    """A release that cannot be had; unless told otherwise it is at RELEASES."""
    wanted = {"ollama_version": "0.32.99", "ollama_mirror": RELEASES, "ollama_archive": ""}
    variables = {**wanted, **more.pop("variables", {})}
    return Case("install: " + what, says, **{"elsewhere": INSTALL, **more}, variables=variables)


def given(what: str, *says: str, **more: Any) -> Case:
    return Case("input: " + what, says, **more)


FULL = (
    "mkdir -p /run/copy; cp -a /etc/systemd/system/. /run/copy; mount -t tmpfs -o size=1M tmpfs /etc/systemd/system;"
    "cp -a /run/copy/. /etc/systemd/system; rm -rf /run/copy;"
    "dd if=/dev/zero of=/etc/systemd/system/fill bs=4k 2>/dev/null; systemctl daemon-reload"
)
MASKED = (
    "cd /etc/systemd/system; mv ollama.service /run/kept.service; ln -s /dev/null ollama.service;"
    "systemctl daemon-reload"
)
UNMASKED = "mv /run/kept.service /etc/systemd/system/ollama.service; systemctl daemon-reload"
STOP_LIMIT = (
    "mkdir -p /run/systemd/system/ollama.service.d; cd /run/systemd/system/ollama.service.d;"
    "printf '[Service]\\nTimeoutStopSec=3\\n' >stop.conf; systemctl daemon-reload; systemctl restart ollama;"
    "until curl -fs http://127.0.0.1:11434/api/version; do sleep 0.1; done"
)
NO_STOP_LIMIT = (
    "systemctl restart ollama; until curl -fs http://127.0.0.1:11434/api/version; do sleep 0.1; done;"
    "rm -r /run/systemd/system/ollama.service.d; systemctl daemon-reload"
)
LOADED = (
    "pkill -KILL -x llama-server; while pgrep -x llama-server; do sleep 0.05; done;"
    'curl -fsS http://127.0.0.1:11434/api/generate -d \'{"model": "m8b"}\'; pkill -TERM -x llama-server;'
    "pgrep -x llama-server"
)
HIDES = (
    "mkdir -p /run/systemd/system/ollama.service.d; cd /run/systemd/system/ollama.service.d;"
    "printf '[Service]\\nPrivateDevices=yes\\n' >hides.conf; systemctl daemon-reload"
)
SQUATTER = (
    "systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 18080;"
    "until curl -s http://127.0.0.1:18080/ >/dev/null; do sleep 0.05; done"
)
MIRROR = str(archive.CACHE / "mirror")
RELEASES = "http://127.0.0.1:18081"
WEB = (
    "mkdir -p /run/mirror/v0.32.99; echo '<html>Sign in' >/run/mirror/v0.32.99/ollama-linux-amd64.tar.zst;"
    "systemd-run --quiet --unit=mirror python3 -m http.server --bind 127.0.0.1 --directory /run/mirror 18081;"
    "until curl -s %s >/dev/null; do sleep 0.05; done" % RELEASES
)
NO_WEB = "systemctl stop mirror; rm -r /run/mirror"
NO_ZSTD, ZSTD = "mv /usr/bin/zstd /usr/bin/not-zstd", "mv /usr/bin/not-zstd /usr/bin/zstd"
NARROW = (
    "cp -a /usr/local/lib/gpufleet /run/copy; mount -t tmpfs -o size=40M tmpfs /usr/local/lib/gpufleet;"
    "cp -a /run/copy/. /usr/local/lib/gpufleet; rm -rf /run/copy"
)
SITE, MISTAKES, MODULE = "test_site.py", "test_ollama_mistakes.py", "test_ollama_faults.py"
INSTALL = "tests/unit/…/ollama/test_install.py, test_releases.py, test_service.py; molecule: ollama_lifecycle"
CASES: List[Case] = [
    gpu("driver-mismatch", "driver_mismatch", "575.57.08", "What to do: reboot", elsewhere=SITE),
    gpu("driver-not-loaded", "driver_not_loaded", "What to do: load it with modprobe nvidia", elsewhere=SITE),
    gpu("library-missing", "library_missing", "libnvidia-ml.so.1", "What to do: install"),
    gpu("gpu-lost:1", "ok · 3×", "GPU 1 left out: ", after=DECLARED, change=True, elsewhere=SITE),
    gpu("ecc-uncorrectable:2", "ok · 3×", "GPU 2 left out: ", after=DECLARED, change=True, elsewhere=SITE),
    gpu("hang", "driver_hang", "within 3 s", "What to do: ", variables={"gpu_host_facts_timeout": 3}),
    gpu("hang:1", "driver_hang", "within 3 s", "What to do: ", variables={"gpu_host_facts_timeout": 3}),
    Case("GPUs: none", ("no_gpu", "has no NVIDIA GPU", "What to do: "), gpus=("none",)),
    worker("slow-load:60", "stalled", MODEL, "within", variables={"ollama_timeout": 15}),
    worker(
        "stalled-load",
        "load_failed",
        "timed out waiting",
        "raise ollama_load_timeout",
        variables={"ollama_load_timeout": "2s"},
    ),
    worker("die-at-load", "load_failed", MODEL, "error loading model: told to die at load", elsewhere=MODULE),
    worker("out-of-memory", "load_failed", MODEL, "cudaMalloc failed: out of memory", "nvidia-smi", elsewhere=MODULE),
    worker("partial-offload:10", "partial_offload", MODEL, "the rest runs on the CPU", elsewhere=MODULE),
    worker("stall", "stalled", MODEL, "within", variables={"ollama_timeout": 15}, elsewhere=MODULE),
    worker("deaf", "ok", after=DECLARED, make=LOADED),
    server("slow-start:3", "ok", elsewhere=MODULE),
    server(
        "slow-start:60",
        "not_ready",
        "127.0.0.1:11434",
        "does not answer within",
        variables={"ollama_timeout": 6},
        elsewhere=MODULE,
    ),
    server("serves-nothing", "unproven", "server config", "expected it in the journal", elsewhere=MODULE),
    server("crash-loop:0.2", "crash_loop", "Error: the server crashed"),
    server("hang-at-stop", "ok", make=STOP_LIMIT, unmake=NO_STOP_LIMIT),
    Case(
        "server: port taken",
        ("port 18080, on which ollama.service is to listen, is taken by process", "(python3)"),
        make=SQUATTER,
        unmake="systemctl stop squatter",
        variables={"ollama_host": "127.0.0.1:18080"},
        elsewhere=MISTAKES,
    ),
    Case(
        "server: store not writable",
        ("ollama cannot write into /srv/models (owner root, mode 0755)", "chown -R ollama: /srv/models"),
        make="install -d -o root -g root -m 0755 /srv/models",
        unmake="rm -r /srv/models",
        variables={"ollama_models_dir": "/srv/models", "ollama_prove_model": ""},
        elsewhere=MISTAKES,
    ),
    Case(
        "server: no such library",
        ("llm_library", "no folder cuda_v99"),
        variables={"ollama_llm_library": "cuda_v99"},
        elsewhere=MISTAKES,
    ),
    Case(
        "server: GPUs hidden by another drop-in",
        (
            "PrivateDevices=yes in /run/systemd/system/ollama.service.d/hides.conf:2 keeps /dev/nvidia0",
            "remove it there",
        ),
        make=HIDES,
        unmake="rm -r /run/systemd/system/ollama.service.d; systemctl daemon-reload",
    ),
    install(
        "no zstd on the host",
        "no program zstd: apt-get install zstd",
        make=NO_ZSTD,
        unmake=ZSTD,
        elsewhere="",
        variables={"ollama_version": archive.FORMER, "ollama_mirror": MIRROR},
    ),
    install("a URL without a checksum", RELEASES, "needs ollama_archive_checksum", "/v0.32.99/sha256sum.txt lists"),
    install(
        "the checksum of another file",
        "has the SHA-256",
        "expected " + "0" * 64,
        make=WEB,
        unmake=NO_WEB,
        variables={"ollama_archive_checksum": "sha256:" + "0" * 64},
    ),
    install(
        "a page instead of an archive",
        "is neither a .tgz nor a .tar.zst archive",
        make=WEB,
        unmake=NO_WEB,
        variables={"ollama_archive_checksum": "unverified"},
    ),
    install(
        "a version that the mirror does not have",
        "v0.32.98/ollama-linux-amd64.tar.zst cannot be fetched: HTTP Error 404",
        "check whether",
        make=WEB,
        unmake=NO_WEB,
        variables={"ollama_version": "0.32.98", "ollama_archive_checksum": "unverified"},
    ),
    install(
        "a mirror that does not answer",
        "cannot be fetched",
        "Connection refused",
        variables={"ollama_archive_checksum": "unverified"},
    ),
    install(
        "a folder without that version",
        "mirror: there is no /srv/nothing/v0.32.99/ollama-linux-* on the controller",
        variables={"ollama_mirror": "/srv/nothing"},
    ),
    install(
        "an archive for another architecture",
        "ollama-linux-arm64.tgz is for arm64; this host is x86_64",
        variables={"ollama_archive": RELEASES + "/ollama-linux-arm64.tgz"},
    ),
    install(
        "no room for the release",
        "No space left on device",
        make=NARROW,
        unmake="umount /usr/local/lib/gpufleet",
        variables={"ollama_version": archive.FORMER, "ollama_mirror": MIRROR},
    ),
    install(
        "a version other than the declared one",
        archive.FORMER,
        "0.32.99",
        after=BACK,
        verdict="wrong_version",
        variables={"ollama_archive": "%s/v%s/ollama-linux-amd64.tar.zst" % (MIRROR, archive.FORMER)},
    ),
    given(
        "two services, one GPU",
        "ollama@chat.service and ollama@code.service both claim GPU 1",
        "give them different GPUs, or let both share",
        variables={
            "ollama_instances": [
                {"name": "chat", "visible_devices": [0, 1], "host": "127.0.0.1:11501"},
                {"name": "code", "visible_devices": [1, 2], "host": "127.0.0.1:11502"},
            ]
        },
    ),
    given(
        "an address that other hosts reach",
        "0.0.0.0 is reachable from other hosts, and the service asks for no key",
        "allow_unauthenticated",
        variables={"ollama_host": "0.0.0.0"},
    ),
    given("GPU index 9", "There is no GPU 9", variables={"ollama_visible_devices": [0, 9]}, elsewhere=MISTAKES),
    given(
        "unknown UUID",
        "There is no GPU GPU-ffffffff",
        variables={"ollama_visible_devices": ["GPU-ffffffff-0000-4000-8000-000000000001"]},
        elsewhere=MISTAKES,
    ),
    given(
        "a policy that selects nothing",
        "0 of 4 GPUs fit it",
        variables={"ollama_visible_devices": {"min_memory_gib": 100}},
        elsewhere=MISTAKES,
    ),
    given(
        "a unit that does not exist",
        "there is no unit ollamma.service",
        "correct the name",
        variables={"ollama_name": "ollamma", "ollama_archive": ""},
    ),
    given("a masked unit", "ollama.service is masked", "systemctl unmask", make=MASKED, unmake=UNMASKED, change=True),
    given("not a number", "num_parallel", "'many'", variables={"ollama_num_parallel": "many"}),
    given("not a boolean", "sched_spread", "'perhaps'", variables={"ollama_sched_spread": "perhaps"}),
    given(
        "a full disk",
        "No space left on device",
        "/etc/systemd/system/ollama.service.d",
        "free space",
        verdict="not_written",
        make=FULL,
        unmake="umount /etc/systemd/system; systemctl daemon-reload",
        change=True,
    ),
    given(
        "a read-only /etc",
        "Read-only file system",
        "/etc/systemd/system/ollama.service.d",
        "mount it writable",
        verdict="not_written",
        make="mount --bind /etc /etc; mount -o remount,ro,bind /etc",
        unmake="umount /etc",
        change=True,
    ),
    given(
        "an unreachable host",
        "Connection refused",
        variables={"ansible_port": 1, "ansible_ssh_args": "-o ControlPath=none"},
        elsewhere=SITE,
    ),
]


@pytest.fixture(scope="module")
def serving(lab: Any) -> Iterator[Any]:
    """`serving(**variables)` runs site.yml on a host where Ollama serves as declared, with a model to prove it."""
    lab.reset(HOST)
    hostsetup.uninstall(HOST)
    hostsetup.install(HOST)
    hostsetup.add_models(HOST, MODEL)
    assert str(archive.mirror()) == MIRROR

    def site(**variables: Any) -> Any:
        given = json.dumps({"ollama_prove_model": MODEL, **variables})
        return lab.playbook("site.yml", "--limit", HOST, "-e", given, ok=False, warnings=True)

    first = site()
    assert first.rc == 0, first.output
    yield site
    faults.clear(HOST)
    hostsetup.uninstall(HOST)
    lab.reset(HOST)


def state(sh: Callable[..., str]) -> str:
    """All of the host that a failed run must leave as it was, and what it must not leave behind."""
    return sh(
        HOST,
        "timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1:11434/api/tags; do sleep 0.1; done';"
        "cd /etc/systemd/system; find . -printf '%p %y %m %u %l\\n' | sort; find . -type f | sort | xargs sha256sum;"
        "systemctl show ollama"
        "   -p Environment,ActiveState,SubState,NRestarts,UnitFileState,NeedDaemonReload,DropInPaths;"
        "tr '\\0' '\\n' </proc/$(systemctl show ollama -p MainPID --value)/environ | grep -E '^(OLLAMA|CUDA)_' | sort;"
        "curl -sS --max-time 5 http://127.0.0.1:11434/api/tags;"
        "find /etc/gpufleet /usr/local/bin /usr/local/lib -maxdepth 2 -printf '%p %m %u %l\\n' 2>/dev/null | sort;"
        "find /tmp /root/.ansible /home/fleet/.ansible -name '*gpufleet*' -o -name 'ansible-*' 2>/dev/null | sort;"
        "find /run/gpufleet -type f 2>/dev/null | sort",
    )


def invocation(sh: Callable[..., str]) -> str:
    return sh(HOST, "systemctl show ollama -p InvocationID --value").strip()


def message(run: Any) -> str:
    """What the failed task says, or what was proven."""
    failed = [line["result"] for line in run.results if line["status"] in ("failed", "unreachable")]
    said = failed[0]["msg"] if failed else run.of("ollama_service")[-1]["msg"]
    if failed and failed[0].get("argument_errors"):
        said = "; ".join(failed[0]["argument_errors"])
    return said


@pytest.mark.parametrize(
    "number, case",
    [pytest.param(number, case, id=case.fault) for number, case in enumerate(CASES, 1) if TABLE or not case.elsewhere],
)
def test_a_fault(lab: Any, serving: Any, sh: Callable[..., str], rows: List[Row], number: int, case: Case) -> None:
    keep_alive = "%dh" % number
    variables = dict(case.variables, **({"ollama_keep_alive": keep_alive} if case.change else {}))
    if case.gpus:
        lab.state(HOST, *case.gpus)
    if case.worker:
        faults.worker(HOST, case.worker)
    if case.server:
        faults.server(HOST, case.server[0], *(only.format(keep_alive=keep_alive) for only in case.server[1:]))
    if case.make:
        sh(HOST, case.make)
    try:
        before, process = state(sh), invocation(sh)
        run = serving(**variables)
        after, now = state(sh), invocation(sh)
    finally:
        faults.clear(HOST)
        if case.unmake:
            sh(HOST, case.unmake)
        if case.gpus:
            lab.state(HOST)
    seen = message(run)
    print("\n%s: %.1f s, %d lines: %s" % (case.fault, run.seconds, len(run.output.splitlines()), seen))
    rows.append(Row(case.fault, seen, run.seconds, case.after))
    for words in case.says:
        assert words in seen
    assert len(seen) < LONGEST and "\n" not in seen, "one line that a person reads at once"
    assert "Traceback" not in run.output
    assert (run.rc == 0) is (case.after == DECLARED), run.output
    results = run.of("ollama_service")
    if case.verdict:
        assert results[-1]["verdict"] == case.verdict
    if case.after == UNTOUCHED:
        assert now == process
    else:
        assert now != process
        assert results[-1]["rolled_back"] is (case.after == BACK)
    if case.after == DECLARED:
        assert "OLLAMA_KEEP_ALIVE=" + keep_alive in after
        assert results[-1]["unit_state"]["active_state"] == "active"
    else:
        assert not any(result.get("changed") for result in results)
        assert after == before
