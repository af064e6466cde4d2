# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model by git and git-lfs: one revision, its files alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any, Dict, List, Mapping

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source.place import (
    Place,
    SourceError,
    check_space,
    gib,
    margin_of,
    result,
)

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_MAX = 1024  # bytes


def bring(place: Place, params: Mapping[str, Any], check_mode: bool) -> Dict[str, Any]:
    """Clone without the large files, look how large they are, and fetch them.

    Git keeps a second copy of every large file while it works; both need space.

    :raises SourceError: nothing but an unfinished clone is left.
    """
    for program in ("git", "git-lfs"):
        if not shutil.which(program):
            raise SourceError("%s: this host has no %s; install the packages git and git-lfs" % (place.shown, program))
    if check_mode:
        return result(place, place.commit() or "", True, "would clone %s" % place.shown)
    work = place.part("clone")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(place.folder, exist_ok=True)
    try:
        run = _Git(place, params, work)
        run("clone", "--quiet", "--no-checkout", params["url"], work, at="/")
        commit = run("rev-parse", "--verify", "%s^{commit}" % _named(run, place.revision)).strip()
        if place.whole(commit):
            changed = place.commit() != commit
            place.remember(commit)
            return result(place, commit, changed, "%s is there" % place.shown)
        run("checkout", "--quiet", "--detach", commit)
        size = sum(_pointed(os.path.join(work, name)) for name in _files(work))
        check_space(place.folder, 2 * size, margin_of(params["free_space_margin"]))
        run("lfs", "install", "--local")
        run("lfs", "pull")
        run("lfs", "fsck")
        files = {name: os.path.getsize(os.path.join(work, name)) for name in _files(work)}
        unfetched = [name for name in files if _pointed(os.path.join(work, name))]
        if unfetched:
            raise SourceError("%s: git-lfs did not fetch %s" % (place.shown, ", ".join(unfetched[:3])))
        shutil.rmtree(os.path.join(work, ".git"))
        shutil.rmtree(place.part(commit), ignore_errors=True)
        os.rename(work, place.part(commit))
        place.finish(commit, files)
        place.remember(commit)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    total = sum(files.values())
    said = "cloned %s, %d files, %s" % (place.shown, len(files), gib(total))
    return result(place, commit, True, said, total)


def _named(run: Any, revision: str) -> str:
    """A branch of the remote goes before a tag or commit of that name."""
    branches = run("for-each-ref", "--format=%(refname:strip=3)", "refs/remotes/origin").split()
    return "origin/" + revision if revision in branches else revision


def _files(work: str) -> List[str]:
    found = []
    for folder, folders, names in os.walk(work):
        if folder == work and ".git" in folders:
            folders.remove(".git")
        found += [os.path.relpath(os.path.join(folder, name), work) for name in names]
    return sorted(found)


def _pointed(path: str) -> int:
    """Size of the large file that a file stands for; 0 when it is one itself."""
    if os.path.islink(path) or os.path.getsize(path) > _POINTER_MAX:
        return 0
    with open(path, "rb") as file:
        text = file.read()
    if not text.startswith(_POINTER):
        return 0
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith(b"size ")]
    return int(sizes[0]) if sizes else 0


class _Git:
    """Runs git in the clone. The token goes by the environment: everybody can read arguments."""

    def __init__(self, place: Place, params: Mapping[str, Any], work: str) -> None:
        self.place, self.work = place, work
        self.environment = dict(os.environ, GIT_TERMINAL_PROMPT="0", GIT_LFS_SKIP_SMUDGE="1")
        self.environment.setdefault("HOME", "/root")
        if params["token"]:
            import base64

            basic = base64.b64encode(("oauth2:%s" % params["token"]).encode()).decode()
            self.environment.update(
                GIT_CONFIG_COUNT="1",
                GIT_CONFIG_KEY_0="http.%s.extraHeader" % params["url"],
                GIT_CONFIG_VALUE_0="Authorization: Basic " + basic,
            )

    def __call__(self, *words: str, at: str = "") -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=at or self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()][-4:]
            raise SourceError(
                "%s: git %s: exit status %d: %s" % (self.place.shown, words[0], done.returncode, " | ".join(said))
            )
        return done.stdout.decode("utf-8", "replace")
