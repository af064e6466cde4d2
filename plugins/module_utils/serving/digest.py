# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With which files a process was started, so that this can be compared as any other variable of it. Pure.

A file may be edited, the service restarted, and the file put back: then the file says nothing of what runs. So a shell
takes the digest of the files right before it executes the program in its own place, and leaves it in the environment.
"""

from __future__ import annotations

import re
from typing import Mapping

VARIABLE = "GPUFLEET_FILES"
_DIGITS = 16


def of(files: Mapping[str, str]) -> str:
    """The digest of files, path to text, in the order of their paths."""
    import hashlib  # only for a service with files

    text = "".join(files[path] for path in sorted(files))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def reporting(command: str, files: Mapping[str, str]) -> str:
    """A value of ``ExecStart=`` that executes ``command``, itself such a value, with the digest of what it will read.

    :raises ValueError: a path has characters that a shell reads in its own way.
    """
    paths = sorted(files)
    if not all(re.fullmatch(r"[A-Za-z0-9_./-]+", path) for path in paths):
        raise ValueError("paths of files: %s; expected letters, digits, _, ., - and /" % ", ".join(paths))
    script = 'export %s="$$(cat %s | sha256sum | cut -c-%d)"; exec "$$0" "$$@"' % (VARIABLE, " ".join(paths), _DIGITS)
    return "/bin/sh -c '%s' %s" % (script, command)
