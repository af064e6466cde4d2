# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PACKAGE [WITHOUT...]: prints the requirements of an installed package that hold here, less some, as a JSON list."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys


def normalized(name):
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(package, without):
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment, unused-ignore]
    kept = []
    for text in importlib.metadata.requires(package) or []:
        requirement = Requirement(text)
        holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if holds and normalized(requirement.name) not in without:
            requirement.marker = None
            kept.append(str(requirement))
    return kept


if __name__ == "__main__":
    sys.stdout.write("\n%s\n" % json.dumps(requirements_of(sys.argv[1], sys.argv[2:])))
