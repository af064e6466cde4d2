# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows what the hosts of a run do now, in a few lines; prints what went wrong, and little else."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet
type: stdout
short_description: Shows a long run on many hosts in a few lines
version_added: 0.2.0
author: The gpufleet developers (@gpufleet)
description:
  - In a terminal, the last lines show what each host does now. Where there are too many hosts for that, those that do
    the same share a line. In a file or a pipe there is one line for each play, and nothing that moves a cursor.
  - Failures, diffs, warnings, and the messages of C(debug) are printed as the default callback does, and with C(-v)
    everything else, too.
  - The recap has one line for all hosts with the same counts.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - 'To use it, set C(stdout_callback = gpufleet.inference.fleet) in the section C([defaults]) of C(ansible.cfg). With
    C(callbacks_enabled = gpufleet.inference.summary), the run ends with a block that says what became of its hosts.'
"""

import atexit
import os
import shutil
import sys
import time
from typing import Any, Dict, List, Tuple

from ansible import constants as C
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default

from ansible_collections.gpufleet.inference.plugins.plugin_utils.run_board import Board, Host
from ansible_collections.gpufleet.inference.plugins.plugin_utils.run_summary import OURS, ranges

COUNTS = {"ok": "ok", "changed": "changed", "unreachable": "unreachable", "failed": "failures", "rescued": "rescued"}
OFTEN = 0.1
"""Seconds between two pictures of the board."""


class CallbackModule(Default):
    """The default callback, kept quiet about what goes well."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "gpufleet.inference.fleet"

    def __init__(self) -> None:
        super().__init__()
        self.board, self.screen, self.play, self.quiet = Board(), Screen(), "", False

    def set_options(self, *given: Any, **named: Any) -> None:
        super().set_options(*given, **named)
        self.quiet = self._display.verbosity == 0
        if self.quiet:
            self.set_option("display_skipped_hosts", False)  # then no task is named before there is something to print

    # --- what runs

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if not self.quiet:
            super().v2_playbook_on_play_start(play)
            return
        self._play = play
        batch = play.get_variable_manager()._inventory.get_hosts(play.hosts)
        self.board = Board(play.get_name().strip(), hosts={host.name: Host() for host in batch})

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        super().v2_runner_on_start(host, task)
        if not self.quiet:
            return
        if self.play != self.board.play:  # named with its first task, and once for all its batches
            self.play = self.board.play
            self._display.display("%s  %s" % (time.strftime("%H:%M:%S"), self.play))
        self.board.starts(host.get_name(), task.get_name().rpartition(" : ")[2], time.strftime("%H:%M:%S"))
        self.screen.show(self.board)

    # --- what went well

    def v2_runner_on_ok(self, result: Any) -> None:
        self._ends(result)
        if not self.quiet or self._worth_a_line(result):
            super().v2_runner_on_ok(result)
        else:
            self._warn(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._ends(result)
        super().v2_runner_on_skipped(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if not self.quiet or self._worth_a_line(result):
            super().v2_runner_item_on_ok(result)
        else:
            self._warn(result)

    def v2_runner_retry(self, result: Any) -> None:
        if not self.quiet:
            super().v2_runner_retry(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if not self.quiet:
            super().v2_playbook_on_include(included_file)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        if not self.quiet:
            super().v2_playbook_on_no_hosts_matched()

    def _worth_a_line(self, result: Any) -> bool:
        """A message for a person, or what names the host of the diff above it."""
        shown = self._run_is_verbose(result)
        return shown or bool(
            context.CLIARGS.get("diff") and result._result.get("changed") and result._result.get("diff")
        )

    def _warn(self, result: Any) -> None:
        self._handle_warnings(result._result)

    # --- what did not

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._ends(result, failed=not ignore_errors)
        if not self.quiet or not ignore_errors:
            super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._ends(result, failed=True)
        if not self.quiet or not getattr(result._task, "ignore_unreachable", False):
            super().v2_runner_on_unreachable(result)

    def _ends(self, result: Any, failed: bool = False) -> None:
        if self.quiet:
            said = result._result.get("msg") if str(result._task.action).startswith(OURS) else ""
            self.board.ends(result._host.get_name(), said if isinstance(said, str) else "", failed)
            self.screen.show(self.board)

    # --- the end

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self.screen.close()
        if not self.quiet:
            super().v2_playbook_on_stats(stats)
            return
        alike: Dict[Tuple[int, ...], List[str]] = {}
        for host in stats.processed:
            found = stats.summarize(host)
            alike.setdefault(tuple(found[key] for key in COUNTS.values()), []).append(host)
        for counts, hosts in alike.items():
            bad = counts[2] or counts[3]
            said = " ".join("%s=%d" % pair for pair in zip(COUNTS, counts) if pair[1] or pair[0] in ("ok", "changed"))
            color = C.COLOR_ERROR if bad else C.COLOR_CHANGED if counts[1] else C.COLOR_OK  # type: ignore[attr-defined]
            self._display.display("%s  %s: %s" % (time.strftime("%H:%M:%S"), ranges(hosts), said), color=color)
        self._display.display("")


class Screen:
    """The last lines of a terminal, kept out of what scrolls. Of anything else than a terminal, nothing.

    What other parts of Ansible print, scrolls above. The margins are those of any terminal since the VT100.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.owner, self.size, self.height, self.drawn = os.getpid(), (0, 0), 0, 0.0
        if self.terminal:
            atexit.register(self.close)

    def show(self, board: Board) -> None:
        now = time.monotonic()
        if not self.terminal or now - self.drawn < OFTEN:
            return
        self.drawn = now
        size = shutil.get_terminal_size()
        height = min(len(board.hosts) + 1, size.lines // 3)
        if height < 2:
            return
        if size != self.size or height > self.height:
            self.close()
            self._open(size, height)
        lines = board.lines(size.columns - 1, self.height)
        lines += [""] * (self.height - len(lines))  # an earlier play had more hosts
        rows = [(size.lines - self.height + 1 + number, line) for number, line in enumerate(lines)]
        self._write("\0337" + "".join("\033[%d;1H\033[2K\033[2m%s\033[0m" % row for row in rows) + "\0338")

    def _open(self, size: Any, height: int) -> None:
        """Scroll up what is there, and keep the last lines."""
        self.size, self.height = size, height
        top = size.lines - height
        self._write("\n" * height + "\0337\033[1;%dr\0338\033[%dA" % (top, height))

    def close(self) -> None:
        """Give the lines back. A worker that Ansible has forked leaves them alone."""
        if self.height and os.getpid() == self.owner:
            self._write("\0337\033[r\0338\033[J")
            self.height = 0

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
