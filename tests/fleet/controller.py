# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-core imported once for all runs of a test session: each run is a fork of a process that has it.

Its start is most of what a short run costs. Apart from that a run is what the tool's own command line is: a process
of its own, with its own words, environment and working directory.

    controller.py SOCKET    serves until its standard input is closed
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

#: What each run would import for itself: a fifth of the processor time of a short one.
IMPORTED_BY_RUNS = (
    "ansible.executor.process.worker",
    "ansible.executor.task_queue_manager",
    "ansible.plugins.cache.memory",
    "ansible.plugins.callback.default",
    "ansible.plugins.callback.junit",
    "ansible.plugins.callback.minimal",
    "ansible.plugins.inventory.toml",
    "ansible.plugins.inventory.yaml",
    "ansible.plugins.strategy.linear",
    "ansible.plugins.vars.host_group_vars",
    "multiprocessing.popen_fork",
    "multiprocessing.synchronize",
    "xml.dom.minidom",
)


class Controller:
    """The process that has ansible-core; its settings are those of `environ` at its start."""

    def __init__(self, folder: Path, environ: Dict[str, str]) -> None:
        self.folder, self.address, self.runs = folder, str(folder / "controller"), 0
        words = [sys.executable, __file__, self.address]
        self.process = subprocess.Popen(
            words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout and self.process.stdout.readline() == "ready\n", "it says on stderr why not"

    def run(self, words: Sequence[str], environ: Dict[str, str], cwd: Path, timeout: float) -> Tuple[int, str]:
        """Exit status and output of `ansible …` or `ansible-playbook …`; TimeoutExpired as subprocess has it."""
        self.runs += 1
        output = self.folder / ("output-%d-%d" % (self.runs, threading.get_ident()))
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(self.address)
            answers = own.makefile("r")
            asked = {"words": list(words), "environ": environ, "cwd": str(cwd), "output": str(output)}
            own.sendall(json.dumps(asked).encode() + b"\n")
            pid = int(answers.readline())
            own.settimeout(timeout)
            try:
                status = int(answers.readline())
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(words), timeout, output.read_bytes()) from None
        said = output.read_text(errors="replace")
        output.unlink()
        return status, said

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(address: str) -> None:
    from ansible.cli.adhoc import AdHocCLI
    from ansible.cli.playbook import PlaybookCLI

    for name in IMPORTED_BY_RUNS:
        importlib.import_module(name)
    gc.freeze()  # else a collection in a run has the kernel copy all pages that hold objects

    tools = {"ansible": AdHocCLI, "ansible-playbook": PlaybookCLI}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
        print("ready", flush=True)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _address = listening.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                _answer(connection, tools)
                os._exit(0)
            connection.close()


def _answer(connection: socket.socket, tools: Dict[str, type]) -> None:
    asked = json.loads(connection.makefile("r").readline())
    pid = os.fork()
    if not pid:
        os.setsid()
        os._exit(_run(tools, **asked))
    connection.sendall(b"%d\n" % pid)
    _pid, status = os.waitpid(pid, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _run(tools: Dict[str, type], words: List[str], environ: Dict[str, str], cwd: str, output: str) -> int:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    said, nothing = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, said), (2, said)):
        os.dup2(file, number)
    os.closerange(3, 256)
    sys.argv = words
    code: Optional[object] = 250
    try:
        tools[words[0]].cli_executor(words)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(sys.argv[1])
