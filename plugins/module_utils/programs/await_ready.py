# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""URL: waits until a server answers there. One that asks for a key answers, one whose model is asleep does not."""

import json
import ssl
import sys
import time
import urllib.error
import urllib.request


def ready(url):
    """Whether it answers now."""
    # its certificate has the name that clients know it by, and the address is this host's
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as answer:
            said = json.loads(answer.read(65536) or b"null")
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except ValueError:
        return True  # its words are no JSON
    except OSError:
        return False
    return not (isinstance(said, dict) and said.get("is_sleeping"))


def main(url):
    while not ready(url):
        # a server says nothing before it answers
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1])
