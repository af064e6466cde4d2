# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: three GPU hosts as Ollama's installer leaves them, then `ansible-playbook site.yml`, then a check
with independent tools: systemctl, nvidia-smi, NVML, Ollama's API. Fails if the hosts are not in the declared state.

The hosts stay up afterwards (`make lab-status`, `make lab-down`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/lab/ollama"))

import hostsetup  # noqa: E402  (its directory is not a package)

HOSTS = {"gpu1": "4 x 24 GiB", "gpu2": "4 x H200", "gpu3": "2 x H200"}
SMALL = "m8b"
LARGE = {"m70b": "43 GB", "m32b": "20 GB"}
PROVE = ("-e", "ollama_prove_model=m70b")  # the model that must generate a token
PROMISED = ("CUDA_VISIBLE_DEVICES", "OLLAMA_SCHED_SPREAD", "OLLAMA_KEEP_ALIVE")


def title(text: str) -> None:
    print("\n==> " + text, flush=True)


def check(right: bool, what: str) -> None:
    """Print one line for a check; end the demonstration at the first that fails."""
    print("    %s  %s" % ("ok  " if right else "FAIL", what), flush=True)
    if not right:
        sys.exit("demo: the hosts are still up for inspection; `make lab-down` removes them")


def used(host: str) -> List[int]:
    """MiB in use on each GPU, by nvidia-smi."""
    text = hostsetup.sh(host, "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits")
    return [int(line) for line in text.split()]


def load(host: str, model: str) -> None:
    """Let a model generate one token; `done` must be true, the status alone is not enough."""
    options = {"num_predict": 1, "num_ctx": 4096}
    request = {"model": model, "prompt": "hello", "stream": False, "options": options}
    answer = hostsetup.api(host, "/api/generate", request, 120)
    check(answer.get("done") is True, "%s: %s generated a token" % (host, model))


def environment(host: str) -> Dict[str, str]:
    """Environment of the running server, from /proc."""
    text = hostsetup.sh(host, "tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value ollama)/environ")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def before() -> None:
    title("Before: Ollama as its installer leaves it")
    for host in HOSTS:
        hostsetup.uninstall(host)  # from an earlier demonstration
        hostsetup.install(host)
        hostsetup.add_models(host, SMALL, *LARGE)
        idle = used(host)
        load(host, SMALL)
        busy = [now > then + 1024 for now, then in zip(used(host), idle)]
        check(sum(busy) == 1, "%s (%s): 1 GPU in use, %d idle" % (host, HOSTS[host], len(busy) - 1))


def fingerprint(host: str) -> str:
    """Everything that a run could change: the files of the unit and of the collection, and the running process."""
    return hostsetup.sh(
        host,
        "find /etc/systemd/system /etc/gpufleet /usr/local/bin /usr/local/lib/gpufleet -printf '%p %m %u %T@ %l\\n'"
        " 2>/dev/null | sort; systemctl show ollama -p MainPID -p InvocationID -p DropInPaths",
        check=False,
    )


def play(*words: str) -> str:
    """Run site.yml, print its output and return it."""
    command = ["ansible-playbook", "-i", "inventories/lab", "site.yml", *words]
    print("    $ " + " ".join(command), flush=True)
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(re.sub("(?m)^", "      ", done.stdout.strip()))
    check(done.returncode == 0, "%.1f s" % (time.monotonic() - started))
    return done.stdout


def after() -> None:
    for host, gpus in HOSTS.items():
        title("%s (%s): the state of the host" % (host, gpus))
        print("    " + hostsetup.sh(host, "systemctl show ollama -p Environment").strip())
        devices = ",".join(str(index) for index in range(len(used(host))))
        running = environment(host)
        expected = dict(zip(PROMISED, (devices, "1", "-1")))
        check({name: running.get(name) for name in PROMISED} == expected, "the running server has exactly these values")
        for model in LARGE:
            load(host, model)
        listed = [one["name"] for one in hostsetup.api(host, "/api/ps")["models"]]
        check(
            all(any(name.startswith(model) for name in listed) for model in LARGE),
            "both models stay loaded: %s" % listed,
        )
        held = [sum(gpu.values()) for gpu in hostsetup.held(host)]
        check(min(held) > 4096, "both are spread over all GPUs; NVML reports %s MiB" % held)


def main() -> None:
    before()
    title("ansible-playbook -i inventories/lab site.yml")
    play(*PROVE)
    after()
    title("Second run: nothing to change")
    recap = re.findall(r"^(gpu\d+) .*changed=(\d+).*failed=(\d+)", play(*PROVE), re.MULTILINE)
    check(recap == [(host, "0", "0") for host in HOSTS], "changed=0 on every host")
    title("Check mode: a change is shown, not made")
    previous = [fingerprint(host) for host in HOSTS]
    shown = play(*PROVE, "--check", "--diff", "-e", "ollama_keep_alive=30m")
    lines = sorted(set(re.findall(r"^[+-]Environment=.*", shown, re.MULTILINE)))
    values = ['%sEnvironment="OLLAMA_KEEP_ALIVE=%s"' % pair for pair in (("+", "30m"), ("-", "-1"))]
    check(lines == values, "exactly this change is shown")
    check([fingerprint(host) for host in HOSTS] == previous, "nothing changed on the hosts")
    print("\nThe hosts stay up: `make lab-status`, `make lab-down`.")


if __name__ == "__main__":
    main()
