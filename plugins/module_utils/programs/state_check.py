# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether this host is in its declared state: runs functions of the collection in check mode.

Passed to ``python -`` as its standard input, followed by a call of :func:`main`. Before that call nothing may be
imported that is not built in: the folder where the connection starts is still on the path.

What was compiled is kept in memory, in a folder that only root can enter; the next check is then made by kept_check.py,
which sends no sources. The folder is gone when the host restarts, so nothing in it can be half written.
"""

import sys

#: By the name of an exception what it says of the host; any other one is a failure.
STATES = {"Differs": "differs", "Refused": "refused"}


class Sources:
    """An importer of modules out of memory, and of the packages around them.

    :param texts: source, or compiled code as bytes, by the full name of the module.
    """

    def __init__(self, texts):
        from importlib.machinery import ModuleSpec

        self.texts, self.spec, self.packages = texts, ModuleSpec, set()
        self.compiled = {}
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
        name = module.__name__
        # a program is only read here, to be handed on: compiling it may take 10 ms
        if name in self.texts and ".programs." not in name:
            exec(self.code(name), module.__dict__)

    def code(self, name):
        import marshal

        text = self.texts[name]
        if isinstance(text, bytes):
            return marshal.loads(text)
        code = compile(text, name, "exec")
        self.compiled[name] = marshal.dumps(code)
        return code

    def get_source(self, name):
        text = self.texts[name]
        return text if isinstance(text, str) else None


def keep(folder, name, key, program, texts):
    """Keep sources and compiled code, where this is root; in place of what an earlier version has kept."""
    import marshal
    import os

    if os.geteuid():
        return
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(folder)
    if found.st_uid or found.st_mode & 0o170077 != 0o040000:
        return  # it is a link, or somebody else's
    for left in os.listdir(folder):  # by a check that was killed
        if left.startswith("new-") and not os.path.exists("/proc/" + left[4:]):
            os.unlink(os.path.join(folder, left))
    new = os.path.join(folder, "new-%d" % os.getpid())
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(marshal.dumps([key, sys.version, program, texts]))
    os.replace(new, os.path.join(folder, name))


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


def check_all(calls):
    """The answers, up to the first that is not converged."""
    answers = []
    for call in calls:
        answers.append(check(*call))
        if answers[-1]["state"] != "converged":
            break
    return answers


def load(texts):
    """Have Python import these modules; returns their importer, for :func:`keep_compiled`."""
    import gc

    gc.disable()  # nothing here lives long, and looking for garbage during the imports takes a tenth of the time
    sources = Sources(texts)
    sys.meta_path.insert(0, sources)
    return sources


def keep_compiled(kept, program, sources):
    """Keep what this check has compiled; where that fails, the next one is as slow.

    :param kept: folder, name and key to keep it under.
    :param program: this program, compiled and as bytes.
    """
    if sources.compiled:
        try:
            folder, name, key = kept
            keep(folder, name, key, program, {**sources.texts, **sources.compiled})
        except OSError:
            pass


def main(kept, program, texts, calls, mark):
    """Print the mark and the list of answers as one line, then keep what was compiled.

    :param kept: see :func:`keep_compiled`; None in check mode, which writes nothing.
    :param program: this program, compiled and as bytes.
    :param texts: see :class:`Sources`.
    :param calls: the name of a module, of a function in it, and the parameters, for each function.
    """
    import json

    sources = load(texts)
    sys.stdout.write("%s%s\n" % (mark, json.dumps(check_all(calls))))
    sys.stdout.flush()
    if kept:
        keep_compiled(kept, program, sources)


def unpack(kept, packed, mark):
    """Call :func:`main` with what the controller has sent.

    :param packed: this program, the sources by name, and the calls.
    """
    # As Ansible's wrapper of modules does, so that both see the same packages: those of root's own included, which -I
    # would hide, and none that lies where the connection happens to start.
    sys.path[:] = [path for path in sys.path if path not in ("", ".")]
    import base64
    import json
    import marshal
    import zlib

    program, texts, calls = json.loads(zlib.decompress(base64.b64decode(packed)))
    code = marshal.dumps(compile(program, "state_check", "exec")) if kept else b""
    main(kept, code, texts, calls, mark)
