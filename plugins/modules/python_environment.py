#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python environment of an inference engine, one for each version, switched at one stroke."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_environment
short_description: Build the Python environment of vLLM or PyTorch next to the one in use, test it, and switch
version_added: 0.1.0
description:
  - Has a virtual environment with the declared version of an engine under C(ROOT/ENGINE/VERSION-CUDA-HASH) and the link
    C(ROOT/ENGINE/current) pointing to it. The environment that was in use is kept, named by the link C(previous);
    declaring its version again switches back without building anything. Older ones are removed, but for those that a
    unit under C(/etc/systemd/system) names.
  - The wheel is chosen from a table by the CUDA that it is built with, the GPUs that it has kernels for, the host's
    NVIDIA driver, GPUs, interpreter, processor and glibc. One that does not run on the host is rejected before anything
    is installed; the error lists the numbers and the newest version that would run. CUDA 13 needs driver 580, CUDA 12
    driver 525, CUDA 11 driver 450.80.02, or newer (NVIDIA's minor-version compatibility).
  - Minor-version compatibility does not cover PTX, which vLLM's wheels contain. A vLLM that is built for the CUDA of
    the driver, or for an older one, is therefore preferred. If the declared version is only built for a newer one, the
    module warns. Driver 570 is for CUDA 12.8, 575 for 12.9, 580 for 13.0.
  - If NVIDIA's package cuda-compat is installed under C(/usr/local/cuda-*/compat), wheels for its CUDA run, too
    (forward compatibility, on data centre GPUs only). An environment that needs it has a link C(cuda-compat) to it. It
    is tested with it, and M(gpufleet.inference.vllm_service) and M(gpufleet.inference.torchrun_job) add it to
    E(LD_LIBRARY_PATH).
  - A new environment is tested before the switch. The engine is imported, and a small tensor is multiplied on a GPU of
    this host, or on the CPU with O(cuda=cpu). Open WebUI is only imported; it has no PyTorch.
  - A build that fails or does not pass leaves nothing behind, and the environment in use as it was. The next run
    removes what a killed one has left, even if it has nothing else to do. While another run builds, this one waits.
  - Packages are trusted as root is. The installer runs as root, a source distribution is built as root, and the test
    imports the packages as root. Name only indexes that you trust with the host, or O(wheels).
  - Only root may be able to write into O(root) and the folders above it, as root runs programs there. If others can,
    the module fails before it runs anything. Without C(become), the same holds for the user that runs the module.
  - The environment is known by a hash of what is asked for. If it already exists, only one file is read; neither
    pip nor the network is asked.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
requirements:
  - uv, or the venv module of the interpreter (Debian's C(python3-venv))
options:
  engine:
    description: What the environment is for. Each engine has environments of its own.
    type: str
    choices: [vllm, torch, open_webui]
    required: true
  version:
    description:
      - Version of the engine. Left out, it is the newest of the table that runs on the host. A newer table or driver
        then changes what is declared.
    type: str
  cuda:
    description:
      - CUDA that the wheel is built with, such as V(13.0) or V(cu129), or V(cpu). Left out, it is that of the version's
        package on PyPI if it suits the driver, and otherwise the newest that does; V(cpu) is never chosen
        automatically.
    type: str
  interpreter:
    description: The Python that the environment is made of. A path, a name such as V(python3.12), or a version.
    type: str
    default: python3
  package:
    description:
      - The engine's package in place of the table's, as pip takes it (V(vllm==0.28.0+local), a path on the host, a
        URL). A O(version) that the table does not know needs this and O(cuda).
      - A password in a URL, here and in O(packages) and O(constraints), appears in no process list, and the module
        masks it in its result and its record.
    type: str
  packages:
    description:
      - Further packages, such as V(modelscope). One that the table has for this version, too, takes its place.
    type: list
    elements: str
    default: []
  without:
    description:
      - Names of packages that the engine's own package asks for and that are left out. The table leaves out some, too.
    type: list
    elements: str
    default: []
  constraints:
    description: Versions that other packages must have, as in a constraints file of pip.
    type: list
    elements: str
    default: []
  index_url:
    description:
      - Package index in place of the host's own and of those of the table. It is not part of what makes an environment
        another one.
      - With a user and password it stands in no process list, log or message.
    type: str
  extra_index_urls:
    description: Package indexes in place of those of the table, in addition to the host's own or O(index_url).
    type: list
    elements: str
    default: []
  wheels:
    description:
      - Directory with the wheels of everything, for hosts that reach no index. No index is asked then.
      - It lies on the controller, and is sent only to hosts that have to build; or on the host with O(remote_src).
      - C(pip download -d DIRECTORY PACKAGES) fills one on a machine with the same Python and processor.
    type: str
  remote_src:
    description: Whether O(wheels) lies on the host.
    type: bool
    default: false
  installer:
    description: V(auto) is uv where it is installed, and pip where not.
    type: str
    choices: [auto, uv, pip]
    default: auto
  build_timeout:
    description: Seconds within which each step of a build must end, and for which another run is waited for.
    type: int
    default: 3600
  root:
    description: Folder for the environments of all engines.
    type: path
    default: /opt/gpufleet
seealso:
  - module: gpufleet.inference.gpu_facts
"""

EXAMPLES = r"""
- name: Have the newest PyTorch that the driver of each host runs
  gpufleet.inference.python_environment:
    engine: torch
  become: true

- name: Pin it, and take the wheels from the controller
  gpufleet.inference.python_environment:
    engine: torch
    version: 2.13.0
    cuda: cu130
    interpreter: "3.12"
    constraints: ["numpy<3"]
    wheels: /srv/wheels/torch-2.13.0
  become: true

- name: A build of one's own
  gpufleet.inference.python_environment:
    engine: vllm
    version: 0.28.0+house
    cuda: cu129
    package: vllm==0.28.0+house
    extra_index_urls: ["https://wheels.example.com/simple"]
  become: true
"""

RETURN = r"""
msg:
  description: What was done, in one line; on a failure what was found, and the last lines that the installer printed.
  returned: always
  type: str
  sample: built and switched to torch 2.13.0 (cu130)
path:
  description: The environment, by its own name. A unit that names it is not touched by a later switch.
  returned: success
  type: str
  sample: /opt/gpufleet/torch/2.13.0-cu130-5d41402abc4b
python:
  description: Its interpreter.
  returned: success
  type: str
  sample: /opt/gpufleet/torch/2.13.0-cu130-5d41402abc4b/bin/python
version:
  description: Version of the engine.
  returned: success
  type: str
  sample: 2.13.0
cuda:
  description: What it is built with.
  returned: success
  type: str
  sample: cu130
device:
  description: On which device it was tested.
  returned: success, none in check mode when it is not built yet
  type: str
  sample: NVIDIA H200
packages:
  description: The installed packages, name to version, as they were right after the build.
  returned: success, empty in check mode when it is not built yet
  type: dict
  sample: {torch: 2.13.0, numpy: 2.4.6}
previous:
  description: Name of the environment that was in use before, none when there was none.
  returned: success
  type: str
  sample: 2.12.1-cu130-7d793037a076
pruned:
  description: Names of what was removed, older environments and the remains of killed runs.
  returned: success
  type: list
  elements: str
  sample: []
compat:
  description: Folder of the cuda-compat libraries that it needs with this driver.
  returned: success
  type: str
  sample: /usr/local/cuda-13.0/compat
diff:
  description: The environment in use before and after.
  returned: success
  type: dict
needs:
  description: The folder of wheels on the controller that this host needs. Nothing was changed.
  returned: when O(wheels) is not on the host and an environment must be built
  type: list
  elements: str
  sample: [files/wheels]
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return dict(
        engine=dict(type="str", choices=["vllm", "torch", "open_webui"], required=True),
        version=dict(type="str"),
        cuda=dict(type="str"),
        interpreter=dict(type="str", default="python3"),
        package=dict(type="str"),
        packages=dict(type="list", elements="str", default=[]),
        without=dict(type="list", elements="str", default=[]),
        constraints=dict(type="list", elements="str", default=[]),
        index_url=dict(type="str", no_log=True),
        extra_index_urls=dict(type="list", elements="str", default=[], no_log=True),
        wheels=dict(type="str"),
        remote_src=dict(type="bool", default=False),
        installer=dict(type="str", choices=["auto", "uv", "pip"], default="auto"),
        build_timeout=dict(type="int", default=3600),
        root=dict(type="path", default="/opt/gpufleet"),
    )


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.python_env import step

    run(argument_spec(), step.converge)


if __name__ == "__main__":
    main()
