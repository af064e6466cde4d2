# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DEVICE MODULE...: checks a Python environment: arithmetic on DEVICE (cuda, cpu or none) with PyTorch, and imports.

Prints JSON, ``device`` and ``packages``, on the last line; exits with a sentence that says what does not work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import sys


def device(kind):
    """A device of that kind on which arithmetic works: one will do, as others may be full."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    devices = ["cuda:%d" % index for index in range(torch.cuda.device_count())] if kind == "cuda" else ["cpu"]
    failed = "torch %s, built with CUDA %s, finds no GPU" % (torch.__version__, torch.version.cuda)
    for one in devices:
        try:
            result = (torch.arange(4.0, device=one) * 2).sum().item()
        except RuntimeError as error:
            failed = "%s: %s" % (one, error)
            continue
        if result != 12.0:
            raise SystemExit("2 * (0 + 1 + 2 + 3) is %r on %s" % (result, one))
        return torch.cuda.get_device_name(one) if kind == "cuda" else "cpu"
    raise SystemExit(failed)


def load(names):
    """Import all of these. vLLM only warns of compiled parts that do not load, and fails when it should serve."""
    broken, create = [], logging.getLogRecordFactory()

    def record(*args, **more):
        found = create(*args, **more)
        if str(found.msg).startswith("Failed to import from vllm._C"):
            broken.append(found.getMessage())
        return found

    logging.setLogRecordFactory(record)
    for name in names:
        importlib.import_module(name)
    if broken:
        raise SystemExit(broken[0])


def packages():
    found = importlib.metadata.distributions()
    return {one.metadata["Name"]: one.version for one in found if one.metadata["Name"]}


def main(kind, names):
    name = None if kind == "none" else device(kind)
    load(names)
    sys.stdout.write("\n%s\n" % json.dumps({"device": name, "packages": packages()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
