# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of Sphinx for the documentation site; build.py collects the pages."""

from __future__ import annotations

import re
from typing import Any, Optional

from docutils import nodes

project = "gpufleet.inference"
html_title = project

extensions = ["myst_parser", "sphinx_antsibull_ext"]
myst_heading_anchors = 4
nitpicky = True
smartquotes = False  # messages are quoted as they are printed
highlight_language = "YAML+Jinja"
pygments_style = "ansible"
pygments_dark_style = "monokai"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_use_index = False
antsibull_ext_color_scheme = "default-autodark"

ANSIBLE = "https://docs.ansible.com/projects/ansible/latest/"
#: Labels of Ansible's documentation. Its index is not fetched, so that the site can be built without a network.
ANSIBLE_PAGES = {
    "action_plugins": "plugins/action.html",
    "callback_plugins": "plugins/callback.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}
MODULE = re.compile(r"ansible_collections\.ansible\.builtin\.(\w+)_module")


def ansible_reference(_app: Any, _env: Any, node: Any, content: Any) -> Optional[nodes.reference]:
    """A link to Ansible's documentation for a label or an environment variable that this site does not define."""
    label = node["reftarget"]
    if node["reftype"] == "envvar":
        return nodes.reference("", "", content, refuri=ANSIBLE + "reference_appendices/config.html", internal=False)
    module = MODULE.fullmatch(label)
    page = "collections/ansible/builtin/%s_module.html" % module[1] if module else ANSIBLE_PAGES.get(label)
    return nodes.reference("", "", content, refuri=ANSIBLE + page, internal=False) if page else None


def setup(app: Any) -> None:
    app.connect("missing-reference", ansible_reference)
