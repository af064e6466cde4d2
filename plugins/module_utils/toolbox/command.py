# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command with a time limit: everything it has started ends with it, and it ends with the run that waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any, Mapping, Optional, Sequence

_PDEATHSIG = 1  # of prctl


def end_with_parent() -> None:
    """Runs in the child before the command: that must not continue when the run that waits for it is killed."""
    import ctypes

    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def status_of(
    command: Sequence[str],
    limit: float,
    *,
    environment: Mapping[str, str],
    folder: str = "/",
    output: Any = subprocess.DEVNULL,
    errors: Any = subprocess.STDOUT,
) -> Optional[int]:
    """Exit status of a command that runs without a shell; None if it did not end within the limit.

    :param limit: seconds.
    :param environment: all variables that it gets.
    :param output: file for what it prints; ``errors``: for its errors, by default the same.
    :raises OSError: it cannot be executed.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started and left behind
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()
