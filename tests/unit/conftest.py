# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests share: run a module in this process, read a fixture file."""

from __future__ import annotations

import json
import random
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import pytest
from ansible.module_utils import basic

from ansible_collections.gpufleet.inference.plugins.module_utils.converge import install_record
from ansible_collections.gpufleet.inference.plugins.module_utils.gpu import facts
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox import lock

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(Path(__file__).parent))  # for waiting.py


@pytest.fixture(autouse=True)
def no_gpu_facts_of_another_test() -> None:
    """In a process of its own, a module or a check reads them once."""
    facts._reported = None


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dict[str, Any]]:
    """`run_module(main, args, check=False, diff=False, warnings=())` gives the result that the module printed.

    `failed` is always in it. The warnings must be the given ones: each expected text is part of one warning, no other
    may be there, and a deprecation never.
    """
    seen = []

    monkeypatch.setattr(basic, "warn", lambda warning, **more: seen.append(str(warning)))
    monkeypatch.setattr(basic, "deprecate", lambda msg, *args, **more: seen.append("DEPRECATED: %s" % msg))

    def run(
        main: Callable[[], Any],
        args: Optional[Dict[str, Any]] = None,
        check: bool = False,
        diff: bool = False,
        warnings: tuple = (),
    ) -> Dict[str, Any]:
        values = dict(args or {}, _ansible_check_mode=check, _ansible_diff=diff)
        seen.clear()
        capsys.readouterr()
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": values}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)  # since ansible-core 2.19
        with pytest.raises(SystemExit):
            main()
        result = json.loads(capsys.readouterr().out)
        result.setdefault("failed", False)
        assert len(seen) == len(warnings), "warnings: %s" % seen
        for text in warnings:
            assert any(text in warning for warning in seen), "no warning with %r among %s" % (text, seen)
        return result

    return run


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """`free_port()` is a port on which nobody listens, below those that the kernel gives to whoever asks for any.

    One that it gave and took back may at any time be given to another test, or be the near end of a connection.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    numbers = random.SystemRandom()

    def find() -> int:
        while True:
            port = numbers.randrange(min(10000, first // 2), first)
            with socket.socket() as probe:
                try:
                    probe.bind(("0.0.0.0", port))
                except OSError:
                    continue
                return port

    return find


@pytest.fixture
def fixture_text() -> Callable[[str], str]:
    """`fixture_text("gpu/NAME")` is the text of a file under tests/unit/fixtures."""
    return lambda name: (FIXTURES / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def var(tmp_path_factory):
    return tmp_path_factory.mktemp("var")


@pytest.fixture(autouse=True)
def remembered(monkeypatch, var):
    """What is made in tests is remembered in a file of theirs, and their locks are their own; gives its path."""
    base = Path(tempfile.mkdtemp(dir=var))  # for each folder of its own pytest lists all others
    path = base / "gpufleet/made.json"
    monkeypatch.setattr(install_record, "PATH", str(path))
    monkeypatch.setattr(lock, "FOLDER", str(base / "run/gpufleet"))
    monkeypatch.setattr(lock, "FOLDER_OF_USER", str(base / "run/%d/gpufleet"))
    return path
