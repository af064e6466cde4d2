# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths of a vLLM answer without the key.

open_paths.py URL LIST-URL     a JSON list; the second server tells which paths there are
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def status(url, method):
    headers = {"Content-Type": "application/json"}
    try:
        with opener.open(urllib.request.Request(url, method=method, headers=headers), timeout=120) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def main(url, lister):
    with opener.open(lister + "/openapi.json", timeout=120) as answer:
        paths = json.load(answer)["paths"]
    print(json.dumps(sorted(path for path in paths if status(url + path, next(iter(paths[path])).upper()) != 401)))


main(*sys.argv[1:])
