# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts answer differently from the others that serve the same model."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

DOCUMENTATION = r"""
name: differing_answers
short_description: The services whose recorded answers differ from those of other hosts
version_added: 0.2.0
author:
  - The gpufleet developers (@gpufleet)
description:
  - Compares services of one engine that serve the same model and were asked the same prompts. What most of them answer
    counts as right.
options:
  _input:
    description: For each host, the RV(gpufleet.inference.fingerprints_info#module:fingerprints) of it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Print whose answers differ
  ansible.builtin.debug:
    msg: "{{ {'gpu1': first.fingerprints, 'gpu2': second.fingerprints} | gpufleet.inference.differing_answers }}"
"""

RETURN = r"""
_value:
  description: A sentence for each service whose answers differ.
  type: list
  elements: str
"""

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.fingerprint import Recorded, apart
from ansible_collections.gpufleet.inference.plugins.module_utils.serving.fingerprint import recorded_in
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.text import one_line

LONGEST = 1000  # characters of a sentence


def differing_answers(hosts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> List[str]:
    """See DOCUMENTATION."""
    groups: Dict[Tuple[str, ...], Dict[str, Recorded]] = {}
    try:
        for host, units in hosts.items():
            for unit, found in units.items():
                recorded, name = recorded_in(found), unit.partition(".service")[0]
                if recorded:
                    key = (name.partition("@")[0], recorded.model, *recorded.prompts)
                    groups.setdefault(key, {})["%s %s" % (host, name)] = recorded
    except AttributeError:
        raise AnsibleFilterError(
            "differing_answers: expected a dictionary of hosts to what gpufleet.inference.fingerprints_info returns"
        ) from None
    return [one_line("%s: %s" % (name, said), LONGEST) for own in groups.values() for name, said in apart(own).items()]


class FilterModule:
    """The filter under its name."""

    def filters(self) -> Dict[str, Any]:
        return {"differing_answers": differing_answers}
