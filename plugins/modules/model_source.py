#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One revision of a model in a directory of its own, from a hub, by git, or as it lies there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_source
short_description: Ensure that one revision of a model is in a directory, from a hub, from git, or on the host already
version_added: 0.1.0
description:
  - Puts a model's files into C(ROOT/SOURCE/NAME/COMMIT), where vLLM and others find them without any network. A server
    that is started with that path never downloads, and starts as fast as it can read the weights.
  - Every file is checked against the checksum that the hub lists, while it arrives. The directory appears with one
    rename, once all files are on the disk. The next run resumes an interrupted download. What no run has resumed for a
    week, and what a killed run has left otherwise, is removed by the next run for the same model.
  - The directory of a model, C(ROOT/SOURCE/NAME), belongs to root and only root may write into it. If it does not, the
    module fails. Others may own the folders above it, but a symbolic link that they put there is not followed.
  - Runs that load the same revision of a model wait for each other, for up to an hour.
  - From a git repository only plain files are accepted. A symbolic link is an error. Submodules are not fetched, and no
    hook and no file system monitor runs.
  - A revision that is there costs no network. A branch or tag is looked up once, and again with O(update=true).
  - Before anything is downloaded, the sizes are compared with the free space.
  - Weights in other formats (V(*.bin), V(*.pth), V(*.gguf), C(original/) and so on) are left out where there are
    safetensors, unless O(include) selects the files.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.models]
  check_mode:
    support: full
    details:
      - Asks the hub, and reports sizes and lack of space. With O(source=git) it asks the server for the commit of the
        branch or tag. Whether a commit exists, and how large the files are, only the clone shows.
  diff_mode:
    support: full
requirements:
  - git and git-lfs, with O(source=git)
options:
  name:
    description:
      - C(ORGANISATION/NAME) as the hub writes it. With O(source=git) any such name, for the directory.
      - With O(source=directory) the path of a directory on the host.
    type: str
    required: true
  source:
    description: Where it comes from.
    type: str
    choices: [huggingface, modelscope, git, directory]
    default: huggingface
  revision:
    description:
      - A commit, tag or branch. Only a commit stays the same indefinitely. A hub that answers with another commit is an
        error, except at ModelScope, which does not report commits.
      - Left out, it is V(main) at Hugging Face, V(master) at ModelScope, and the default branch of a git repository.
    type: str
  url:
    description:
      - Another address of the hub, such as a mirror, with C(http://) or C(https://).
      - With O(source=git) what C(git clone) takes. Required there. Protocols are https, http, ssh, git and files.
      - A user and password in an http or https address reach that server alone. The module masks the password in its
        result and in its messages. Ansible itself may show the item of a loop, so O(token) is the better place.
    type: str
  token:
    description:
      - For models that not everybody may read. It is sent to the hub alone, not to where the hub redirects. It appears
        in no process list and in no file. A redirect from https to http is not followed.
      - Git gets it through a credential helper for this run and this server. Other helpers of the host are not asked.
    type: str
  include:
    description: Patterns of the files to download, such as C(*.safetensors). If unset, all.
    type: list
    elements: str
    default: []
  exclude:
    description: Patterns of files to leave out. Not for O(source=git).
    type: list
    elements: str
    default: []
  update:
    description: Ask the hub again what a branch or tag is now. Older revisions stay where they are.
    type: bool
    default: false
  offline:
    description: Do not use the network. A model that is not present is then an error.
    type: bool
    default: false
  defer_downloads:
    description: Only report whether the model is present. A model that is not is named in RV(needs), without an error.
    type: bool
    default: false
  seeds:
    description:
      - Other hosts that offer models by M(gpufleet.inference.model_seed). They are tried before the hub. Every file is
        checked against the SHA-256 that the offering host has reported through Ansible. If none provides the model, the
        hub is used, with a warning.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: As RV(gpufleet.inference.model_seed#module:url) gives it.
        type: str
        required: true
      token:
        description: The token that the other host expects.
        type: str
        required: true
      models:
        description: As RV(gpufleet.inference.model_seed#module:models) gives it.
        type: dict
        required: true
  free_space_margin:
    description:
      - Space to leave free, in bytes or as a size such as V(2GiB) or V(2Gi) (powers of 1024), V(2GB) or V(2G) (powers
        of 1000).
    type: str
    default: 2GiB
  root:
    description: Folder for the models of all sources.
    type: path
    default: /var/lib/gpufleet/models
seealso:
  - module: gpufleet.inference.ollama_model
    description: For models of an Ollama server.
"""

EXAMPLES = r"""
- name: Download a model that not everybody may read
  gpufleet.inference.model_source:
    name: meta-llama/Llama-3.1-8B-Instruct
    revision: 0e9e39f249a16976918f6564b8830bc894c89659
    token: "{{ vault_hf_token }}"
  become: true
  register: llama

- name: Serve it
  ansible.builtin.debug:
    msg: "vllm serve {{ llama.path }}"

- name: From ModelScope
  gpufleet.inference.model_source: {name: Qwen/Qwen3-8B, source: modelscope}
  become: true

- name: From a house's own git server
  gpufleet.inference.model_source:
    name: house/chat-8b
    source: git
    url: https://git.example.com/models/chat-8b.git
    revision: v1.2
  become: true
"""

RETURN = r"""
msg:
  description: What was done, in one line; after a failure, what was found, what was expected, and what to do.
  returned: always
  type: str
  sample: loaded main of Qwen/Qwen3-8B, 11 files, 15.3 GiB
path:
  description: The directory. It exists once all files are in it.
  returned: success
  type: str
  sample: /var/lib/gpufleet/models/huggingface/Qwen/Qwen3-8B/b968826d9c46dd6066d109eabc6255188de91218
needs:
  description: The model, as source, name and revision.
  returned: with O(defer_downloads), when it is not present
  type: list
  elements: str
  sample: [huggingface Qwen/Qwen3-8B main]
commit:
  description:
    - The commit that the revision is. ModelScope does not report one; there it is a hash of the files' checksums.
    - None for a directory.
  returned: success
  type: str
  sample: b968826d9c46dd6066d109eabc6255188de91218
bytes:
  description: Size of what was loaded, or would be in check mode; 0 when it was there.
  returned: success
  type: int
diff:
  description: The directory, when it is new.
  returned: success
  type: dict
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        name=dict(type="str", required=True),
        source=dict(type="str", choices=["huggingface", "modelscope", "git", "directory"], default="huggingface"),
        revision=dict(type="str"),
        url=dict(type="str"),
        token=dict(type="str", no_log=True),
        include=dict(type="list", elements="str", default=[]),
        exclude=dict(type="list", elements="str", default=[]),
        update=dict(type="bool", default=False),
        offline=dict(type="bool", default=False),
        defer_downloads=dict(type="bool", default=False),
        seeds=dict(
            type="list",
            elements="dict",
            default=[],
            no_log=False,
            options=dict(
                url=dict(type="str", required=True),
                token=dict(type="str", required=True, no_log=True),
                models=dict(type="dict", required=True),
            ),
        ),
        free_space_margin=dict(type="str", default="2GiB"),
        root=dict(type="path", default="/var/lib/gpufleet/models"),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import source

    run(argument_spec(), source.converge, secrets=source.secrets)


if __name__ == "__main__":
    main()
