# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known to go wrong with a job on this host before any of it is started."""

from __future__ import annotations

import os
import pwd
from typing import Any, List

from ..toolbox.errors import Refused
from .command import Job, dashed

SOURCE = 1 << 18
"""Bytes read of torchrun's source."""


def without_effect(job: Job) -> List[str]:
    """Declared variables that nothing reads."""
    from .variables import meant

    names = sorted({*job.params["environment"], *job.params["secret_environment"]})
    return [
        "environment: neither NCCL, Gloo nor PyTorch reads %s: leave it out, or use %s" % (name, meant(name))
        for name in names
        if meant(name)
    ]


def unusable(system: Any, job: Job, due: bool) -> List[str]:
    """What this host lacks for the job, to be asked before a running process is touched.

    :param due: whether the job is to start.
    """
    wrong, params, root = [], job.params, system.root
    python = params["venv"] + "/bin/python"
    if not os.access(root + python, os.X_OK):
        wrong.append("there is no %s: install the environment first, or correct venv" % python)
    if params["script"] and not os.path.isfile(root + params["script"]):
        wrong.append("there is no script %s on this host: copy it there first" % params["script"])
    folder = params["working_directory"]
    if folder and not os.path.isdir(root + folder):
        wrong.append("there is no working_directory %s" % folder)
    try:
        pwd.getpwnam(params["user"])
    except KeyError:
        wrong.append("there is no user %s on this host" % params["user"])
    else:
        wrong += _bad_log_dir(system, job) + _bad_options(root, job) if due else []
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wrong += _bad_interfaces(system, job, name)
    return wrong


def _bad_options(root: str, job: Job) -> List[str]:
    """Options that the torchrun of this environment does not know, by its source, or cannot carry out here."""
    from ..toolbox.files import read_regular
    from .network import site_packages

    names, wrong = [dashed(name) for name in job.params["options"]], []
    for packages in site_packages(root + job.params["venv"])[:1] if names else []:
        try:
            text = (read_regular(packages + "/torch/distributed/run.py", SOURCE) or b"").decode("utf-8", "replace")
        except OSError:  # an environment of a user, with links in it
            continue
        unknown = [name for name in names if text and '"--%s"' % name not in text]
        wrong += ["options: the torchrun of %s has no option %s" % (job.params["venv"], name) for name in unknown]
    if "numa-binding" in names and not job.node["gpus"]:
        wrong.append("options: numa-binding: the job uses no GPU on this host whose CPUs it could be bound to")
    elif "numa-binding" in names:
        path = job.environment["PATH"][0].split(":")
        if not any(os.access("%s%s/numactl" % (root, folder), os.X_OK) for folder in path):
            wrong.append(
                "options: numa-binding: torchrun calls numactl, which is not in PATH: install the package numactl"
            )
    return wrong


def claimed(system: Any, job: Job) -> List[str]:
    """Which service, or other job, has the GPUs of this one."""
    from ..placement.claims import check

    try:
        check([job.claim], system, label=job.gpu)
    except Refused as conflict:
        return [str(conflict)]
    return []


def _bad_log_dir(system: Any, job: Job) -> List[str]:
    """Why root must not make the folder for the logs, or give it to the job's user."""
    from ..toolbox import files
    from ..toolbox.trusted import trusted

    path, user = job.log_dir, job.params["user"]
    try:
        with files.folder(system.root + path) as descriptor:
            owner = os.fstat(descriptor).st_uid
        if owner == pwd.getpwnam(user).pw_uid or trusted(system.root + os.path.dirname(path)):
            return []
        return [
            "log_dir: %s belongs to user %d, and is in a folder that others than root may write into: "
            "give it to %s, or declare another folder" % (path, owner, user)
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        return ["log_dir: %s: %s" % (path, error.strerror)]


def code_of_others(system: Any, job: Job) -> List[str]:
    """What a job of root, which is the default, runs though somebody else can change it at any time."""
    if pwd.getpwnam(job.params["user"]).pw_uid != 0:
        return []
    from ..toolbox.trusted import intruder

    params = job.params
    run = [("%s as root", params["script"]), ("%s as root", params["venv"] and params["venv"] + "/bin/python")]
    run.append(("as root in %s", params["working_directory"]))  # where Python looks for modules first
    return [
        "the job runs %s, but %s: declare another user" % (how % path, who)
        for how, path in run
        if path
        for who in filter(None, [intruder(system.root + path)])
    ]


def _bad_interfaces(system: Any, job: Job, name: str) -> List[str]:
    """Interfaces that a declared variable names and that are not there."""
    value = job.environment.get(name, ("", ""))[0]
    there = system.names("/sys/class/net")
    if not there or value.startswith("^"):
        return []
    exact = value.startswith("=") or name.startswith("GLOO")
    wanted = [part for part in value.lstrip("=").split(",") if part]
    missing = [part for part in wanted if not any(one == part if exact else one.startswith(part) for one in there)]
    if not missing or (len(missing) < len(wanted) and not exact):
        return []
    text = "%s=%s: this host has no interface %s; there are: %s"
    return [text % (name, value, ", ".join(missing), ", ".join(sorted(there)))]
