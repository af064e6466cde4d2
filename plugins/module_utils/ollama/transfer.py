# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models on their way from one store to another: the part that runs with the rights of the service's user.

On one file system every file gets a second name, which takes no time and no space; between two it is copied, and each
blob must have the digest in its name. Links are followed as the user may follow them. Blobs arrive before manifests and
leave after them, so a server never sees a model that is not whole.

The generators yield before each change and each megabyte, as ``as_user`` expects of long work.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from contextlib import suppress
from typing import Any, BinaryIO, Collection, Dict, Generator, Iterator, List, Sequence, Set

from ..converge.model import StepError
from ..toolbox.files import follow, sync_folder
from .store import BLOB, TOPS, holding

Work = Generator[None, None, Any]
_NO_SECOND_NAME = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_BESIDE = ".gpufleet"  # ends the name of a copy that is not whole
_PIECE = 1 << 20
_SYNC = 256  # pieces
_MANIFEST = 1 << 20  # bytes that are read of one
_DIGEST = re.compile(rb"sha256[:-]([0-9a-f]{64})")


def survey(old: str, new: str) -> Dict[str, Any]:
    """What moving would mean.

    :returns: ``same``: both paths lead to one store; ``held``: what the old one has, file to bytes; ``missing``: what
        of it the new one lacks; ``absent``: those of them of which the new one has no file at all; ``differ``: models
        of which both have a version of their own; ``stuck``: a folder of the old store that nothing can be removed
        from; ``folders``: to be created, the outermost first; ``needed`` and ``free``: bytes on its disk.
    """
    held, there = holding(old, strict=True).files, holding(new, strict=True).files
    missing = {file: size for file, size in held.items() if not (_shared(old, new, file) or _same(old, new, file))}
    absent = [file for file in missing if not os.path.lexists(os.path.join(new, file))]
    place = new
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    device, emptied = os.stat(place).st_dev, {os.path.dirname(os.path.join(old, file)) for file in held}
    return {
        "same": os.path.realpath(old) == os.path.realpath(new),
        "held": held,
        "missing": missing,
        "absent": absent,
        "differ": sorted(
            file
            for file in missing
            if not BLOB.match(file)
            and file in there
            and not _leads_back(*(os.path.join(at, file) for at in (old, new)))
        ),
        "stuck": next((folder for folder in sorted(emptied) if not os.access(folder, os.W_OK | os.X_OK)), None),
        "folders": _missing_folders(new, absent),
        "needed": sum(size for file, size in missing.items() if _must_copy(os.path.join(old, file), device)),
        "free": shutil.disk_usage(place).free,
    }


def copy(old: str, new: str, files: Collection[str], replace: Collection[str] = ()) -> Work:
    """Give the new store files of the old one, which keeps them; what the server removes meanwhile is left out.

    :param replace: manifests of which the new store's version is to be replaced.
    :raises StepError: a file cannot be moved.
    """
    for file in sorted(files):
        here, there = os.path.join(old, file), os.path.join(new, file)
        if _shared(old, new, file) or _same(old, new, file):
            continue
        if os.path.lexists(there) and not (BLOB.match(file) or file in replace or _leads_back(here, there)):
            continue  # the server on the new store has pulled it meanwhile
        yield
        try:
            os.makedirs(os.path.dirname(there), exist_ok=True)
            yield from _take(file, here, there)
        except OSError as error:
            if os.path.lexists(here):
                raise StepError(
                    "%s cannot be moved to %s: %s; ensure that the service's user can read the one and write the "
                    "other" % (here, there, error.strerror)
                ) from None


def finish(old: str, new: str, known: Collection[str]) -> Work:
    """Bring what was pulled into the old store since, and empty that of all that the new one has.

    :param known: what was moved before.
    :returns: what is left in the old store: files that the new one does not have.
    """
    held = holding(old, strict=True).files
    # of a model that both servers have pulled since, the new store has the newer one
    both = [file for file in held if not BLOB.match(file) and os.path.lexists(os.path.join(new, file))]
    stale = {file for file in both if not (_shared(old, new, file) or _same(old, new, file))}
    newer = {file for file in stale if file in known and _changed(old, file) > _changed(new, file)}
    yield from copy(old, new, held, newer)
    yield from empty(old, new, {*known, *held}, stale)
    folders = [folder for top in TOPS for folder, _below, _files in os.walk(os.path.join(old, top))]
    remove_empty([old, *folders])
    return sorted(file for file in holding(old, strict=True).files if not _shared(old, new, file))


def empty(
    store: str, other: str, files: Collection[str], also: Collection[str] = (), keep_models: bool = False
) -> Work:
    """Remove files from a store of which another one has the same, and what a copy has left of itself.

    Blobs stay that a model uses which is not among the files.

    :param also: manifests to be removed although the other store has another version.
    :param keep_models: whole models stay.
    """
    _sync({os.path.dirname(os.path.join(other, file)) for file in files})
    manifests = sorted(file for file in files if not BLOB.match(file))
    for file in manifests:
        yield from _remove(store, other, file, keep_models, file in also)
    used = _used(store)
    for file in sorted(set(files).difference(manifests)):
        yield from _remove(store, other, file, file[-64:] in used)


def remove_empty(folders: Sequence[str]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for folder in sorted(folders, key=len, reverse=True):
        with suppress(OSError):  # something of someone else's is in it, or it is gone
            os.rmdir(folder)


def _remove(store: str, other: str, file: str, keep: bool, differs: bool = False) -> Work:
    path = os.path.join(store, file)
    yield
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.path.lexists(_beside(path)):
            os.unlink(_beside(path))
        if not (keep or _shared(store, other, file)) and (differs or _same(store, other, file)):
            os.unlink(path)


def _beside(path: str) -> str:
    """Name of a copy that is not whole; of a manifest one that no server takes for a tag."""
    folder, name = os.path.split(path)
    if not name.startswith("sha256-"):
        folder, model = os.path.split(folder)
        name = ".%s-%s" % (model, name)
    return os.path.join(folder, name + _BESIDE)


def _take(file: str, here: str, there: str) -> Work:
    if not (os.path.lexists(there) or os.path.islink(here)):
        try:
            os.link(here, there, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in _NO_SECOND_NAME:
                raise
    yield from _copy(file, here, there)  # also in place of a blob that is not whole: the digest shows which one is


def _copy(file: str, here: str, there: str) -> Work:
    """Copy a file of a store; a blob arrives with the digest in its name, or not at all."""
    digest, beside, blob = hashlib.sha256(), _beside(there), BLOB.match(file)
    with follow(here) as source:
        found = os.fstat(source.fileno())
        if shutil.disk_usage(os.path.dirname(beside)).free < found.st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), there)
        with suppress(FileNotFoundError):
            os.unlink(beside)
        try:
            target = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(target, "wb") as stream:
                for count, piece in enumerate(_pieces(source, found.st_size), 1):
                    digest.update(piece)
                    stream.write(piece)
                    if count % _SYNC == 0:
                        os.fdatasync(target)  # else the last sync takes longer than silence is allowed
                    yield
                stream.flush()
                os.fchmod(target, stat.S_IMODE(found.st_mode) & 0o777)
                os.fsync(target)
            if blob and digest.hexdigest() != blob.group(1):
                raise StepError(
                    "%s is damaged: its SHA-256 is %s; pull the models that use it again, or remove them"
                    % (here, digest.hexdigest())
                )
            os.rename(beside, there)
        except Exception:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            raise


def _same(old: str, new: str, file: str) -> bool:
    """Whether both stores have the same file: a blob of the same size, or a manifest of the same content."""
    here, there = os.path.join(old, file), os.path.join(new, file)
    try:
        ours, theirs = os.stat(here), os.stat(there)
        if not (stat.S_ISREG(ours.st_mode) and stat.S_ISREG(theirs.st_mode)) or ours.st_size != theirs.st_size:
            return False
        if _leads_back(here, there):
            return False
        return bool(BLOB.match(file)) or os.path.samestat(ours, theirs) or _equal(here, there, ours.st_size)
    except OSError:
        return False


def _leads_back(here: str, there: str) -> bool:
    """Whether the new store has a link to what is about to be removed from the old one."""
    try:
        return os.path.islink(there) and os.path.samefile(here, there)
    except OSError:
        return False


def _equal(here: str, there: str, size: int) -> bool:
    with follow(here) as ours, follow(there) as theirs:
        return all(one == other for one, other in zip(_pieces(ours, size), _pieces(theirs, size)))


def _shared(old: str, new: str, file: str) -> bool:
    """Whether a file of both stores lies in one folder, to which a link leads: then it must not be removed."""
    here, there = (os.path.dirname(os.path.join(store, file)) for store in (old, new))
    try:
        return os.path.samefile(here, there)
    except OSError:
        return False


def _used(store: str) -> Set[str]:
    """The digests that the models of a store name."""
    found: Set[str] = set()
    for file in holding(store).models:
        with suppress(OSError), follow(os.path.join(store, file)) as manifest:
            found.update(digest.decode() for digest in _DIGEST.findall(manifest.read(_MANIFEST)))
    return found


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The content of a file, of one that grows only what was there."""
    while size > 0:
        piece = stream.read(min(_PIECE, size))
        if not piece:
            return
        size -= len(piece)
        yield piece


def _must_copy(path: str, device: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode) or found.st_dev != device


def _missing_folders(new: str, files: Collection[str]) -> List[str]:
    missing: Set[str] = set()
    for place in {new, *(os.path.dirname(os.path.join(new, file)) for file in files)}:
        while not os.path.lexists(place):
            missing.add(place)
            place = os.path.dirname(place)
    return sorted(missing)


def _changed(store: str, file: str) -> int:
    try:
        return os.stat(os.path.join(store, file)).st_mtime_ns
    except OSError:
        return 0


def _sync(folders: Collection[str]) -> None:
    """Have the names in folders last through a power cut."""
    for folder in folders:
        with suppress(OSError):
            sync_folder(folder)
