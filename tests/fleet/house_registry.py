# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real registry on a lab host, as Ollama can push to it and pull from it, that counts and misbehaves.

house_registry.py HOST     has a registry with library/tiny:v1 on a host that serves with Ollama; prints its address
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import List

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "lab/ollama"))

import hostsetup  # noqa: E402
import models  # noqa: E402

PORT = 5001


class Registry:
    """Debian's docker-registry behind host/registry_front.py."""

    def __init__(self, host: str) -> None:
        self.host = host
        front = Path(__file__).parent / "host/registry_front.py"
        hostsetup.sh(host, "cat >/root/registry_front.py", front.read_bytes())
        self.stop()
        hostsetup.sh(
            host,
            "mkdir /run/registry;"
            # without the password that Debian's configuration asks for
            " sed '/^auth:/,/path:/d; s#/var/lib/docker-registry#/run/registry#; s#:5000#127.0.0.1:5000#'"
            "   /etc/docker/registry/config.yml >/run/registry.yml;"
            " systemd-run --quiet --collect --unit=registry docker-registry serve /run/registry.yml;"
            " systemd-run --quiet --collect --unit=registry-front python3 /root/registry_front.py;"
            " timeout 60 sh -c 'until curl -fs http://127.0.0.1:%d/v2/ >/dev/null; do sleep 0.05; done'" % PORT,
        )
        address = hostsetup.sh(host, "hostname -I").split()[0]
        self.url = "http://%s:%d" % (address, PORT)
        self.size = 0  # bytes of the model that was offered last
        self.here = "http://127.0.0.1:%d" % PORT

    def stop(self) -> None:
        hostsetup.sh(self.host, "systemctl stop registry-front registry 2>/dev/null || :; rm -rf /run/registry*")

    def rate(self, bytes_a_second: int = 0, limited: bool = True) -> None:
        write = "echo %d >/run/registry-rate" % bytes_a_second
        hostsetup.sh(self.host, write if limited else "rm -f /run/registry-rate")

    def fault(self, name: str = "") -> None:
        hostsetup.sh(self.host, "echo %s >/run/registry-fault" % name)

    def sent(self) -> int:
        """Bytes of blobs that were sent since the last time."""
        log = hostsetup.sh(self.host, "cat /run/registry-log 2>/dev/null || :; rm -f /run/registry-log")
        return sum(int(line.split()[0]) for line in log.splitlines())

    def offer(self, host: str, shape: str, name: str) -> None:
        """Have a model made on a host and pushed here as library/NAME; the host's store is as before."""
        with tempfile.TemporaryDirectory() as folder:
            models.write_gguf(Path(folder) / "model.gguf", shape)
            content = (Path(folder) / "model.gguf").read_bytes()
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        blob = "curl -fsT - -X POST %s/api/blobs/%s" % (hostsetup.API, digest)
        hostsetup.sh(host, blob, content)
        there = "%s/library/%s" % (self.here if host == self.host else self.url, name)
        made = hostsetup.api(host, "/api/create", {"model": there, "files": {"m.gguf": digest}, "stream": False})
        assert made["status"] == 200, made
        pushed = hostsetup.api(host, "/api/push", {"model": there, "insecure": True, "stream": False})
        assert pushed["status"] == 200, pushed
        full = there.partition("//")[2]
        self.size = next(one["size"] for one in hostsetup.api(host, "/api/tags")["models"] if one["name"] == full)
        hostsetup.sh(host, 'curl -fsX DELETE -d \'{"model": "%s"}\' %s/api/delete' % (there, hostsetup.API))


def main(words: List[str]) -> int:
    if len(words) != 1:
        sys.exit(__doc__)
    registry = Registry(words[0])
    registry.offer(words[0], "tiny", "tiny:v1")
    print(registry.url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
