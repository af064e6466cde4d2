# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama on a lab host by hand: a host as it is before this collection comes, and a look at it that is none of ours.

`install` leaves what upstream's install.sh leaves: archive over /usr/local, user and groups, its unit, enabled and
running. Everything is done as root inside the container, not over SSH or Ansible.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import archive  # noqa: E402  (beside us, not in a package: these files also run as scripts)
import models  # noqa: E402
from gpulab import podman  # noqa: E402

PREFIX = "/usr/local"
API = "http://127.0.0.1:11434"
OVERRIDE = "/etc/systemd/system/ollama.service.d/override.conf"  # the file `systemctl edit` writes

UNIT = """[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
Environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

[Install]
WantedBy=default.target
"""

HELD = """
import json, pynvml as nvml
nvml.nvmlInit()
def workers(gpu):
    for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
        if open("/proc/%d/comm" % one.pid).read() == "llama-server\\n":
            yield one.pid, one.usedGpuMemory >> 20
gpus = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
print(json.dumps([dict(workers(gpu)) for gpu in gpus]))
"""


def sh(host: str, script: str, data: Union[bytes, str] = b"", check: bool = True, timeout: float = 120) -> str:
    """Standard output of a shell script run as root on a host; it must read all of `data` on its standard input.

    RuntimeError with both outputs when it fails and `check` is on.
    """
    container = "%s-%s" % (os.environ.get("GPUFLEET_LAB") or "gpufleet", host)
    command = [*podman.inside(container), "sh", "-ec", script]
    content = data.encode() if isinstance(data, str) else data
    done = subprocess.run(command, input=content, capture_output=True, timeout=timeout, check=False)
    if check and done.returncode:
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        raise RuntimeError("%s: exit status %d of: %s\n%s" % (host, done.returncode, script, text))
    return done.stdout.decode("utf-8", "replace")


def install(host: str, packed: Optional[Path] = None) -> None:
    """Install and start Ollama like upstream's install.sh; `packed`: another archive than the lab's own."""
    packed = packed or archive.path()
    unpack = "--zstd" if packed.suffix == ".zst" else "--gzip"
    sh(host, "rm -rf {0}/lib/ollama; tar {1} -xC {0}".format(PREFIX, unpack), packed.read_bytes())
    sh(
        host,
        "id -u ollama >/dev/null 2>&1 || useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama\n"
        'for group in render video; do ! getent group "$group" >/dev/null || usermod -a -G "$group" ollama; done\n'
        "cat >/etc/systemd/system/ollama.service\n"
        "systemctl daemon-reload; systemctl enable --quiet ollama; systemctl restart ollama",
        UNIT,
    )


def uninstall(host: str) -> None:
    """Take away everything `install`, `override` and a run of the server left, models included."""
    sh(
        host,
        "systemctl disable --quiet --now ollama 2>/dev/null || :\n"
        "rm -rf /etc/systemd/system/ollama.service* {0}/bin/ollama* {0}/lib/ollama; systemctl daemon-reload\n"
        "! id -u ollama >/dev/null 2>&1 || userdel -r ollama 2>/dev/null || :".format(PREFIX),
    )


def override(host: str, environment: Optional[Dict[str, str]] = None) -> None:
    """A person's override.conf with just these variables, none: no such file; then reload and restart.

    Values come without quotes, backslashes and `%`: who needs those is testing the engine, not us.
    """
    lines = "".join('Environment="%s=%s"\n' % pair for pair in (environment or {}).items())
    write = "rm -f {0}"
    if lines:
        write, lines = "mkdir -p $(dirname {0}); cat >{0}", "[Service]\n" + lines
    sh(host, write.format(OVERRIDE) + "; systemctl daemon-reload; systemctl restart ollama", lines)


def add_models(host: str, *names: str) -> None:
    """Models (see models.py) into the store of the host's user ollama; they are there at once.

    Waits for the server: as it starts it removes folders without a manifest and blobs of no model.
    """
    wait_for_api(host)
    script = (HERE / "models.py").read_bytes()  # made on the host: a copy would not stay sparse
    sh(host, "runuser -u ollama -- python3 - %s %s" % (models.STORE, " ".join(names)), script)


def api(host: str, path: str, body: Optional[Dict[str, Any]] = None, timeout: float = 60) -> Dict[str, Any]:
    """Ask the host's Ollama: the answer with `status` in it, 0 when nobody answered in `timeout` seconds."""
    ask = "curl -s --max-time %g -w '\\n%%{http_code}' %s%s %s || :" % (timeout, API, path, "-d @-" if body else "")
    text = sh(host, ask, json.dumps(body) if body else "", timeout=timeout + 30)
    answer, _, status = text.rpartition("\n")
    try:
        found = json.loads(answer) if answer else {}
    except ValueError:
        found = {"text": answer}
    return {**found, "status": int(status or 0)}


def wait_for_api(host: str, timeout: float = 60) -> None:
    """Until the server has looked for GPUs and answers; TimeoutError, with its last words, when it does not."""
    ask = "until curl -sf -o /dev/null --max-time 2 %s/api/version; do sleep 0.1; done" % API
    if "answers" not in sh(host, "timeout %g sh -c '%s' && echo answers || :" % (timeout, ask), timeout=timeout + 30):
        raise TimeoutError("%s: no answer from Ollama in %g s\n%s" % (host, timeout, journal(host)))


def journal(host: str) -> str:
    """What the present run of ollama.service wrote."""
    return sh(
        host, "journalctl -o cat --no-pager _SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value ollama)"
    )


def held(host: str) -> List[Dict[int, int]]:
    """Per GPU, {PID: MiB} of the workers that NVML names, as nvidia-ml-py reads it on the host."""
    import pynvml

    look = "PYTHONPATH=/run/look python3 -"
    if not (said := sh(host, look + " 2>/dev/null || :", HELD)):
        sh(host, "mkdir -p /run/look; cat >/run/look/pynvml.py", Path(pynvml.__file__).read_bytes())
        said = sh(host, look, HELD)
    found = json.loads(said)
    return [{int(pid): mib for pid, mib in gpu.items()} for gpu in found]
