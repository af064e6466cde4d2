# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be true of the repository as a whole: nothing undocumented, untested, or tied to one machine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))

# REUSE-IgnoreStart: this is not the licence of this file
LICENCE = [
    "# Copyright: (c) The gpufleet developers",
    "# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "# SPDX-License-Identifier: GPL-3.0-or-later",
]
# REUSE-IgnoreEnd

# Hosts that a file may name in a URL: our own home, standards, the makers' documentation, the makers' own places of
# wheels and models, and names for examples.
URL_HOSTS = re.compile(
    r"^(github\.com|www\.w3\.org|galaxy\.ansible\.com|docs\.ansible\.com|forum\.ansible\.com|www\.gnu\.org|docs\.nvidia\.com"
    r"|git-lfs\.github\.com|(download\.)?pytorch\.org|wheels\.vllm\.ai|huggingface\.co|modelscope\.cn"
    r"|ollama\.com|semver\.org|localhost|127\.0\.0\.1|0\.0\.0\.0|\[.*"
    r"|([a-z0-9-]+\.)*example(\.[a-z]+)?|[a-z0-9-]+|10(\.\d+){3}|192\.168(\.\d+){2}|192\.0\.2\.\d+|.*[<{%$(].*)$"
)
# Folders that exist on one person's or one service's machine only.
MACHINE_PATHS = re.compile(r"(?<![\w.~*])/(work|home/(?!(fleet|alice)\b)[a-z]\w+|opt/wheels|Users)/[\w.]")


def tracked() -> List[Path]:
    """All files of the repository, new ones too."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """Content of a text file, nothing of a binary one."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8")


def load(path: Path) -> Dict:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


@pytest.mark.parametrize("module", MODULES)
def test_module_is_complete(module: str) -> None:
    """A module has unit tests, is tried on the lab, stands in the action group and in the README."""
    assert (ROOT / "tests/unit/plugins/modules" / ("test_%s.py" % module)).is_file()
    assert any(module in path.read_text(encoding="utf-8") for path in (ROOT / "tests/fleet").glob("test_*.py"))
    assert module in load(ROOT / "meta/runtime.yml")["action_groups"]["all"]
    assert module in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_documents_its_action_groups(module: str) -> None:
    """`attributes.action_group` of its documentation names the groups of meta/runtime.yml that it is in, and no others."""
    plugins = ROOT / "plugins"
    tree = ast.parse((plugins / "modules" / ("%s.py" % module)).read_text(encoding="utf-8"))
    texts = [
        node.value.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "DOCUMENTATION"
    ]
    attributes = yaml.safe_load(texts[0]).get("attributes", {})
    documented = attributes.get("action_group", {}).get("membership", ["gpufleet.inference.all"])
    groups = load(ROOT / "meta/runtime.yml")["action_groups"]
    assert documented == ["gpufleet.inference." + name for name in sorted(groups) if module in groups[name]]


def test_action_groups_name_modules_only() -> None:
    groups = load(ROOT / "meta/runtime.yml")["action_groups"]
    assert groups["all"] == MODULES
    assert {module for group in groups.values() for module in group} == set(MODULES)
    assert [name for name, group in groups.items() if group != sorted(group)] == []


def test_the_declared_versions_of_ansible_core_are_tested() -> None:
    """The lowest one is that of .venv-floor, the newest one that of .venv-next, and CI runs each step on all."""
    declared = load(ROOT / "meta/runtime.yml")["requires_ansible"]
    (lowest,) = re.findall(r">=(\d+\.\d+)\.0", declared)
    tested = (ROOT / ".ci/deps").read_text(encoding="utf-8")
    (first,) = re.findall(r"^FLOOR_CORE=(\d+\.\d+)\.", tested, re.MULTILINE)
    (newest,) = re.findall(r"^NEXT_CORE=2\.(\d+)", tested, re.MULTILINE)
    cores = load(ROOT / ".github/workflows/ci.yml")["jobs"]["cores"]
    assert not [step for step in cores["steps"] if "if" in step]
    matrix = cores["strategy"]["matrix"]["include"]
    assert first == lowest
    assert [one["core"] for one in matrix] == ["2.%d" % n for n in range(int(lowest[2:]), int(newest) + 1)]
    roles = [load(ROOT / "roles" / role / "meta/main.yml")["galaxy_info"]["min_ansible_version"] for role in ROLES]
    assert set(roles) == {lowest}


def test_the_version_is_in_the_changelog() -> None:
    """Released, or with a summary that waits for its release."""
    released = load(ROOT / "changelogs/changelog.yaml")["releases"]
    waiting = [load(path).get("release_summary") for path in (ROOT / "changelogs/fragments").glob("*.yml")]
    assert load(ROOT / "galaxy.yml")["version"] in released or any(waiting)


@pytest.mark.parametrize("role", ROLES)
def test_role_is_complete(role: str) -> None:
    """A role has a README, a molecule scenario, and defaults that are those of its argument specs."""
    folder = ROOT / "roles" / role
    assert (folder / "README.md").is_file()
    assert (ROOT / "extensions/molecule" / role / "molecule.yml").is_file()
    assert role in (ROOT / "README.md").read_text(encoding="utf-8")
    options = load(folder / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    documented = {name: option["default"] for name, option in options.items() if "default" in option}
    assert load(folder / "defaults/main.yml") == documented
    assert all(name.startswith((role + "_", "gpufleet_")) for name in options), sorted(options)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in options if name not in readme] == []


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_playbook_is_documented(playbook: str) -> None:
    """A playbook can be called by its FQCN (an identifier) and stands in the README."""
    assert playbook.isidentifier()
    assert playbook in (ROOT / "README.md").read_text(encoding="utf-8")


def test_programs_begin_with_the_licence() -> None:
    """What runs names its licence itself; REUSE.toml names that of all other files, and `reuse lint` looks at both."""
    without = []
    for path in tracked():
        lines = text_of(path).splitlines()
        program = lines and (path.suffix in (".py", ".sh") or lines[0].startswith("#!"))
        if program and lines[lines[0].startswith("#!") :][:3] != LICENCE:
            without.append(str(path.relative_to(ROOT)))
    assert without == []


def test_nothing_names_one_machine() -> None:
    """No path of a developer's or a build machine, and no URL of a host that the project does not answer for."""
    found = []
    for path in tracked():
        if path.resolve() in (Path(__file__), ROOT / "LICENSE"):
            continue
        for number, line in enumerate(text_of(path).splitlines(), 1):
            hosts = re.findall(r"https?://(\[[^\]]*\]?|[^\s/\"'`)>\]:,;\\]+)", line)
            wrong = [host for host in hosts if not URL_HOSTS.match(host.rpartition("@")[2])]
            wrong += [found.group() for found in MACHINE_PATHS.finditer(line)]
            if wrong:
                found.append("%s:%d: %s" % (path.relative_to(ROOT), number, wrong))
    assert found == []


def test_links_lead_somewhere() -> None:
    """Every link of a Markdown file to this repository names a file of it. Galaxy shows the README, without the files."""
    broken = []
    ours = r"https://github\.com/gpufleet/inference/(?:blob|tree|raw)/main/([^)#]+)"
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
                if not (path.parent / target).exists() or path == ROOT / "README.md":
                    broken.append("%s: %s" % (path.relative_to(ROOT), target))
            for target in re.findall(ours, path.read_text(encoding="utf-8")):
                if not (ROOT / target).exists():
                    broken.append("%s: %s" % (path.relative_to(ROOT), target))
    assert broken == []


def test_code_in_markdown_is_fenced_with_its_language() -> None:
    wrong = []
    for path in tracked():
        if path.suffix != ".md":
            continue
        fenced, before = False, ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            opens = line.startswith("```") and not fenced
            if line.startswith("```"):
                fenced = not fenced
            if line == "```" and opens or line.startswith("    ") and not fenced and not before:
                wrong.append("%s:%d" % (path.relative_to(ROOT), number))
            before = line
    assert wrong == []


def test_the_tests_that_are_named_exist() -> None:
    """Each test, and file of tests, that docs/security.md names as evidence."""
    code = {path: text_of(path) for path in tracked() if path.name.startswith("test_") and path.suffix == ".py"}
    there = {path.name for path in code} | {
        name for text in code.values() for name in re.findall(r"def (test_\w+)", text)
    }
    named = re.findall(r"`(test_\w+(?:\.py)?)`", (ROOT / "docs/security.md").read_text(encoding="utf-8"))
    assert named and set(named) - there == set()


def test_no_key_is_committed() -> None:
    assert [path for path in tracked() if "PRIVATE KEY-----" in text_of(path) and path != Path(__file__)] == []


@pytest.mark.parametrize("module", ["ollama", "vllm", "llama_server"])
def test_each_verdict_that_holds_for_any_engine_is_documented(module: str) -> None:
    neutral = [ROOT / "plugins/module_utils/serving" / name for name in ("exposure.py", "fingerprint.py")]
    verdicts = {name for path in neutral for name in re.findall(r'Fault\(\s*"(\w+)"', path.read_text())}
    assert verdicts == {"exposed", "wrong_answers"}
    documented = (ROOT / "plugins/modules" / (module + "_service.py")).read_text().partition("RETURN = ")[2]
    assert all("V(%s)" % name in documented for name in verdicts)
