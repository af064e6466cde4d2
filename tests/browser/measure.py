# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the report's page costs a browser: its size, its elements, the time until it can be used, and that of a filter.

measure.py HOSTS
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import sample
from playwright.sync_api import sync_playwright

TURNS = 5
FILTER = """async () => {
  const find = document.getElementById('find'), times = [];
  for (const text of ['gpu1', 'qwen', '', 'm32b gpu4', '']) {
    find.value = text;
    const start = performance.now();
    find.dispatchEvent(new Event('input'));
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    times.push(performance.now() - start);
  }
  return times;
}"""


def main(hosts: int) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        path = Path(folder) / "page.html"
        path.write_text(sample.rendered(hosts), encoding="utf-8")
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        ready, filtered, elements = [], [], 0
        for _turn in range(TURNS):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]")
            ready.append(page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"))
            elements = page.evaluate("document.querySelectorAll('*').length")
            filtered += page.evaluate(FILTER)
            page.close()
        size = path.stat().st_size / 1e6
        print("%d hosts: %.1f MB, %d elements" % (hosts, size, elements))
        for name, found in (("usable after", ready), ("filtered and painted after", filtered)):
            print("%s %.0f ms (%.0f to %.0f)" % (name, statistics.median(found), min(found), max(found)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
