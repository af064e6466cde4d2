# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run `ansible-test sanity` on a copy of this checkout: it wants to stand in ansible_collections/NAMESPACE/NAME.

ansible-test's own environments are kept in the cache, under a HOME of their own; the bootstrap script that it would
download is replaced by the ensurepip of the Python at hand, so that pip is all that goes out, and only once.
    run.py [--skip-test TEST] [TEST...]    all tests, all but one, or those named
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache/gpufleet-inference") / "sanity"
PYTHON = "%d.%d" % sys.version_info[:2]
# Of the Pythons on GPU hosts. ansible-core 2.20 and later no longer knows 3.8.
OLDEST = "3.8" if int(version("ansible-core").split(".")[1]) < 20 else "3.9"
TOOL = Path(sys.executable).parent / "ansible-test"

# The workshop around the collection is not shipped: ruff looks after that.
WORKSHOP = re.compile(r"tests/(?!config|sanity/ignore)|benchmarks/|\.")

# ansible-core 2.16 asks for the script of pip 23.1.2, 2.18 and 2.19 for that of 24.2, 2.20 and later for that of 25.2.
PIPS = ("23_1_2", "24_2", "25_2")
GET_PIP = """
import subprocess, sys
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"])
words = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install"] + words))
"""


def copy_of_checkout(folder: Path) -> Path:
    """A copy of the collection's files that git tracks or would track."""
    target = folder / "ansible_collections" / "gpufleet" / "inference"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    for name in listed.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file() and not WORKSHOP.match(name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


def own_home() -> Path:
    """A HOME that holds ansible-test's environments, the bootstrap script and the caller's pip settings."""
    home = CACHE / "home"
    for pip in PIPS:
        script = home / ".ansible" / "test" / "cache" / ("get_pip_%s.py" % pip)
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(GET_PIP)
    # ansible-test hands no PIP_… variable on: they go into pip's own file.
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, text=True, stdout=subprocess.PIPE
    )
    settings = dict(re.findall(r"^(?:global|:env:)\.([a-z-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    config = home / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.touch(mode=0o600)
    config.write_text("[global]\n" + "".join("%s = %s\n" % item for item in sorted(settings.items())))
    return home


def target_python() -> Optional[Path]:
    """A Python of the oldest version that a GPU host may have, if this machine has one that runs."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += (Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions").glob(OLDEST + ".*/bin")
    for python in (folder / ("python" + OLDEST) for folder in folders):
        if (
            python.exists()
            and subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0
        ):
            return python
    return None


def ansible_test(words: List[str], copy: Path, path: str, home: Path) -> Counter:
    """Run ansible-test sanity and count its tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment.update(HOME=str(home), PATH=path, LC_ALL="C.UTF-8")
    ran, failed = set(), set()
    with subprocess.Popen(
        [str(TOOL), "sanity", "--color", "no", *words],
        cwd=copy,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as running:
        for line in running.stdout:
            print(line, end="", flush=True)
            ran.update(re.findall(r'^Running sanity test "([a-z0-9-]+)"', line))
            failed.update(re.findall(r"^([a-z0-9-]+)$", line))
    failed &= ran
    return Counter(passed=len(ran - failed), failed=len(failed) or int(running.returncode != 0))


def main(words: List[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-test", action="append", default=[])
    parser.add_argument("tests", nargs="*")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="gpufleet-sanity-") as folder:
        return run(given.tests, given.skip_test, copy_of_checkout(Path(folder)), own_home())


def run(tests: List[str], skipped: List[str], copy: Path, home: Path) -> int:
    chosen = [word for test in tests for word in ("--test", test)]
    chosen += [word for test in skipped for word in ("--skip-test", test)]
    count = ansible_test(["--python", PYTHON, *chosen], copy, os.environ["PATH"], home)
    oldest = target_python()
    if not oldest:
        print("compile and import on Python %s: skipped, there is none on this machine" % OLDEST)
        count["skipped"] = 2
    elif not tests:
        words = ["--python", OLDEST, "--test", "compile", "--test", "import"]
        count += ansible_test(words, copy, "%s:%s" % (os.environ["PATH"], oldest.parent), home)
    print("sanity: %d passed, %d failed, %d skipped" % (count["passed"], count["failed"], count["skipped"]))
    return int(count["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
