# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with simulated GPUs in a folder, and programs on it that run pynvml through the real ctypes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator

import pytest

SIMULATOR = Path(__file__).resolve().parents[2] / "lab/nvml"

#: Reads Python from its input, line for line, and prints what came of it.
CHILD = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import convert
import pynvml as nvml
nvml._LoadNvmlLibrary()
if sys.argv[2] == "unprivileged":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
handles = []
def init():
    nvml.nvmlInit()
    handles[:] = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    return len(handles)
for line in sys.stdin:
    try:
        outcome = {"ok": convert.plain(eval(line))}
    except nvml.NVMLError as error:
        outcome = {"nvml_error": error.value, "text": str(error)}
    except Exception as error:
        outcome = {"python_error": repr(error)}
    print(json.dumps(outcome), flush=True)
"""


def load(name: str) -> ModuleType:
    """One of the simulator's programs as a module."""
    if str(SIMULATOR) not in sys.path:
        sys.path.append(str(SIMULATOR))  # they import nvml_sim from beside them
    loader = importlib.machinery.SourceFileLoader("lab_nvml_" + name.replace(".py", ""), str(SIMULATOR / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


build, apply = load("build.py"), load("apply")


class Program:
    """A process on the host that runs pynvml; `ask` gives what an expression came to, as a recording writes it."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def ask(self, expression: str) -> dict:
        self.send(expression)
        line = self.process.stdout.readline()
        assert line, "the program ended: %s" % self.process.stderr.read()
        return json.loads(line)

    def get(self, expression: str) -> Any:
        """What must succeed."""
        outcome = self.ask(expression)
        assert "ok" in outcome, "%s: %s" % (expression, outcome)
        return outcome["ok"]

    def error(self, expression: str) -> int:
        """The NVML error of what must fail."""
        outcome = self.ask(expression)
        assert "nvml_error" in outcome, "%s: %s" % (expression, outcome)
        return outcome["nvml_error"]

    def send(self, expression: str) -> None:
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()


class Host:
    """A host's root folder; device nodes are plain files there."""

    def __init__(self, root: Path):
        self.root = root
        self.programs = []
        shutil.copy(build.library(), root)
        for folder in ("etc/nvidia-sim", "dev/shm/nvidia-sim/claims"):
            (root / folder).mkdir(parents=True)
        (root / "dev/shm/nvidia-sim/claims").chmod(0o1777)
        self.environment = dict(os.environ, NVIDIA_SIM_ROOT=str(root), LD_LIBRARY_PATH=str(root))

    def apply(self, state: str, *faults: str) -> None:
        """Give the host a state, as the apply tool does to a real one."""
        self.write(apply.compose(state, list(faults)))

    def write(self, text: str) -> None:
        """Give the host the text of a state and the nodes that it calls for."""
        gpus = apply.nvml_sim.gpus(apply.nvml_sim.parse(text))
        for name in ["nvidiactl"] + ["nvidia" + gpu["nvmlDeviceGetMinorNumber"] for gpu in gpus]:
            (self.root / "dev" / name).touch()
            (self.root / "dev" / name).chmod(0o666)
        shutil.rmtree(self.root / "sys", ignore_errors=True)
        for gpu in gpus:
            for name, content in apply.gpu_files(gpu, driver=True).items():
                file = self.root / "sys/bus/pci" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.symlink_to(content) if isinstance(content, Path) else file.write_text(content)
        fresh = self.root / "etc/nvidia-sim/state.new"
        fresh.write_text(text)
        fresh.rename(self.root / "etc/nvidia-sim/state")

    def node(self, name: str) -> Path:
        return self.root / "dev" / name

    def program(self, unprivileged: bool = False) -> Program:
        """Start a program; it has loaded the library and not called it."""
        command = [sys.executable, "-c", CHILD, str(SIMULATOR), "unprivileged" if unprivileged else "as we are"]
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.programs.append(process)
        return Program(process)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        """Run one of the simulator's programs."""
        return subprocess.run(
            [sys.executable, str(SIMULATOR / name), *arguments], env=self.environment, capture_output=True, text=True
        )

    def close(self) -> None:
        for process in self.programs:
            process.kill()
            process.communicate()


@pytest.fixture
def gpu_host() -> Iterator[Host]:
    # not in tmp_path, which nobody but us may enter: some programs run as another user
    root = Path(tempfile.mkdtemp(prefix="gpufleet-host-"))
    root.chmod(0o755)
    host = Host(root)
    yield host
    host.close()
    shutil.rmtree(root)
