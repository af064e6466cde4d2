# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a service: one row each, and the rows that all engines share. Pure.

An engine's table is its ``options.py``. The argument spec is built from it at run time; documentation, role argument
specs, role tasks, role defaults and README tables are written from it by ``make generate``. Only module files and the
generator import a table, so that its prose is neither sent to a host that is only checked nor compiled there.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple


class Option(NamedTuple):
    name: str
    type: str
    description: str
    """Paragraphs in Ansible's markup, separated by empty lines; line breaks and indentation do not count."""
    default: Any = None
    """None: the option has no default, and an option that is left out is not declared."""
    choices: Sequence[str] = ()
    elements: Optional[str] = None
    required: bool = False
    no_log: Optional[bool] = None
    """Where the name looks like that of a secret: whether it is one."""
    per_host: bool = False
    """Whether it is the same for all instances of a host; an instance may override any other option."""
    suboptions: Tuple["Option", ...] = ()
    only: str = ""
    """``module``: the role sets it itself. ``role``: the role turns it into other options. Empty: both have it."""


VARIABLES = (
    Option("environment", "dict", "Further variables of its process, merged over O(environment)."),
    Option(
        "secret_environment",
        "dict",
        "Further secret variables of its process, merged over O(secret_environment).",
        no_log=True,
    ),
)
"""What each instance has."""

COMMON = (
    Option(
        "name",
        "str",
        """Name of the unit, with or without C(.service). With O(instances), the name of the template: each instance is
        C(NAME@INSTANCE.service).""",
        per_host=True,
    ),
    Option(
        "state",
        "str",
        """V(present) configures the service, enables it and starts it.

        V(absent) stops the service, disables it and removes its files. Its program, user and models stay.

        V(stopped) drains the service, stops it and disables it, for example for work on the host. All else of it stays,
        as it is. Load balancers send it no requests until V(present) has started and verified it again.""",
        choices=("present", "stopped", "absent"),
        default="present",
        per_host=True,
    ),
    Option("enabled", "bool", "Whether the service starts at boot.", default=True),
    Option(
        "ready_unit",
        "bool",
        """Whether there is a unit C(NAME-ready.service), or C(NAME-ready@INSTANCE.service), that waits until the
        service answers requests. Units with C(Wants=) and C(After=) of it start when the service can be used, however
        long it takes to load a model.""",
        default=False,
    ),
    Option(
        "timeout",
        "int",
        """Seconds within which the service must be up and verified, including the time to load a model.

        A service that dies is noticed at once.""",
    ),
    Option(
        "instances",
        "list",
        """Several services on this host. Each is an instance, C(NAME@INSTANCE.service), of the template
        C(NAME@.service), which is created if it does not exist. For C(NAME.service) itself see O(main).

        An instance takes the options that it leaves out from those next to this one. Its C(environment) is
        merged over O(environment), and its C(secret_environment) over O(secret_environment).

        All instances are checked before the first one is changed. Two that claim the same GPU or port are rejected; the
        error names both.""",
        default=[],
        elements="dict",
        suboptions=(
            Option("name", "str", "Name of the instance: letters, digits, C(_) and C(.).", required=True),
            Option(
                "state",
                "str",
                """V(absent) stops and disables the instance and removes its files. Models stay. V(stopped) stops and
                disables it, and keeps its files. Left out, it is that of O(state).""",
                choices=("present", "stopped", "absent"),
            ),
            *VARIABLES,
        ),
        per_host=True,
    ),
    Option(
        "main",
        "str",
        """What happens to C(NAME.service) itself when there are O(instances).

        V(kept) leaves it alone. V(disabled) stops it before the first instance starts, and disables it and removes its
        drop-in once all instances are verified. If one fails, C(NAME.service) is started again.""",
        choices=("kept", "disabled"),
        default="kept",
        per_host=True,
    ),
    Option(
        "visible_devices",
        "raw",
        """The GPUs of the service, passed to it as E(CUDA_VISIBLE_DEVICES).

        V(all) for all healthy ones, a list of indexes, UUIDs or PCI bus ids, or a policy. A policy is a dictionary with
        any of the keys C(count), C(min_memory_gib), C(min_free_memory_gib), C(model) (a regular expression searched in
        the GPU's name), C(healthy) (default true) and C(exclude_display).

        V(all) leaves out a GPU that is lost or has memory errors, and the result says so. One that is only slowed down
        stays. The first run after the repair uses the GPU again.

        A GPU that does not exist is rejected before anything is changed, and so is a policy that selects no GPU.""",
    ),
    Option(
        "share_gpus",
        "bool",
        """Whether other services of this collection may use the same GPUs. They must set this too. Otherwise a service
        that claims one of these GPUs is rejected before anything is changed; the error names both services. Without
        O(visible_devices), all GPUs are claimed.

        The claim is stored in the service's own drop-in. It counts while the unit exists and is running or enabled.""",
        default=False,
    ),
    Option(
        "isolate",
        "bool",
        """Let the kernel deny the service every GPU except those in O(visible_devices), which must be set
        (C(DeviceAllow=) for their device nodes).

        The service then sees no other GPU, so the indexes of its own start at 0 inside it.""",
        default=False,
    ),
    Option(
        "sandbox",
        "bool",
        """Run the service in a systemd sandbox in which it can still use its GPUs.

        It can write only to its user's home and to the directories for its models. It cannot see C(/home), C(/root),
        C(/tmp) and C(/var/tmp), so nothing that it needs may be there; otherwise it is rejected.""",
        default=False,
    ),
    Option(
        "allow_unauthenticated",
        "bool",
        "Whether the service may listen, without authentication, on an address that other hosts can reach.",
        default=False,
    ),
    Option(
        "clients",
        "list",
        """Addresses or networks that alone exchange packets with the service (C(IPAddressAllow=)), such as those of the
        gateways. The service may then listen, without authentication, on an address that other hosts can reach.

        It must listen on one IPv4 address of the host. The verification tests that another address is kept out; it
        fails if the kernel cannot filter the packets of a unit.

        The service itself cannot reach other addresses either. List the registry from which Ollama pulls, and the other
        hosts of a vLLM that spans several.""",
        default=[],
        elements="str",
    ),
    Option(
        "drain_timeout",
        "float",
        """Seconds that running and waiting requests get to finish before the process is stopped. Those that are still
        running then are cut, with a warning. V(0) skips the drain altogether: gateways are not notified, and
        O(drain_command) is not run.

        On a host with M(gpufleet.inference.gateway_agent), all gateways first send new requests elsewhere; they send
        requests again once the service is verified.""",
        default=120.0,
    ),
    Option(
        "drain_command",
        "list",
        """Command and arguments that take the service out of another load balancer before it is stopped. It is run on
        the host as root, without a shell, with the name of the unit in E(GPUFLEET_UNIT), and must end within 60
        seconds. If it fails, nothing is stopped.""",
        default=[],
        elements="str",
    ),
    Option(
        "undrain_command",
        "list",
        """Command and arguments that put the service back after O(drain_command), once it is verified or was rolled
        back. If it fails, so does the run, and the next one tries again.""",
        default=[],
        elements="str",
    ),
    Option("environment", "dict", "Further variables of the process.", default={}),
    Option(
        "secret_environment",
        "dict",
        """Further variables of the process that hold secrets, such as E(AWS_SECRET_ACCESS_KEY). They are passed from a
        file that only root can read. O(environment) rejects a variable with the name of a secret, and a URL with a
        password.""",
        default={},
        no_log=True,
    ),
    Option(
        "generation",
        "str",
        """Earlier accepted configuration to take the service back to: its number, or a time in UTC such as
        V(2026-11-30T08:00Z) for the one that was in force then. M(gpufleet.inference.generations_info) lists them.

        Its options replace those declared here, except secrets, the drain, and with O(instances) the release. The
        change is verified, and rolled back if it fails, like any other.

        The service stays there while this is set. Without it, the declared options apply again.""",
    ),
    Option(
        "fingerprints",
        "list",
        """Prompts that show whether the model still answers as before. When a change is verified, the model answers
        each of them with 16 tokens at temperature 0. The tokens and their log probabilities are recorded on the host,
        where only root can read them. They are compared after each later change of the service, and whenever a run
        makes every model answer. If they differ by more than the answers of one process do, the verdict is
        V(wrong_answers), and the change is rolled back.

        The engine must report log probabilities with C(/v1/chat/completions). If it does not, the run warns, and
        nothing is compared.""",
        default=[],
        elements="str",
    ),
    Option(
        "new_answers",
        "bool",
        """Whether this change is meant to change the answers, for example by another model or quantisation under the
        same name. The answers to O(fingerprints) are then recorded again instead of compared.""",
        default=False,
        only="module",
        per_host=True,
    ),
    Option(
        "prove",
        "str",
        """When the model of a service has to answer a request.

        With V(change), after a change. With V(now), also if nothing changes, even in check mode: the model is loaded if
        necessary, and nothing is restarted. The task fails if the model does not answer.""",
        choices=("change", "now"),
        default="change",
        only="module",
        per_host=True,
    ),
    Option("facts_timeout", "float", "Seconds that reading the GPUs may take.", default=10.0, per_host=True),
)
"""What every engine has."""


ONE_MODEL = (
    Option(
        "timeout",
        "int",
        """Seconds within which the service must be up and verified, including the time to load its model. Left out, it
        grows with the size of the model, by one second per 100 MB.

        A service that dies is noticed at once, one that stalls after O(stall_timeout).""",
    ),
    Option(
        "model_paths",
        "dict",
        """Paths of models by name. A model that is named here is served from its path, under that name unless another
        is set.""",
        default={},
        only="module",
        per_host=True,
    ),
    Option(
        "stall_timeout",
        "float",
        "Seconds without a new line in the journal and without more GPU memory after which a start has stalled.",
        default=300.0,
    ),
    Option(
        "token_timeout",
        "float",
        "Seconds that the token, embedding, score or class of the verification may take.",
        default=120.0,
        no_log=False,
    ),
    Option(
        "release_timeout",
        "float",
        "Seconds to wait after a stop until the GPU memory of the previous processes is free.",
        default=60.0,
    ),
)
"""What every engine has whose service is one model."""


def table(*own: Option, without: Sequence[str] = (), **defaults: Any) -> Tuple[Option, ...]:
    """The options of an engine: the common ones, then its own.

    :param own: a row with the name of a common option replaces it in its place.
    :param without: names of common options that it does not have.
    :param defaults: defaults of common options, by name.
    """
    replaced = {row.name: row for row in own}
    rows = [replaced.pop(row.name, row) for row in COMMON if row.name not in without]
    rows += [row for row in own if row.name in replaced]
    rows = [row._replace(default=defaults.get(row.name, row.default)) for row in rows]
    return tuple(
        row._replace(suboptions=_of_instance(row.suboptions, rows)) if row.name == "instances" else row for row in rows
    )


def _of_instance(given: Tuple[Option, ...], rows: Sequence[Option]) -> Tuple[Option, ...]:
    """``given`` and a row for each option that an instance may override; those have no default."""
    names = {row.name for row in given}
    return given + tuple(
        row._replace(description="Overrides O(%s) for this instance." % row.name, default=None)
        for row in rows
        if not row.per_host and row.name not in names
    )


def argument_spec(rows: Sequence[Option]) -> Dict[str, Dict[str, Any]]:
    """The rows as ``AnsibleModule`` wants them."""
    return {row.name: _argument(row) for row in rows if row.only != "role"}


def _argument(row: Option) -> Dict[str, Any]:
    found: Dict[str, Any] = {"type": row.type}
    if row.elements:
        found["elements"] = row.elements
    if row.choices:
        found["choices"] = list(row.choices)
    if row.default is not None:
        found["default"] = row.default
    if row.required:
        found["required"] = True
    if row.no_log is not None:
        found["no_log"] = row.no_log
    if row.suboptions:
        found["options"] = argument_spec(row.suboptions)
    return found
