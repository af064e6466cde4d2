# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether this host is in its declared state: runs a function of the collection in check mode.

Passed to ``python -`` as its standard input, followed by a call of :func:`main`. Before that call nothing may be
imported that is not built in: the folder where the connection starts is still on the path.
"""

import sys

#: By the name of an exception what it says of the host; any other one is a failure.
STATES = {"Differs": "differs", "Refused": "refused"}


class Sources:
    """An importer of modules whose sources are in memory, and of the packages around them."""

    def __init__(self, texts):
        from importlib.machinery import ModuleSpec

        self.texts, self.spec, self.packages = texts, ModuleSpec, set()
        for name in texts:
            while "." in name:
                name = name.rpartition(".")[0]
                self.packages.add(name)

    def find_spec(self, name, path=None, target=None):
        if name in self.texts or name in self.packages:
            return self.spec(name, self, origin=name, is_package=name in self.packages)  # type: ignore[arg-type]
        return None

    @staticmethod
    def create_module(spec):
        return None

    def exec_module(self, module):
        # a program is only read here, to be handed on: compiling it may take 10 ms
        if module.__name__ in self.texts and ".programs." not in module.__name__:
            exec(compile(self.texts[module.__name__], module.__name__, "exec"), module.__dict__)

    def get_source(self, name):
        return self.texts[name]


def check(module, function, params):
    """The answer: ``state`` (converged, differs, refused or failed), ``why`` it is not converged, ``result`` if any."""
    warnings: list = []
    try:
        __import__(module)
        result = getattr(sys.modules[module], function)(params, True, warnings.append)
    except Exception as error:
        state = STATES.get(type(error).__name__, "failed")
        return {"state": state, "why": trace() if state == "failed" else str(error), "result": None}
    if warnings:
        result["warnings"] = warnings
    if not result["changed"]:
        return {"state": "converged", "why": "", "result": result}
    return {"state": "differs", "why": str(result.get("msg", "")), "result": result}


def trace():
    """The traceback of the exception that is being handled."""
    import traceback

    return traceback.format_exc()


def main(packed, params, mark):
    """Print the mark and the answer as one line.

    :param packed: the sources by name, the name of the module, and of its function.
    :param params: its parameters.
    """
    # As Ansible's wrapper of modules does, so that both see the same packages: those of root's own included, which -I
    # would hide, and none that lies where the connection happens to start.
    sys.path[:] = [path for path in sys.path if path not in ("", ".")]
    import base64
    import json
    import zlib

    texts, module, function = json.loads(zlib.decompress(base64.b64decode(packed)))
    sys.meta_path.insert(0, Sources(texts))
    sys.stdout.write("%s%s\n" % (mark, json.dumps(check(module, function, json.loads(base64.b64decode(params))))))
