#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of one Ollama server: in the store, made from files, in the memory of the GPUs, or not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_model
short_description: Pull, create, copy, load and remove models of an Ollama server
version_added: 0.1.0
description:
  - Brings a list of models to their declared states, in the order of the list, in one call. It ends at the first model
    that cannot reach its state; those before it are in their declared states, and the others are not touched.
  - Models are compared by digest. A model that is already present is not downloaded.
  - Only one run at a time pulls to a server; others wait for it, and say so at the terminal.
  - Before a model is loaded, its need of memory is estimated for each GPU from the header of its file. One that does
    not fit on what the GPUs have free is refused, with the figures, as Ollama would run the rest on the CPU in silence.
  - After a load NVML must show the memory. It is also checked without a load, as a server keeps listing a model
    whose worker is dead; such a model is loaded again.
  - Talks to the server's API on the host itself. Where it listens, where its models lie and which GPUs it may use are
    read from the running process of the unit.
  - A server at O(host) that is not the one of unit O(name) is used as it is. Then its own settings do not count in the
    estimate, and NVML is not asked for its worker.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
  - gpufleet.inference.ollama_server
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.ollama]
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  models:
    description:
      - The models.
      - A name alone stands for a dictionary with nothing but O(models[].name).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - Name as Ollama writes it, C([host/][namespace/]model[:tag]).
          - With C(http://) before it, it is pulled from a registry without TLS.
        type: str
        required: true
      state:
        description:
          - V(present) has the model in the store. It is pulled, unless O(models[].from_file), O(models[].modelfile) or
            O(models[].copy_of) names its source.
          - V(loaded) is in the store and in memory.
          - V(unloaded) is not in memory. A model that is not in the store is not pulled for this.
          - V(absent) removes it, out of memory too.
        type: str
        choices: [present, absent, loaded, unloaded]
        default: present
      digest:
        description:
          - The digest that the model must have, as C(ollama list) shows it, 12 to 64 hexadecimal digits.
          - A model in the store with another one is pulled again. What the registry offers under another digest is
            refused, before it is downloaded where the registry can be asked.
        type: str
      from_file:
        description:
          - A GGUF file on the host, by its absolute path, to create the model from.
          - The server rewrites the file, so its store does not show what a model was created from. A small file under
            C(/var/lib/gpufleet/models) remembers the SHA-256 of the source and the digest of the model that came out of
            it. While both fit, nothing is created. The source is read only when its size or time has changed.
        type: path
      modelfile:
        description:
          - Content of a Modelfile to create the model from. C(FROM) names the absolute path of a GGUF file on the host,
            or a model of the store. C(ADAPTER) is not supported.
          - Remembered as O(models[].from_file).
        type: str
      copy_of:
        description: A model of the store that this one is a copy of. Takes no space, as both share their files.
        type: str
      keep_alive:
        description:
          - How long it stays loaded after its last request, as V(30m), a number of seconds, or V(-1) for indefinitely.
            Left out, the server's own value.
          - A model that is loaded stays as it is, except where V(-1) is declared and the server would unload it.
        type: str
      options:
        description:
          - Options of the request that loads it, such as C(num_ctx).
          - A model that is loaded with another C(num_ctx) is loaded again.
        type: dict
  update:
    description:
      - Ask the registry whether it has another version of a model that is in the store, and pull it then.
      - When the registry cannot be asked, the model stays as it is, with a warning.
    type: bool
    default: false
  registry_mirror:
    description:
      - A registry, as C([http://]HOST[:PORT]), that has the models of Ollama's own registry under the same names. They
        are pulled from there and nowhere else, and keep their names.
      - A model whose name begins with another registry's host is pulled from that one.
    type: str
  insecure:
    description:
      - Accept any certificate of the registry, and plain HTTP where the name or O(registry_mirror) begins with
        C(http://).
    type: bool
    default: false
  seeds:
    description:
      - Hosts that offer models over the network, as the module M(gpufleet.inference.model_seed) returns them. What
        they have is pulled from them, and from the registry only where that does not work, with a warning.
      - The server checks every file against the digest that is named here.
    type: list
    elements: dict
    suboptions:
      url:
        description: Where the host offers them.
        type: str
        required: true
      token:
        description: The token of that host.
        type: str
        required: true
      models:
        description: Digests by the names of the models.
        type: dict
        required: true
  defer_downloads:
    description:
      - If a model must be pulled, change nothing and return its name in RV(needs). Has no effect when nothing must be
        pulled, and in check mode.
    type: bool
    default: false
  fit:
    description:
      - What happens to a model that, by estimate, does not fit on the GPUs, or of which a part is on the CPU after the
        load.
      - V(refuse) ends the run, before the load if the estimate predicts it. V(warn) loads it with a warning. V(ignore)
        neither estimates nor looks.
    type: str
    choices: [refuse, warn, ignore]
    default: refuse
  free_space_margin:
    description:
      - Space to leave free on the disk of the store, in bytes or as a size such as V(2GiB) or V(2Gi) (powers of 1024),
        V(2GB) or V(2G) (powers of 1000). A pull or a file that needs more is refused.
    type: str
    default: 2GiB
  stall_timeout:
    description:
      - Seconds after which a pull that gets no new byte fails. The server itself would retry indefinitely.
      - What was downloaded is kept, and the next run resumes it.
    type: int
    default: 120
  timeout:
    description: Seconds that a load, an upload or the check after a download may be silent.
    type: int
    default: 600
  progress:
    description:
      - Show at the terminal how far a pull is, while it runs.
      - It then runs in the background on the host and is asked every few seconds. Without anything to pull there is one
        call and no background.
    type: bool
    default: true
  progress_file:
    description:
      - File on the host in which the progress of a pull is kept while it runs. The action plugin sets it.
    type: str
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
notes:
  - The API knows no authentication, and neither does this module.
  - The proxy for pulls is the server's own, see O(gpufleet.inference.ollama_service#module:https_proxy).
seealso:
  - module: gpufleet.inference.ollama_info
  - module: gpufleet.inference.model_seed
  - module: gpufleet.inference.ollama_service
  - module: gpufleet.inference.gpu_facts
"""

EXAMPLES = r"""
- name: One model always in memory, one in the store, one removed
  gpufleet.inference.ollama_model:
    models:
      - name: llama3.3:70b
        state: loaded
        keep_alive: "-1"
        options:
          num_ctx: 16384
      - name: nomic-embed-text
      - name: llama2:7b
        state: absent

- name: A model of our own, under two names
  gpufleet.inference.ollama_model:
    models:
      - name: house
        modelfile: |
          FROM /srv/models/house-8b-q4_k_m.gguf
          PARAMETER num_ctx 8192
          SYSTEM Answer in one sentence.
      - name: chat:stable
        copy_of: house

- name: From a registry in the house, of which every byte is known
  gpufleet.inference.ollama_model:
    models:
      - name: registry.example.com/team/house:v3
        digest: 66908c11b735143ffc35aac958316b8762165113b9543a5a996f58e0f989ec63
    stall_timeout: 60

- name: Two of Ollama's own, out of a mirror in the house
  gpufleet.inference.ollama_model:
    models:
      - llama3.3:70b
      - nomic-embed-text
    registry_mirror: mirror.example.com
"""

RETURN = r"""
msg:
  description: What was done in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: llama3.3:70b pulled and loaded; 2 unchanged
models:
  description: Each declared model, up to the one that failed.
  returned: when the server was reached
  type: list
  elements: dict
  contains:
    name:
      description: As declared.
      returned: always
      type: str
    state:
      description: As declared.
      returned: always
      type: str
    changed:
      description: Whether something was done, or would be.
      returned: always
      type: bool
    actions:
      description: What was done, or would be.
      returned: always
      type: list
      elements: str
      sample: [pulled, loaded]
    reason:
      description: Why it was loaded.
      returned: when it was loaded, or would be
      type: str
      sample: is not loaded
    pulled_from:
      description: The registry, or the host that seeded it.
      returned: when it was pulled, or would be
      type: str
      sample: registry.ollama.ai
    digest:
      description: Digest of the model in the store; null when it is not there.
      returned: always
      type: str
    size_bytes:
      description: Size in the store; null when it is not there.
      returned: always
      type: int
    loaded:
      description: Whether the server names it as loaded.
      returned: always
      type: bool
    estimate:
      description: What it was expected to take before it was loaded.
      returned: when it was loaded, or would be, on a host with GPUs
      type: dict
      contains:
        fits:
          description: Whether all of it finds room on the GPUs.
          returned: always
          type: bool
        spread:
          description: Whether it lies on all GPUs of the server, or on one.
          returned: always
          type: bool
        context:
          description: Tokens of context of one request.
          returned: always
          type: int
        parallel:
          description: Requests at a time; each has its own context.
          returned: always
          type: int
        cache_bytes:
          description: What the context costs, on all GPUs.
          returned: always
          type: int
        buffer_bytes:
          description: Weights, context and compute buffers on all GPUs, what Ollama calls C(size_vram).
          returned: always
          type: int
        held_bytes:
          description: The same with the CUDA contexts, what NVML will show.
          returned: always
          type: int
        missing_bytes:
          description: What the fullest GPU lacks, the reserve of 1 GiB that llama.cpp leaves included.
          returned: always
          type: int
        gpus:
          description: The share of each GPU, with its index, layers, and bytes of weights, cache, compute and all.
          returned: always
          type: list
          elements: dict
    reported:
      description: The server's own words, C(size_bytes), C(size_vram_bytes), C(context), C(expires_at).
      returned: when it is loaded and declared so
      type: dict
    held_bytes:
      description: Memory that its worker holds by NVML, in bytes by index of the GPU.
      returned: when it is loaded and declared so
      type: dict
      sample: {"0": 12513705984, "1": 11962155008}
    estimate_ratio:
      description: What NVML shows, divided by the estimate.
      returned: when it was loaded on GPUs
      type: float
      sample: 1.0
unit:
  description: Unit of the server.
  returned: when the server was reached
  type: str
  sample: ollama.service
needs:
  description:
    - The models that must be pulled, each with C(@sha256:) and its digest where one is declared. Nothing was changed,
      and RV(models) lists the other declared models that are present.
  returned: with O(defer_downloads), when a model must be pulled
  type: list
  elements: str
  sample: [llama3.3:70b]
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        models=dict(
            type="list",
            elements="dict",
            required=True,
            options=dict(
                name=dict(type="str", required=True),
                state=dict(type="str", choices=["present", "absent", "loaded", "unloaded"], default="present"),
                digest=dict(type="str"),
                from_file=dict(type="path"),
                modelfile=dict(type="str"),
                copy_of=dict(type="str"),
                keep_alive=dict(type="str", no_log=False),
                options=dict(type="dict"),
            ),
        ),
        name=dict(type="str", default="ollama"),
        host=dict(type="str"),
        update=dict(type="bool", default=False),
        registry_mirror=dict(type="str"),
        insecure=dict(type="bool", default=False),
        seeds=dict(
            type="list",
            elements="dict",
            options=dict(
                url=dict(type="str", required=True),
                token=dict(type="str", required=True, no_log=True),
                models=dict(type="dict", required=True),
            ),
        ),
        defer_downloads=dict(type="bool", default=False),
        fit=dict(type="str", choices=["refuse", "warn", "ignore"], default="refuse"),
        free_space_margin=dict(type="str", default="2GiB"),
        stall_timeout=dict(type="int", default=120),
        timeout=dict(type="int", default=600),
        progress=dict(type="bool", default=True),
        progress_file=dict(type="str"),
        facts_timeout=dict(type="float", default=10.0),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import models

    run(argument_spec(), models.converge)


if __name__ == "__main__":
    main()
