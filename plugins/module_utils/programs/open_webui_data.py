# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VERSION DATA BACKUPS: runs before each start of Open WebUI, as its user, and keeps its data and its version together.

Open WebUI migrates its database when it starts, and an older version does not start with it afterwards. So before
another version starts, the data is saved as BACKUPS/OLD.unproven. If the older version starts again before the newer
one was accepted, that takes the place of the data, which is kept as BACKUPS/NEW.failed. Once a version is accepted
(``accept``), what was saved is an ordinary backup, and nothing takes it back by itself.

Killed at any line, the next start does the same again. DATABASE_URL of the environment is that of PostgreSQL; its dump
is saved with the files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.parse

MARK = ".gpufleet-version"
"""In the data: the version that it belongs to."""
DUMP = ".gpufleet-database"
"""In a backup: the dump of the database; in the data: one that has still to be loaded."""
UNPROVEN, UNFINISHED, FAILED = ".unproven", ".unfinished", ".failed"
CACHE = "cache"
"""Is made again."""


def main(version, data, backups):
    os.makedirs(backups, exist_ok=True)
    for name in os.listdir(backups):
        if name.endswith(UNFINISHED):  # of a backup that was killed, or had no room: this version may need the room
            shutil.rmtree(os.path.join(backups, name), ignore_errors=True)
    url = os.environ.get("DATABASE_URL", "")
    before = os.path.join(backups, version + UNPROVEN)
    if not os.path.isdir(data):
        # an exchange that was killed half-way has left one of them, whatever version starts now
        others = sorted(name for name in os.listdir(backups) if name.endswith(UNPROVEN))
        paths = [os.path.join(backups, name) for name in (version + UNPROVEN, version + FAILED, *others)]
        left = [path for path in paths if os.path.isdir(path)]
        if left:
            os.rename(left[0], data)
        else:
            os.mkdir(data)
    settle(data, url)  # first, as what is saved must be the database of this data
    found = version_of(data)
    if found not in ("", version):
        if os.path.isdir(before):
            exchange(data, before, os.path.join(backups, found + FAILED))
            say("Open WebUI %s again: its data from before the update to %s is back" % (version, found))
        else:
            save(data, os.path.join(backups, found + UNPROVEN), url)
            say("Open WebUI %s after %s: the data is saved in %s" % (version, found, backups))
    settle(data, url)
    if found != version:
        write(os.path.join(data, MARK), version)


def say(line):
    """In the journal of the unit."""
    sys.stdout.write(line + "\n")


def version_of(data):
    """The version that the data belongs to; empty where there is none, ``unknown`` of data that has no mark."""
    try:
        with open(os.path.join(data, MARK), encoding="ascii") as file:
            return file.read(64).strip()
    except FileNotFoundError:
        return "unknown" if os.path.exists(os.path.join(data, "webui.db")) else ""


def save(data, to, url):
    """A copy that has its name only once it is whole."""
    if os.path.isdir(to):  # of an earlier attempt: the data has not been touched since
        shutil.rmtree(to)
    beside = to + UNFINISHED
    if os.path.isdir(beside):
        shutil.rmtree(beside)

    def ignored(folder, names):
        odd = [name for name in names if not regular(os.path.join(folder, name))]
        return odd + ([CACHE] if folder == data else [])

    shutil.copytree(data, beside, symlinks=True, ignore=ignored)
    if url:
        run(["pg_dump", "--format=custom", "--file=" + os.path.join(beside, DUMP)], url)
    os.sync()
    os.rename(beside, to)
    sync(os.path.dirname(to))


def exchange(data, before, failed):
    """Put back what was saved. Killed in between, it leaves no data, and the next start finds what belongs there."""
    if os.path.isdir(failed):
        shutil.rmtree(failed)
    os.rename(data, failed)
    os.rename(before, data)
    sync(os.path.dirname(data))


def settle(data, url):
    """Load a dump that is still to be loaded. Without PostgreSQL it is of no use, and must not be loaded later."""
    dump = os.path.join(data, DUMP)
    if os.path.exists(dump):
        if url:
            load(dump, url)
        else:
            os.unlink(dump)


def load(dump, url):
    """What a newer version has created must go, or its next migration would fail."""
    run(["psql", "--quiet", "--command=DROP SCHEMA public CASCADE; CREATE SCHEMA public"], url)
    run(["pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", "--dbname=", dump], url)
    os.unlink(dump)


def run(command, url):
    subprocess.run(command, env=dict(os.environ, **variables(url)), stdin=subprocess.DEVNULL, check=True)


def variables(url):
    """The place of a database as libpq's variables: everybody can read the arguments of a program."""
    parts = urllib.parse.urlsplit(url)
    found = {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port or ""),
        "PGUSER": urllib.parse.unquote(parts.username or ""),
        "PGPASSWORD": urllib.parse.unquote(parts.password or ""),
        "PGDATABASE": parts.path.lstrip("/"),
    }
    found.update(("PG" + name.upper(), value) for name, value in urllib.parse.parse_qsl(parts.query))
    return {name: value for name, value in found.items() if value}


def accept(backups, keep):
    """What was saved is from now on an ordinary backup. The oldest are removed, but for so many."""
    names = os.listdir(backups) if os.path.isdir(backups) else []
    for name in [name for name in names if name.endswith(UNPROVEN)]:
        plain = os.path.join(backups, name[: -len(UNPROVEN)])
        if os.path.isdir(plain):
            shutil.rmtree(plain)
        os.rename(plain + UNPROVEN, plain)
    paths = [os.path.join(backups, name) for name in os.listdir(backups)] if names else []
    paths = [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
    # what a failed update has left goes first: it is no backup
    for path in sorted(paths, key=lambda path: (not path.endswith(FAILED), os.lstat(path).st_ctime))[:-keep]:
        shutil.rmtree(path)


def size(data):
    """Bytes that a backup takes."""
    found = 0
    for folder, names, files in os.walk(data):
        if folder == data and CACHE in names:
            names.remove(CACHE)
        for name in files:
            try:
                found += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                pass  # of a database that is in use
    return found


def regular(path):
    return os.path.isfile(path) or os.path.isdir(path) or os.path.islink(path)


def write(path, text):
    with open(path + UNFINISHED, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + UNFINISHED, path)
    sync(os.path.dirname(path))


def sync(folder):
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    os.umask(0o077)
    main(*sys.argv[1:])
