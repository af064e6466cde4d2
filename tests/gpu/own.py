#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long an engine takes by itself: `own.py start|restart UNIT URL MODEL` prints the seconds until a token."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.request


def token(url: str, model: str) -> bool:
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(json.load(answer)["choices"])
    except (OSError, http.client.HTTPException, ValueError):
        return False


def main() -> None:
    verb, unit, url, model = sys.argv[1:]
    if verb == "start":
        subprocess.run(["systemctl", "stop", unit], check=True)
    started = time.monotonic()
    subprocess.run(["systemctl", verb, unit], check=True)
    while not token(url, model):
        # a server cannot be asked to say when it will answer
        time.sleep(0.1)
        if time.monotonic() > started + 600:
            sys.exit("no token within 600 s")
    print("SECONDS %.1f" % (time.monotonic() - started))


if __name__ == "__main__":
    main()
