# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which every module starts and ends."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Mapping

from ansible.module_utils.basic import AnsibleModule

from .errors import Failed, Needed, Refused

Work = Callable[[Mapping[str, Any], bool, Callable[[str], None]], Dict[str, Any]]


def run(
    argument_spec: Mapping[str, Any],
    work: Work,
    *,
    secrets: Callable[[Mapping[str, Any]], Iterable[str]] = lambda params: (),
    **more: Any,
) -> None:
    """Run a module's work, and end the process with its result.

    :param work: ``(params, check_mode, warn) -> result``.
    :param secrets: the parts of parameters to mask in all output, where no whole parameter is ``no_log``.
    :param more: passed to ``AnsibleModule``, such as ``required_if``; ``supports_check_mode`` is true by default.
    """
    module = AnsibleModule(argument_spec=dict(argument_spec), **{"supports_check_mode": True, **more})
    module.no_log_values.update(secrets(module.params))
    try:
        result = work(module.params, module.check_mode, module.warn)
    except Needed as needed:
        module.exit_json(changed=False, needs=needed.files, msg="needed on this host first: %s" % needed)
    except Refused as error:
        module.fail_json(changed=False, msg="%s (nothing was changed)" % error)
    except Failed as error:
        told = {key: value for key, value in error.result.items() if value not in ({}, [], "", None)}
        module.fail_json(**dict(told, msg=str(error)))
    module.exit_json(**result)
