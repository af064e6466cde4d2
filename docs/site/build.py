# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the documentation site: README, guides, and the reference that antsibull-docs writes. Any warning is an error.

build.py FOLDER    the pages are in FOLDER/html
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md",
    "docs/*.md",
    "docs/*.svg",
    "docs/*.png",
    "roles/*/README.md",
    "tests/lab/README.md",
]
#: README is read on Galaxy too, so its links are whole URLs; on the site they lead to the site's own pages.
OUR_PAGE = re.compile(
    r"https://github\.com/gpufleet/inference/(?:blob|tree|raw)/main/([\w/-]+\.md|docs/[\w-]+\.(?:svg|png))"
)

SHORTER = [
    (re.compile(r"^\.\. contents::\n(?:   .*\n)*", re.MULTILINE), ""),  # the theme has a table of contents
    (re.compile(r"^gpufleet\.inference\.(?=\w+ (?:module|role|filter|lookup|callback) )", re.MULTILINE), ""),
    (re.compile(r"(module|role|filter|lookup|callback|``main``) -- "), r"\1 – "),
    (re.compile(r"^Gpufleet\.Inference$", re.MULTILINE), "Modules and roles"),
]


def collect(source: Path) -> None:
    """Copy the pages as they lie in the checkout; README, followed by the contents, is the first page."""
    shutil.rmtree(source, ignore_errors=True)
    for path in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
        page = source / path.relative_to(ROOT)
        page.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        if path.suffix != ".png":
            content = OUR_PAGE.sub(r"/\1", content.decode()).encode()
        page.write_bytes(content)
    contents = (SITE / "contents.md").read_text(encoding="utf-8")
    page = source / "README.md"
    page.rename(source / "index.md").open("a", encoding="utf-8").write("\n" + contents)


def describe(reference: Path) -> None:
    """Let antsibull-docs write the pages of modules, roles and plugins; shorten what the theme shows anyway."""
    reference.mkdir(mode=0o755)
    writes = ["antsibull-docs", "--config-file", str(SITE / "antsibull-docs.cfg"), "collection", "--use-current"]
    writes += ["--squash-hierarchy", "--fail-on-error", "--cleanup", "everything", "--dest-dir", str(reference)]
    environment = dict(os.environ, ANSIBLE_COLLECTIONS_PATH=str(ROOT / ".collections"))
    subprocess.run([*writes, "gpufleet.inference"], env=environment, check=True)
    for path in reference.glob("*.rst"):
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in SHORTER:
            text = pattern.sub(replacement, text)
        path.write_text(text, encoding="utf-8")


def main(folder: Path) -> None:
    source = folder / "source"
    collect(source)
    describe(source / "reference")
    sphinx = ["sphinx-build", "--quiet", "--fail-on-warning", "--keep-going", "--conf-dir", str(SITE)]
    subprocess.run([*sphinx, str(source), str(folder / "html")], check=True)
    print("docs: %s" % (folder / "html" / "index.html"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
