# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make generate`: writes what follows from the option tables of the engines and the argument specs of the roles.

    options.py of an engine  →  documentation of its module; argument specs and first task of its role
    argument specs of a role →  its defaults, and the table in its README
    argument specs of all    →  a JSON schema of group_vars (group_vars_schema.py)
    dashboard.py             →  the dashboard of the role monitoring

Only the lines between the markers are written. A role's own variables stand in its argument specs below the markers.
"""

from __future__ import annotations

import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Union

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / ".collections"), str(ROOT / "tests")]

import dashboard  # noqa: E402
import group_vars_schema  # noqa: E402

from ansible_collections.gpufleet.inference.plugins.module_utils.gateway import options as gateway  # noqa: E402
from ansible_collections.gpufleet.inference.plugins.module_utils.llama_server import options as llama_server  # noqa: E402
from ansible_collections.gpufleet.inference.plugins.module_utils.monitoring import options as monitoring  # noqa: E402
from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import options as ollama  # noqa: E402
from ansible_collections.gpufleet.inference.plugins.module_utils.open_webui import options as open_webui  # noqa: E402
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.options import Option  # noqa: E402
from ansible_collections.gpufleet.inference.plugins.module_utils.vllm import options as vllm  # noqa: E402

ENGINES = {
    "gateway": ("gateway_service", gateway.OPTIONS),
    "llama_server": ("llama_server_service", llama_server.OPTIONS),
    "monitoring": ("monitoring_service", monitoring.OPTIONS),
    "ollama": ("ollama_service", ollama.OPTIONS),
    "open_webui": ("open_webui_service", open_webui.OPTIONS),
    "vllm": ("vllm_service", vllm.OPTIONS),
}
"""Role to its module, and the options of both."""
ROLES = ("gateway", "gpu_host", "llama_server", "monitoring", "ollama", "open_webui", "torchrun", "vllm")

BLOCK = re.compile(
    r"(?P<begin>^(?P<indent> *)(?:#|<!--) begin: written by make generate[^\n]*\n).*?(?P<end>^ *(?:#|<!--) end[^\n]*$)",
    re.MULTILINE | re.DOTALL,
)
WIDTH = 120
SENTENCES = {
    ("bool", None): "A boolean.",
    ("int", None): "A whole number.",
    ("float", None): "A number.",
    ("list", "str"): "A list of texts.",
    ("list", "int"): "A list of whole numbers.",
    ("list", "dict"): "A list of dictionaries.",
    ("list", "raw"): "A list.",
    ("dict", None): "A dictionary.",
}
"""What the description of a role's variable says of its type.

In the argument specs its type is raw: Ansible prints the whole specification of a role where one value is of another
type. The action plugins check the types (``plugin_utils/arguments.py``, ``role.py``).
"""
Block = Callable[[int], str]
"""The lines of a block that may be so many characters wide."""


def generated() -> Dict[Path, str]:
    """Each file with generated lines, and what it must hold."""
    found: Dict[Path, str] = {}
    known: Dict[str, Mapping[str, Any]] = {}

    def fill(name: str, block: Block) -> None:
        found[ROOT / name] = filled(ROOT / name, block)

    for role in ROLES:
        specs = "roles/%s/meta/argument_specs.yml" % role
        if role in ENGINES:
            (module, options), prefix = ENGINES[role], role + "_"
            fill("plugins/modules/%s.py" % module, partial(documentation, options))
            fill("roles/%s/tasks/main.yml" % role, partial(arguments, options, prefix))
            fill(specs, partial(documentation, options, prefix=prefix, nested="options"))
        text = found.get(ROOT / specs) or (ROOT / specs).read_text(encoding="utf-8")
        variables = known[role] = yaml.safe_load(text)["argument_specs"]["main"]["options"]
        fill("roles/%s/defaults/main.yml" % role, partial(defaults, variables))
        fill("roles/%s/README.md" % role, partial(table, variables))
    found[ROOT / "inventories/group_vars.schema.json"] = group_vars_schema.text(known, explained)
    found[ROOT / "roles/monitoring/files/dashboard.json"] = dashboard.text()
    return found


def filled(path: Path, block: Block) -> str:
    """The text of a file with the block between its markers, indented as these are."""
    text = path.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == 1, "%s: expected one pair of markers, found %d" % (
        path,
        len(BLOCK.findall(text)),
    )

    def fill(match: "re.Match[str]") -> str:
        lines = block(WIDTH - len(match["indent"]))
        return match["begin"] + textwrap.indent(lines, match["indent"]) + match["end"]

    return BLOCK.sub(fill, text)


def documentation(options: Sequence[Option], width: int, prefix: str = "", nested: str = "suboptions") -> str:
    """The options of a module, or with a prefix the variables of its role, in Ansible's documentation format."""
    others = "module" if prefix else "role"

    def entry(option: Option, width: int) -> str:
        text = re.sub(r"\bO\((?![^)]*#)", "O(" + prefix, option.description)
        kind = sentence(option) if prefix else ""
        lines = described("%s\n\n%s" % (text, kind) if kind else text, width)
        lines += "type: %s\n" % ("raw" if kind else option.type)
        if option.elements and not kind:
            lines += "elements: %s\n" % option.elements
        if option.choices and not kind:
            lines += "choices: %s\n" % scalar(list(option.choices))
        if option.default is not None:
            lines += "default: %s\n" % scalar(option.default)
        if option.required:
            lines += "required: true\n"
        if prefix and option.no_log:
            lines += "no_log: true\n"
        if option.suboptions:
            lines += "%s:\n" % nested + textwrap.indent(entries(option.suboptions, "", width - 2), "  ")
        return lines

    def entries(options: Sequence[Option], prefix: str, width: int) -> str:
        return "".join(
            "%s%s:\n%s" % (prefix, option.name, textwrap.indent(entry(option, width - 2), "  "))
            for option in options
            if option.only != others
        )

    return entries(options, prefix, width)


def sentence(option: Option) -> str:
    """What its description says of the type of a variable; empty where Ansible takes every value for it."""
    if option.choices:
        return "One of %s." % ", ".join("V(%s)" % choice for choice in option.choices)
    return SENTENCES.get((option.type, option.elements), "")


def described(text: str, width: int) -> str:
    """A description: one paragraph as a text, several as a list."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    if len(paragraphs) == 1 and len("description: " + paragraphs[0]) <= width and is_plain(paragraphs[0]):
        return "description: %s\n" % paragraphs[0]
    items = []
    for paragraph in paragraphs:
        lines = textwrap.wrap(paragraph, width - 4, break_long_words=False, break_on_hyphens=False)
        items += (["  - " + lines.pop(0)] if is_plain(paragraph) else ["  - >-"]) + ["    " + line for line in lines]
    return "\n".join(["description:", *items, ""])


def is_plain(text: str) -> bool:
    """Whether YAML reads a text as this text when it stands there without quotes."""
    try:
        return bool(yaml.safe_load("- %s" % text) == [text])
    except yaml.YAMLError:
        return False


def scalar(value: Any) -> str:
    """A value on one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, sort_keys=False).replace("\n...", "").strip()
    )


def arguments(options: Sequence[Option], prefix: str, width: int) -> str:
    """The options of a module in a task of its role; a variable that is not defined is left out."""
    return "".join(
        '%s: "{{ %s%s%s }}"\n' % (option.name, prefix, option.name, " | default(omit)" * (option.default is None))
        for option in options
        if not option.only
    )


def defaults(variables: Mapping[str, Any], width: int) -> str:
    return "".join("%s: %s\n" % (name, scalar(row["default"])) for name, row in variables.items() if "default" in row)


def table(variables: Mapping[str, Any], width: int) -> str:
    """The variables of a role as a table in Markdown."""
    rows = ["| name | type | default | description |", "| --- | --- | --- | --- |"]
    for name, row in variables.items():
        kind, description = typed(row)
        default = "`%s`" % scalar(row["default"]) if "default" in row else ""
        rows.append("| `%s` | %s | %s | %s |" % (name, kind, default, markdown(description)))
    return "\n".join(rows) + "\n"


def typed(row: Mapping[str, Any]) -> "tuple[str, List[str]]":
    """The type of a variable, and its description without the sentence about it."""
    paragraphs = [row["description"]] if isinstance(row["description"], str) else list(row["description"])
    for (kind, elements), words in SENTENCES.items():
        if paragraphs[-1] == words:
            return (kind if elements in (None, "raw") else "%s of %s" % (kind, elements)), paragraphs[:-1]
    if re.match(r"One of V\(", paragraphs[-1]):
        return ", ".join("`%s`" % choice for choice in re.findall(r"V\(([^)]*)\)", paragraphs[-1])), paragraphs[:-1]
    return row["type"], paragraphs


def markdown(description: Union[str, List[str]]) -> str:
    """A description on one line of Markdown."""
    text = description if isinstance(description, str) else " ".join(description)
    text = re.sub(r"\b[MP]\((?:gpufleet\.inference\.)?(\w+)[^)]*\)", r"`\1`", text)
    text = re.sub(r"\bO\(gpufleet\.inference\.(\w+)#module:([^)]+)\)", r"`\2` of `\1`", text)
    text = re.sub(r"\bO\((\w+)=([^)]+)\)", r"`\1: \2`", text)
    return re.sub(r"\b[CEOV]\(([^)]+)\)", r"`\1`", text).replace("|", "\\|").strip()


def explained(row: Mapping[str, Any]) -> "tuple[str, str]":
    """The type of a variable, and its description in Markdown."""
    kind, description = typed(row)
    return kind, markdown(description).replace("\\|", "|")


def main() -> None:
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print("wrote %s" % path.relative_to(ROOT))


if __name__ == "__main__":
    main()
