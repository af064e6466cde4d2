# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed between any two changes of the disk, and what the runs after it make of that."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import install
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import switch, uninstall
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.release import BackStep, ReleaseStep
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.sources import Release, Source

FILES = ("bin/ollama", "lib/ollama/lib.so")


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")

    def packed(version):
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
            for name in FILES:
                entry, content = tarfile.TarInfo(name), b"%s %s" % (version.encode(), name.encode())
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
        path = folder / (version + ".tgz")
        path.write_bytes(stream.getvalue())
        return Release((Source(str(path), hashlib.sha256(stream.getvalue()).hexdigest()),))

    return {version: packed(version) for version in "WXYZ"}


class Host:
    """A prefix, with what was installed there before."""

    def __init__(self, prefix, releases, start):
        self.prefix, self.releases, self.start = str(prefix), releases, start
        self.vendor = ""
        for one in start.split():
            if len(one) == 1:
                self.good(one)
            else:
                self.vendors_installer(one)
        self.before = self.seen()

    def vendors_installer(self, version):
        self.vendor = version
        shutil.rmtree(self.prefix + "/lib/ollama", ignore_errors=True)
        for name in FILES:
            path = os.path.join(self.prefix, name)
            if os.path.islink(os.path.dirname(path)):
                os.unlink(os.path.dirname(path))
            if os.path.lexists(path):
                os.unlink(path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write("%s %s" % (version, name))

    def step(self, version):
        return ReleaseStep(self.releases[version], install.layout(self.prefix))

    def good(self, version):
        step = self.step(version)
        if step.needed():
            step.apply()
            step.finish()

    def bad(self, version):
        step = self.step(version)
        if step.needed():
            step.apply()
            step.undo()

    def former(self):
        """A run with the inventory from before the killed one."""
        last = self.start.split()[-1:]
        if last and len(last[0]) == 1:
            self.good(last[0])
            return
        back = BackStep(install.layout(self.prefix))
        if back.needed():
            back.apply()

    def uninstall(self):
        release = uninstall.Installed(install.layout(self.prefix))
        restore = uninstall.RestoreStep(release)
        if restore.needed():
            restore.apply()
        for path in release.folders:
            switch.discard(path)
        release.switch.end()
        switch.remove_empty(release.store, self.prefix)

    def seen(self):
        """Whose program and whose libraries are in the places."""
        found = []
        for name in FILES:
            try:
                with open(os.path.join(self.prefix, name), encoding="utf-8") as file:
                    found.append(file.read().split()[0])
            except OSError:
                found.append(None)
        return tuple(found)

    def wrong(self):
        """What must never be, whatever happened."""
        store = os.path.join(self.prefix, "lib/gpufleet")
        names = os.listdir(store) if os.path.isdir(store) else []
        for path in (os.path.join(self.prefix, "bin/ollama"), os.path.join(self.prefix, "lib/ollama")):
            if os.path.islink(path) and not os.path.exists(path):
                yield "%s leads nowhere" % path
            if os.path.lexists(path + ".gpufleet"):
                yield "a link is left beside"
        for name in names:
            if name.startswith("."):
                yield "left over: %s" % name
            folder = os.path.join(store, name)
            whole = all(os.path.isfile(os.path.join(folder, file)) for file in FILES)
            if os.path.exists(os.path.join(folder, ".sha256")) and not whole:
                yield "%s passes for whole" % name
        found = [
            os.path.join(where, name)
            for where, _folders, files in os.walk(self.prefix)
            for name in files
            if name in ("ollama", "lib.so")
        ]
        of_vendor = 0
        for path in found:
            with open(path, encoding="utf-8") as file:
                of_vendor += file.read().split()[0] == self.vendor
        if of_vendor != (len(FILES) if self.vendor else 0):
            yield "%d files of the vendor" % of_vendor


STARTS = ("", "vendor", "vendor X", "W X", "older Y vendor")
PROVEN = 3
"""Changes by which finish() writes that the switch is proven: a file beside, its mode, its name."""


def is_whole(host, follow, proven):
    """Have the next run, and say what is wrong then."""
    right = ("Y", "Y") if proven else host.before
    if follow == "the same":
        host.good("Y")
        right = ("Y", "Y")
    elif follow == "the same, failing":
        host.bad("Y")
    elif follow == "another":
        host.good("Z")
        right = ("Z", "Z")
    elif follow == "another, failing":
        host.bad("Z")
    elif follow == "the former":
        host.former()
        last = host.before[0]
        right = host.before if last in host.releases else right
    else:
        host.uninstall()
        right = (host.vendor or None,) * 2
    if host.seen() != right:
        yield "there is %s, expected %s" % (host.seen(), right)
    yield from host.wrong()
    store = os.path.join(host.prefix, "lib/gpufleet")
    left = [
        name for name in (os.listdir(store) if os.path.isdir(store) else []) if not name.startswith("ollama-before-")
    ]
    if follow in ("the same", "another"):
        if host.step("Y" if follow == "the same" else "Z").needed():
            yield "there is still something to do"
        if len(left) > (3 if proven else 2):
            yield "releases pile up: %s" % left
    useless = follow == "the former" and not proven and "Y" not in host.start and host.before[0] not in host.releases
    if left and (useless or follow == "uninstalled"):
        yield "left: %s" % left


FOLLOWS = ("the same", "the same, failing", "another", "another, failing", "the former", "uninstalled")


@pytest.mark.parametrize("start", STARTS)
def test_a_kill_between_any_two_changes(memory, power, releases, start):
    points, wrong = 0, []
    for phase in ("apply", "finish", "undo"):
        number, ended = 0, False
        while not ended:
            for follow in FOLLOWS:
                prefix = memory / "usr"
                host = Host(prefix, releases, start)
                step = host.step("Y")
                assert step.needed()
                if phase != "apply":
                    step.apply()
                ended = not power.fails_after(number, getattr(step, phase))
                del step  # whoever is dead holds no lock
                wrong += [
                    (phase, number, follow, words)
                    for words in is_whole(host, follow, phase == "finish" and number >= PROVEN)
                ]
                shutil.rmtree(prefix, ignore_errors=True)
                points += 1
            number += 1
    assert not wrong, "%d of %d: %s" % (len(wrong), points, wrong[:10])
    assert points > 150


@pytest.mark.parametrize("start", STARTS)
def test_an_uninstallation_that_is_killed(memory, power, releases, start):
    """Uninstalling again ends it, and the vendor's files are back; so are they where the inventory is the one of before,
    or declares no release."""
    number, killed, wrong = 0, True, []
    while killed:
        for follow in ("uninstalled", "another", "no release"):
            prefix = memory / "usr"
            host = Host(prefix, releases, start)
            killed = power.fails_after(number, host.uninstall)
            if follow == "no release":
                back = BackStep(install.layout(host.prefix))
                if back.needed():
                    back.apply()
                wrong += [(number, follow, words) for words in host.wrong()]
                if len(set(host.seen())) > 1:
                    wrong.append((number, follow, host.seen()))
            else:
                wrong += [(number, follow, words) for words in is_whole(host, follow, False)]
            shutil.rmtree(prefix, ignore_errors=True)
        number += 1
    assert not wrong
    assert number > 5 or "X" not in start
