# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the pictures of docs/report.md, of an invented fleet. Needs chromium and pngquant."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/browser"))

import sample  # noqa: E402  (its folder is not a package)


def shot(browser: Any, page: str, name: str, width: int, height: int, scheme: Any = "light", host: str = "") -> None:
    path = ROOT / "docs" / (name + ".png")
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page)
    tab.wait_for_selector("html[data-ready]")
    if host:
        tab.locator(".strip", has_text=host).click()
    tab.screenshot(path=path)
    context.close()
    subprocess.run(["pngquant", "--force", "--strip", "--speed", "1", "--output", path, "--", path], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        path = Path(folder) / "page.html"
        path.write_text(sample.rendered(24), encoding="utf-8")
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        shot(browser, path.as_uri(), "report", 1200, 1010)
        shot(browser, path.as_uri(), "report-dark", 1200, 1010, "dark")
        shot(browser, path.as_uri(), "report-host", 1000, 900, host="gpu05")
        shot(browser, path.as_uri(), "report-phone", 360, 780)


if __name__ == "__main__":
    main()
