# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The digest that a process has of its files is the one that is declared, as long as they are as declared."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import digest


@pytest.fixture
def files(tmp_path):
    found = {str(tmp_path / "b.yaml"): "port: 8000\n", str(tmp_path / "a.py"): "Ä = 'no end of line'"}
    for path, text in found.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return found


def started(files):
    """What the command finds in its environment, as systemd executes it."""
    line = digest.reporting("/bin/sh -c 'echo $GPUFLEET_FILES $0 $1' one two", files).replace("$$", "$")
    return subprocess.run(shlex.split(line), check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def test_the_process_has_the_digest_of_what_it_will_read(files):
    assert started(files) == [digest.of(files), "one", "two"]
    path = sorted(files)[0]
    with open(path, "a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert started(files)[0] == digest.of({**files, path: files[path] + "# edited\n"}) != digest.of(files)


def test_a_dollar_is_left_to_the_shell():
    line = digest.reporting("/usr/bin/vllm serve", {"/etc/x.yaml": ""})
    assert line.endswith("' /usr/bin/vllm serve") and "$" not in line.replace("$$", "") and "%" not in line


@pytest.mark.parametrize("path", ["/etc/a b", "/etc/$(x)", "/etc/a;b", "/etc/'a"])
def test_a_path_that_a_shell_would_read_otherwise_is_refused(path):
    with pytest.raises(ValueError, match="paths of files"):
        digest.reporting("/usr/bin/vllm", {path: ""})
