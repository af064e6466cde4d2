# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vLLM double on a lab host: its environment, models for it, its faults."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "ollama"))

from hostsetup import sh  # noqa: E402

OPTIONS = HERE.parents[1] / "unit/fixtures/vllm/options.json"
VENV = "/opt/vllm-double"
MODELS = "/srv/models"
SCRIPT = """#!%s/bin/python
from vllm.server import main

main()
"""
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def packed(venv: str = VENV, name: str = "vllm", version: str = "0.32.0") -> bytes:
    """The environment's own files as a tar; `name` is that of the distribution."""
    site = "lib/python3.11/site-packages"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(path: str, content: bytes, mode: int = 0o644) -> None:
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))

        for path in sorted((HERE / "double").rglob("*.py")):
            add("%s/%s" % (site, path.relative_to(HERE / "double")), path.read_bytes())
        add("%s/vllm/options.json" % site, OPTIONS.read_bytes())
        add("%s/%s-%s.dist-info/METADATA" % (site, name, version), b"Name: %s\n" % name.encode())
        add("bin/vllm", (SCRIPT % venv).encode(), 0o755)
    return buffer.getvalue()


def install(host: str, venv: str = VENV, name: str = "vllm", version: str = "0.32.0") -> str:
    """Make the environment on a host; gives its path."""
    sh(host, "rm -rf {0}; python3 -m venv --without-pip {0}; tar -xC {0}".format(venv), packed(venv, name, version))
    return venv


def add_model(host: str, name: str, gib: float = 15, **config: Any) -> str:
    """A model's directory on a host, with a config.json and an index that says what its weights would be."""
    path = "%s/%s" % (MODELS, name)
    index = {"metadata": {"total_size": int(gib * (1 << 30))}, "weight_map": {}}
    for file, content in (("config.json", {**LLAMA, **config}), ("model.safetensors.index.json", index)):
        sh(host, "mkdir -p {0}; cat >{0}/{1}".format(path, file), json.dumps(content))
    return path


def fault(host: str, text: str) -> None:
    """Tell the servers of a host to misbehave, from their next start on; server.py lists how."""
    sh(host, "mkdir -p /etc/nvidia-sim; cat >/etc/nvidia-sim/vllm", text + "\n")


def clear(host: str) -> None:
    """No fault any more, and nobody who holds memory or a port for one."""
    sh(
        host,
        "rm -f /etc/nvidia-sim/vllm; systemctl stop --quiet vram-holder port-taker 2>/dev/null || :; "
        "systemctl reset-failed",
    )


def hold(host: str, gpu: int, mib: int) -> None:
    """A foreign process, such as an orphan of a former engine, holds memory of a GPU."""
    sh(
        host,
        "systemd-run --quiet --unit=vram-holder sleep infinity\n"
        "nvidia-sim claim --pid $(systemctl show -p MainPID --value vram-holder) --gpu %d --mib %d" % (gpu, mib),
    )


def take_port(host: str, port: int) -> None:
    """A foreign process listens on a port, and answers nothing."""
    listener = "import socket, time; s = socket.create_server(('127.0.0.1', %d)); time.sleep(1 << 20)" % port
    sh(host, 'systemd-run --quiet --unit=port-taker python3 -c "%s"' % listener)
    sh(host, "timeout 60 sh -c \"until ss -Hltn 'sport = :%d' | grep -q .; do sleep 0.05; done\"" % port)


def uninstall(host: str) -> None:
    """Take away every instance and what the module and this file made."""
    clear(host)
    sh(
        host,
        "for unit in $(systemctl list-units --all --plain --no-legend 'vllm@*' | cut -d' ' -f1); do"
        " systemctl kill -s KILL $unit 2>/dev/null; systemctl disable --quiet --now $unit 2>/dev/null; done\n"
        "rm -rf /etc/systemd/system/vllm@* /etc/systemd/system/*.wants/vllm@* /etc/gpufleet %s* %s\n"
        "systemctl daemon-reload; systemctl reset-failed\n"
        "! id -u vllm >/dev/null 2>&1 || userdel -r vllm 2>/dev/null || :" % (VENV, MODELS),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("vllmdouble.py HOST: the double in %s, and the model %s/m8b" % (VENV, MODELS))
    install(sys.argv[1])
    add_model(sys.argv[1], "m8b", gib=4)
