# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model by git and git-lfs: one revision, its files alone.

Git works in a new folder that only root can enter. A secret reaches it by a credential helper that answers the declared
server alone, and stands in no argument and in no file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any, Dict, List, Mapping, Optional
from urllib.parse import urlsplit

from ..toolbox.command import end_with_parent
from ..toolbox.errors import Failed, Refused
from ..toolbox.users import home
from ..toolbox.values import gib, size
from . import hub
from .place import MARKER, Place, check_space, empty, result

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_MAX = 1024  # bytes
_PROTOCOLS = "file:git:http:https:ssh"
_KEPT = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_", "GIT_PROXY_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_EXEC_")
"""Variables of git's own that hold for the clone; others name another repository, or have secrets logged."""
_SETTINGS = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.symlinks=false",
    "submodule.recurse=false",
    "http.lowSpeedLimit=1024",
    "http.lowSpeedTime=300",
)
_HELPER = '!f() { test "$1" != get || printf "username=%s\\npassword=%s\\n" "$GPUFLEET_USER" "$GPUFLEET_SECRET"; }; f'


def fetch(place: Place, params: Mapping[str, Any], check_mode: bool) -> Dict[str, Any]:
    """Clone without the large files, look how large they are, and fetch them.

    Git keeps a second copy of every large file while it works; both need space.

    :raises Failed: nothing is left of the clone.
    """
    for program in ("git", "git-lfs"):
        if not shutil.which(program):
            raise Refused("%s: this host has no %s; install the packages git and git-lfs" % (place.shown, program))
    run = _Git(place, params)
    commit = _resolved(place, run)
    if commit and place.whole(commit):
        changed = place.commit() != commit
        if changed and not check_mode:
            with place.opened():
                place.remember(commit)
        return result(place, commit, changed, "%s is there" % place.shown)
    if check_mode:
        return result(place, commit or "", True, "would clone %s" % place.shown)
    with place.opened(), place.unfinished("clone") as held:
        run.held = held  # by git, too: it may outlive a run that is killed
        if not commit or not place.whole(commit):  # by a run that was waited for
            commit = _cloned(place, run, commit, params)
        changed = run.files is not None or place.commit() != commit
        place.remember(commit)
    if run.files is None:
        return result(place, commit, changed, "%s is there" % place.shown)
    total = sum(run.files.values())
    said = "cloned %s, %d files, %s" % (place.shown, len(run.files), gib(total))
    return result(place, commit, True, said, total)


def _resolved(place: Place, run: "_Git") -> Optional[str]:
    """The commit that the server gives for the revision; nothing where only a clone knows.

    :raises Refused: there is no such branch or tag.
    """
    if place.pinned():
        return place.revision
    name = place.revision
    wanted = ["HEAD"] if name == "HEAD" else ["refs/heads/" + name, "refs/tags/%s^{}" % name, "refs/tags/" + name]
    # a branch goes before a tag of its name
    told = [line.partition("\t") for line in run("ls-remote", "--quiet", "--", run.url, *wanted).splitlines()]
    found = {ref: commit for commit, _tab, ref in told if re.match(r"[0-9a-f]{40,64}\Z", commit)}
    for ref in wanted:
        if ref in found:
            return found[ref]
    if not re.match(r"[0-9a-f]{4,64}\Z", name):
        raise Refused("%s: its repository has no such branch or tag: correct revision" % place.shown)
    known = place.commits(name)
    return known[0] if len(known) == 1 else None


def _cloned(place: Place, run: "_Git", commit: Optional[str], params: Mapping[str, Any]) -> str:
    """Clone, check and install the model; returns the commit."""
    unfinished = place.part("clone")
    try:
        empty(unfinished)  # of a run that was killed
        work = os.path.join(unfinished, "tree")
        run.at = unfinished
        run("clone", "--quiet", "--no-checkout", "--no-local", "--template=", "--", run.url, "tree")
        run.at = work
        commit = run("rev-parse", "--verify", "--quiet", "%s^{commit}" % (commit or place.revision)).strip()
        if place.whole(commit):
            return commit
        _check_tree(place, run, commit)
        run("checkout", "--quiet", "--detach", commit)
        large = sum(_pointed(os.path.join(work, name)) for name in _files(work))
        check_space(place.folder, 2 * large, size(params["free_space_margin"], "free_space_margin"))
        run("lfs", "install", "--local", "--skip-repo")
        run("lfs", "pull")
        run("lfs", "fsck")
        files = {name: os.path.getsize(os.path.join(work, name)) for name in _files(work)}
        unfetched = [name for name in files if _pointed(os.path.join(work, name))]
        if unfetched:
            raise Failed("%s: git-lfs did not fetch %s" % (place.shown, ", ".join(unfetched[:3])))
        shutil.rmtree(os.path.join(work, ".git"))
        place.finish(work, commit, files, None)
        run.files = files
        return commit
    finally:
        empty(unfinished)


def _check_tree(place: Place, run: "_Git", commit: str) -> None:
    """:raises Failed: a checkout would have links in it, or its large files would come from this host."""
    entries = [
        entry.partition("\t") for entry in run("ls-tree", "-r", "-z", "--full-tree", commit).split("\0") if entry
    ]
    links = [path for mode, _tab, path in entries if mode.startswith("120000")]
    if links:
        raise Failed(
            "%s: %r is a symbolic link; expected plain files alone, as links would lead elsewhere on this host"
            % (place.shown, links[0])
        )
    names = {path for _mode, _tab, path in entries}
    if any(name.split("/")[0] == MARKER for name in names):
        raise Failed("%s: it holds a file %s, a name that is kept for the record of the files" % (place.shown, MARKER))
    if ".lfsconfig" in names:
        settings = run("config", "--blob", commit + ":.lfsconfig", "--list", "--null").split("\0")
        places = [value for _key, _line, value in (one.partition("\n") for one in settings) if _local(value)]
        if places:
            raise Failed(
                "%s: its .lfsconfig names %r; expected large files from https, http or ssh" % (place.shown, places[0])
            )


def _local(value: str) -> bool:
    return value.startswith(("/", ".", "~", "file:"))


def _files(work: str) -> List[str]:
    found = []
    for folder, folders, names in os.walk(work):
        if folder == work and ".git" in folders:
            folders.remove(".git")
        found += [os.path.relpath(os.path.join(folder, name), work) for name in names]
    return sorted(found)


def _pointed(path: str) -> int:
    """Size of the large file that a file stands for; 0 when it is one itself."""
    if os.path.getsize(path) > _POINTER_MAX:
        return 0
    with open(path, "rb") as file:
        text = file.read()
    found = re.search(rb"^size (\d{1,18})$", text, re.MULTILINE) if text.startswith(_POINTER) else None
    return int(found.group(1)) if found else 0


class _Git:
    """Runs git, as far as possible without the settings of others."""

    def __init__(self, place: Place, params: Mapping[str, Any]) -> None:
        self.place, self.at = place, "/"
        self.held: Optional[int] = None
        self.files: Optional[Dict[str, int]] = None
        """Of the clone that was made."""
        self.url, user, password = hub.parted(params["url"])
        if self.url.startswith("-") or "\n" in self.url or re.match(r"[\w-]+::", self.url):
            raise Refused("url: expected an address or a path, as git clone takes it, and no transport of its own")
        if urlsplit(self.url).password is not None:
            raise Refused("url: holds a password, which only http and https can use; give it without")
        self.settings = list(_SETTINGS)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(_KEPT)
        }
        self.environment.update(GIT_TERMINAL_PROMPT="0", GIT_LFS_SKIP_SMUDGE="1", GIT_ALLOW_PROTOCOL=_PROTOCOLS)
        self.environment["HOME"] = home()
        secret = params["token"] or password
        self.hidden = secret or user
        parts = urlsplit(self.url)
        if (secret or user) and parts.scheme in ("http", "https"):
            # no other helper, which might write it down; and asked for no other server, as after a redirect
            self.settings += [
                "credential.helper=",
                "credential.%s://%s.helper=%s" % (parts.scheme, parts.netloc, _HELPER),
            ]
            self.environment.update(GPUFLEET_USER=user or "oauth2", GPUFLEET_SECRET=secret)

    def __call__(self, *words: str) -> str:
        settings = [word for setting in self.settings for word in ("-c", setting)]
        done = subprocess.run(
            ["git", *settings, *words],
            cwd=self.at,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[] if self.held is None else [self.held],
            start_new_session=True,  # ssh asks nobody at a terminal
            preexec_fn=end_with_parent,
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()][-4:]
            text = " | ".join(said)
            if self.hidden:
                text = text.replace(self.hidden, "***")
            raise Failed("%s: git %s: exit status %d: %s" % (self.place.shown, words[0], done.returncode, text))
        return done.stdout.decode("utf-8", "surrogateescape")
