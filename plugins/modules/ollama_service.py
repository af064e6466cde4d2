#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One Ollama service: installed, configured, proven on its GPUs, or put back as it was."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_service
short_description: Configure an Ollama service and prove it on the GPUs
version_added: 0.1.0
description:
  - Installs Ollama when O(archive) is given, brings its environment to the declared values through a drop-in of the
    unit, restarts it only when an effective value changed, and proves the result on the running process.
  - Ollama never refuses a value. What it cannot read it replaces by a default, mostly in silence, and with a wrong
    E(CUDA_VISIBLE_DEVICES) it serves on the CPU. So every value is checked by the server's own rules before anything
    is touched; afterwards the server's own start log must show the declared values and the declared GPUs.
  - With O(prove_model), one token is generated after a change, and NVML must name the unit's own processes on the
    declared GPUs.
  - When the proof fails, the former state is put back, the service runs as before, and the message says what was
    found, what was expected and what to do.
  - A service that is as declared, but serves on the CPU or on other GPUs, or names a model whose worker is dead, is
    mended and proven. It is restarted, or has the model loaded anew by a token. Check mode tells which.
  - The vendor's unit file is never edited, and C(override.conf), the file of C(systemctl edit), is never written.
    A drop-in that overrides ours is named in RV(shadowed).
  - An option that is left out is not declared. Then the unit's own value holds, or Ollama's default.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  name:
    description: Name of the unit, with or without C(.service). V(ollama@second) is an instance of C(ollama@.service).
    type: str
    default: ollama
  state:
    description:
      - V(present) brings the service to the declared state, enabled and running.
      - V(absent) removes this collection's drop-in of the unit and restarts the service with what is left. Nothing is
        uninstalled.
      - V(uninstalled) takes away all that this collection has installed. Where upstream's files or somebody's unit were
        there before, the service goes on with these. Else it is stopped, and unit, releases and user are removed.
        Models stay, and the user that owns them, unless O(remove_models) says otherwise.
    type: str
    choices: [present, absent, uninstalled]
    default: present
  remove_models:
    description: Whether V(uninstalled) as O(state) removes the models of the service's store, too.
    type: bool
    default: false
  enabled:
    description: Whether the service starts at boot.
    type: bool
    default: true
  timeout:
    description:
      - Seconds within which the service must be up and proven, loading O(prove_model) included.
      - A service that dies is noticed at once and not waited for.
    type: int
    default: 180
  visible_devices: &visible_devices
    description:
      - The GPUs of the service, given to it as E(CUDA_VISIBLE_DEVICES).
      - V(all), a list of indexes, UUIDs or PCI bus ids, or a policy, a dictionary with some of the keys C(count),
        C(min_memory_gib), C(min_free_memory_gib), C(model) (regular expression searched in the GPU's name), C(healthy)
        (default true) and C(exclude_display).
      - A GPU that does not exist is refused before anything is touched. So are an unhealthy one under V(all), and a
        policy that selects nothing.
    type: raw
  share_gpus:
    description:
      - Whether other services of this collection may use the same GPUs, if they share them as well. Else a service that
        claims one of them is refused, with both names, before anything is touched. Without O(visible_devices) all GPUs
        are claimed.
      - A claim lies in the service's own drop-in. It counts as long as the unit is there, and running or enabled.
    type: bool
    default: false
  isolate:
    description:
      - Have the kernel refuse the service every GPU but those of O(visible_devices) (C(DeviceAllow=) on their device
        nodes).
      - The GPUs are then given by UUID, as indexes would count otherwise inside.
    type: bool
    default: false
  sandbox:
    description:
      - Run the service in a sandbox in which it still reaches its GPUs. By C(systemd-analyze security) its exposure is
        then 1.6 at most; that of the unit which upstream installs is 9.2.
      - It then writes to its user's home and to O(models_dir) alone. Neither may lie under C(/home), C(/root), C(/tmp)
        or C(/var/tmp), which it does not see.
    type: bool
    default: false
  sched_spread: &sched_spread
    description: Spread every model over all visible GPUs (E(OLLAMA_SCHED_SPREAD)), also one that fits a single GPU.
    type: bool
  keep_alive: &keep_alive
    description:
      - How long a model stays loaded after its last request (E(OLLAMA_KEEP_ALIVE)). A duration such as V(30m) or
        V(1h30m), a number of seconds, V(-1) for ever, V(0) to unload at once. A request's own value wins.
      - There is no unit for days, V(1d) is refused.
    type: str
  num_parallel: &num_parallel
    description: Requests that one model serves at a time (E(OLLAMA_NUM_PARALLEL)). Multiplies the context's memory.
    type: int
  max_loaded_models: &max_loaded_models
    description: Models loaded at a time (E(OLLAMA_MAX_LOADED_MODELS)). V(0) means three for each GPU.
    type: int
  max_queue: &max_queue
    description: Requests that may wait before the server answers 503 (E(OLLAMA_MAX_QUEUE)).
    type: int
  context_length: &context_length
    description:
      - Tokens of context where a request or model names none (E(OLLAMA_CONTEXT_LENGTH)). V(0) lets Ollama choose by the
        memory of the GPUs.
    type: int
  flash_attention: &flash_attention
    description: Flash attention (E(OLLAMA_FLASH_ATTENTION)). Left out, Ollama chooses for each model.
    type: bool
  kv_cache_type: &kv_cache_type
    description: Type of the context's cache (E(OLLAMA_KV_CACHE_TYPE)). The quantised ones need flash attention.
    type: str
    choices: [f16, q8_0, q4_0, f32, bf16, q4_1, iq4_nl, q5_0, q5_1]
  gpu_overhead: &gpu_overhead
    description:
      - Memory of each GPU that Ollama leaves alone (E(OLLAMA_GPU_OVERHEAD)), as V(512MiB), V(1.5GB), or bytes.
      - Since Ollama 0.30 it no longer steers where GGUF models go; use O(fit_target) there.
    type: str
  fit_target: &fit_target
    description:
      - Memory of each GPU that llama.cpp keeps free (E(LLAMA_ARG_FIT_TARGET)), as V(2GiB), or a number of MiB. Since
        Ollama 0.30.
    type: str
  fit: &fit
    description: Whether llama.cpp adapts what is not set to the free memory (E(LLAMA_ARG_FIT)). Since Ollama 0.30.
    type: bool
  load_timeout: &load_timeout
    description: How long the loading of a model may stall (E(OLLAMA_LOAD_TIMEOUT)), written as O(keep_alive).
    type: str
  llm_library: &llm_library
    description:
      - Folder under C(lib/ollama) to use instead of what Ollama detects (E(OLLAMA_LLM_LIBRARY)), such as V(cuda_v13).
        One that does not exist is refused, as Ollama would serve on the CPU.
    type: str
  igpu_enable: &igpu_enable
    description: Use integrated GPUs (E(OLLAMA_IGPU_ENABLE)).
    type: bool
  vulkan: &vulkan
    description: Use Vulkan where there is no better library (E(OLLAMA_VULKAN)).
    type: bool
  host: &host
    description:
      - Where the server listens (E(OLLAMA_HOST)), as C(ADDRESS), C(ADDRESS:PORT), C(:PORT), IPv6 in brackets. Ollama's
        default is V(127.0.0.1:11434).
      - The API knows no authentication. An address that others reach is refused, unless O(allow_unauthenticated).
      - A port that another service of this collection claims, or on which another process listens, is refused.
    type: str
  allow_unauthenticated:
    description:
      - Whether O(host) may be an address that others reach, where anybody may then use, pull and delete models.
    type: bool
    default: false
  origins: &origins
    description: Origins that browsers may call from, beside those of localhost (E(OLLAMA_ORIGINS)).
    type: list
    elements: str
  models_dir: &models_dir
    description:
      - Where models are stored (E(OLLAMA_MODELS)). Created for the service's user if it does not exist. If the user may
        not use it, the run stops before anything is changed; the error names the first folder or file in the way and
        the command that helps. Where this collection creates the user, a folder that root has prepared is given to it,
        if it is empty or a store in which everything belongs to root.
    type: path
  models_dir_change:
    description:
      - What to do when another store was in force until now, with models that the new one does not have.
      - V(refuse) stops before anything is changed, and lists what the server would no longer see.
      - >-
        V(move) moves them, with the rights of the service's user: what this user may not read or remove stops the run.
        On one file system that takes no time and no space. On another one they are copied and their digests compared,
        which needs room for both. The old store stays whole until the service is proven on the new one. If the run is
        killed, the next one resumes; if that declares another store, or the previous one, it removes what was copied.
      - V(leave) leaves them where they are.
    type: str
    choices: [refuse, move, leave]
    default: refuse
  noprune: &noprune
    description: Keep blobs that no model uses (E(OLLAMA_NOPRUNE)).
    type: bool
  no_cloud: &no_cloud
    description:
      - Neither call ollama.com nor offer its models (E(OLLAMA_NO_CLOUD)). Left out, it is set as well, where no other
        file of the unit sets it, but a server older than 0.16.2, which does not know it, is accepted.
      - With V(false) the variable is not declared.
    type: bool
  remotes: &remotes
    description: Hosts from which remote models may be used (E(OLLAMA_REMOTES)).
    type: list
    elements: str
  max_transfer_streams: &max_transfer_streams
    description: Parallel transfers of a pull or push of safetensors models (E(OLLAMA_MAX_TRANSFER_STREAMS)).
    type: int
  auth: &auth
    description: Sign requests between Ollama's client and server (E(OLLAMA_AUTH)). This protects nothing from others.
    type: bool
  go_template: &go_template
    description: Use a model's own template (E(OLLAMA_GO_TEMPLATE)).
    type: bool
  log_level: &log_level
    description: How much the server logs (E(OLLAMA_DEBUG)).
    type: str
    choices: [info, debug, trace]
  debug_log_requests: &debug_log_requests
    description: Write the bodies of requests to a temporary folder (E(OLLAMA_DEBUG_LOG_REQUESTS)), private ones too.
    type: bool
  https_proxy: &https_proxy
    description:
      - Proxy for pulls (E(HTTPS_PROXY)). One with a password is refused, as Ollama writes the URL into its log.
    type: str
  no_proxy: &no_proxy
    description: Hosts that are reached without the proxy (E(NO_PROXY)).
    type: str
  environment:
    description:
      - Further variables of the process. Values that Ollama reads are checked as their options are; for a name that
        Ollama does not know but that is close to one it does, there is a warning.
    type: dict
    default: {}
  prove_model: &prove_model
    description:
      - A model of the store that must answer. After a change it is loaded and generates one token, and NVML must name
        the unit's processes on the declared GPUs, on all of them with O(sched_spread).
      - Without a change nothing is loaded; the model is looked at only while it is loaded.
    type: str
  prove_fit:
    description:
      - What happens when O(prove_model), by the header of its file and the free memory of the GPUs, would not fit with
        what is declared. V(refuse) ends the run before anything is touched, V(warn) tries it, V(ignore) does not
        estimate.
    type: str
    choices: [refuse, warn, ignore]
    default: refuse
  uneven_spread:
    description:
      - What happens when O(prove_model) is spread (O(sched_spread)), but one GPU got less than two thirds of what
        another one got, relative to their sizes, because other processes hold memory there. The message lists the
        memory on each GPU and the processes that hold it.
      - V(fail) is a failed proof, with the verdict V(uneven_spread); a change is rolled back. V(warn) keeps the change
        and prints a warning.
    type: str
    choices: [fail, warn]
    default: fail
  version:
    description:
      - The release to install, such as V(0.32.15), for the architecture of the host. The server must say afterwards
        that it is this version.
      - Left out, together with O(archive), Ollama must be installed already.
      - A release is unpacked beside the one in use, under C(lib/gpufleet) of O(prefix), and taken by two links, so the
        service is down no longer than a restart takes. The former release stays for the way back. The user and the
        unit are made as upstream's C(install.sh) makes them, where there are none.
      - A C(.tar.zst), which releases are since 0.14.0, needs the program C(zstd) on the host.
    type: str
  mirror:
    description:
      - Where releases are, in the layout of the official ones, C(MIRROR/vVERSION/ollama-linux-amd64.tar.zst). An URL,
        or a folder on the controller, whose files are sent only to hosts that do not have this release.
      - The default is V(https://github.com/ollama/ollama/releases/download).
    type: str
  archive:
    description:
      - A release to install, instead of one from O(mirror). A file on the controller, a file on the host with
        O(remote_src), or an URL; C(.tar.zst) or C(.tgz).
      - The file is sent only to hosts that do not have this release.
    type: str
  addons:
    description:
      - Archives that are laid over the release, such as V(rocm), V(jetpack5) or V(jetpack6). A word is an add-on of
        the O(mirror); a path or an URL is taken as O(archive) is.
    type: list
    elements: str
    default: []
  archive_checksum:
    description:
      - SHA-256 of the archive, as V(sha256:HEX). Required for whatever comes by an URL; C(sha256sum.txt) of a release
        lists it. With add-ons, or hosts of several architectures, a dictionary, file name to checksum.
      - V(unverified), for all or for one file, does without. What one address gave is then never fetched again.
        Over plain http this is warned of.
      - For a file on the controller, C(sha256sum.txt) beside it is read, as releases have it; without one the file is
        hashed at each run. A file on the host is hashed at each run too.
    type: raw
  remote_src:
    description: Whether O(archive) and O(addons) lie on the host.
    type: bool
    default: false
  prefix:
    description:
      - Where Ollama is installed, C(bin/ollama) and C(lib/ollama) below it. Nobody but root may write there.
    type: path
    default: /usr/local
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
  instances:
    description:
      - Several services on this host, each an instance C(NAME@INSTANCE.service) of the template C(NAME@.service), which
        is made where there is none. C(NAME.service) itself is then left alone.
      - What an instance leaves out is as the options beside this one say. Its O(instances[].environment) is laid over
        O(environment).
      - All are checked before the first one is touched. Two that claim the same GPU or port are refused, with both
        names.
      - Instances with the same models' directory keep blobs that no model uses (O(noprune)), as one server would remove
        what another one is just pulling.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the instance, letters, digits, C(_) and C(.).
        type: str
        required: true
      state:
        description: V(absent) stops and disables the instance, and removes its drop-in. Models are kept.
        type: str
        choices: [present, absent]
      enabled:
        description: Whether it starts at boot.
        type: bool
      timeout:
        description: Seconds within which it must be up and proven.
        type: int
      environment:
        description: Further variables of its process.
        type: dict
      share_gpus:
        description: Whether others may use its GPUs.
        type: bool
      isolate:
        description: Have the kernel refuse it every GPU but its own.
        type: bool
      sandbox:
        description: Run it in the sandbox.
        type: bool
      allow_unauthenticated:
        description: Whether it may listen where others reach it.
        type: bool
      models_dir_change:
        description: What to do when its models were elsewhere until now.
        type: str
        choices: [refuse, move, leave]
      visible_devices: *visible_devices
      sched_spread: *sched_spread
      keep_alive: *keep_alive
      num_parallel: *num_parallel
      max_loaded_models: *max_loaded_models
      max_queue: *max_queue
      context_length: *context_length
      flash_attention: *flash_attention
      kv_cache_type: *kv_cache_type
      gpu_overhead: *gpu_overhead
      fit_target: *fit_target
      fit: *fit
      load_timeout: *load_timeout
      llm_library: *llm_library
      igpu_enable: *igpu_enable
      vulkan: *vulkan
      host: *host
      origins: *origins
      models_dir: *models_dir
      noprune: *noprune
      no_cloud: *no_cloud
      remotes: *remotes
      max_transfer_streams: *max_transfer_streams
      auth: *auth
      go_template: *go_template
      log_level: *log_level
      debug_log_requests: *debug_log_requests
      https_proxy: *https_proxy
      no_proxy: *no_proxy
      prove_model: *prove_model
      prove_fit:
        description: See O(prove_fit).
        type: str
        choices: [refuse, warn, ignore]
      uneven_spread:
        description: See O(uneven_spread).
        type: str
        choices: [fail, warn]
seealso:
  - module: gpufleet.inference.gpu_facts
  - module: gpufleet.inference.systemd_override
"""

EXAMPLES = r"""
- name: Serve on all four GPUs, every model spread over them and loaded for ever
  gpufleet.inference.ollama_service:
    visible_devices: all
    sched_spread: true
    keep_alive: "-1"

- name: Install a release, and prove it with a model that is in the store
  gpufleet.inference.ollama_service:
    version: 0.32.15
    archive_checksum:
      ollama-linux-amd64.tar.zst: sha256:0000000000000000000000000000000000000000000000000000000000000000
      ollama-linux-arm64.tar.zst: sha256:0000000000000000000000000000000000000000000000000000000000000000
    visible_devices: all
    prove_model: llama3.3:70b

- name: Two instances, each alone with its GPUs
  gpufleet.inference.ollama_service:
    isolate: true
    sandbox: true
    keep_alive: "-1"
    instances:
      - {name: chat, visible_devices: [0, 1], host: "127.0.0.1:11434", sched_spread: true}
      - {name: code, visible_devices: [2, 3], host: "127.0.0.1:11440", models_dir: /srv/code/models}

- name: Two healthy GPUs of at least 40 GiB, none that drives a display
  gpufleet.inference.ollama_service:
    visible_devices:
      count: 2
      min_memory_gib: 40
      exclude_display: true
    num_parallel: 4
    environment:
      LLAMA_ARG_THREADS: "16"
"""

RETURN = r"""
msg:
  description: The outcome in one line, or what failed, what was expected and what to do.
  returned: always
  type: str
  sample: ok · 4× H200 · CUDA_VISIBLE_DEVICES=0,1,2,3 spread · m70b on 4 GPUs · restart 1.9 s
verdict:
  description:
    - What the proof found. V(ok), or one of V(crash_loop), V(not_ready), V(wrong_version), V(unproven), V(misread),
      V(cpu_fallback), V(wrong_gpu), V(model_missing), V(load_failed), V(stalled), V(partial_offload), V(vram_missing),
      V(spread_missing), V(uneven_spread), or what the M(gpufleet.inference.systemd_override) module names.
  returned: when anything was looked at
  type: str
  sample: ok
evidence:
  description: The figures behind the verdict, and the last lines of the journal.
  returned: when anything was looked at
  type: dict
restarted:
  description: Whether the service was restarted, or would be.
  returned: when anything was looked at
  type: bool
reasons:
  description: Why the service was restarted, or its model loaded anew.
  returned: when anything was looked at
  type: list
  elements: str
  sample: ["the value in force changes: OLLAMA_KEEP_ALIVE"]
reloaded:
  description: Whether systemd read its units anew, or would.
  returned: when anything was looked at
  type: bool
rolled_back:
  description: Whether the former state was put back.
  returned: when anything was looked at
  type: bool
unavailable_ms:
  description: Milliseconds from the stop of the service until it was proven, or the former one was back.
  returned: when anything was looked at
  type: int
  sample: 1900
environment:
  description: The declared variables as the running process has them.
  returned: when anything was looked at
  type: dict
  sample: {CUDA_VISIBLE_DEVICES: "0,1,2,3", OLLAMA_KEEP_ALIVE: "-1", OLLAMA_SCHED_SPREAD: "1"}
drift:
  description: Variables whose declared value, value on disk and value in the running process differed, with the three.
  returned: when anything was looked at
  type: dict
  sample: {OLLAMA_KEEP_ALIVE: {declared: "-1", on_disk: null, running: null}}
shadowed:
  description: Declared values that another file overrides, with the file and line.
  returned: when anything was looked at
  type: list
  elements: dict
unit_state:
  description: State of the unit, in the words of systemd.
  returned: when anything was looked at
  type: dict
visible_devices:
  description: The value of E(CUDA_VISIBLE_DEVICES), null when no GPUs are declared.
  returned: success
  type: str
  sample: 0,1,2,3
gpus:
  description: The declared GPUs, or all of the host when none are.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Index, as NVML counts.
      returned: always
      type: int
    uuid:
      description: UUID.
      returned: always
      type: str
    name:
      description: Model.
      returned: always
      type: str
    pci_bus_id:
      description: PCI bus id in the form of sysfs.
      returned: always
      type: str
    held_bytes:
      description: Memory that the unit's own processes hold there.
      returned: always
      type: int
estimate:
  description:
    - What O(prove_model) was expected to take before anything was changed, as
      RV(gpufleet.inference.ollama_model#module:models[].estimate) has it.
  returned: when O(prove_model) is given, something changed, and the host has GPUs
  type: dict
ratio:
  description: What NVML shows of the service on the GPUs after the change, divided by the estimate.
  returned: with RV(estimate), outside of check mode
  type: float
  sample: 1.0
version:
  description: Version of the server that answered, null in check mode when there is something to change.
  returned: success
  type: str
  sample: 0.32.15
instances:
  description: The result of each service by the name of its unit, as described here. RV(msg) has one part for each.
  returned: success, with O(instances)
  type: dict
needs:
  description:
    - The archives of the release, which is not on the host; nothing was touched. The action plugin then sends those
      that lie on the controller.
  returned: when an archive lies on the controller and the host needs it
  type: list
  elements: str
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import service, settings, store
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run

OF_ONE = [
    "enabled",
    "timeout",
    "visible_devices",
    "share_gpus",
    "isolate",
    "sandbox",
    "allow_unauthenticated",
    "models_dir_change",
    "environment",
    "prove_model",
    "prove_fit",
    "uneven_spread",
]
"""Options that each instance may have for itself, besides what is a variable of the process."""


def argument_spec():
    spec = _one_service()
    names = [*OF_ONE, *(entry.option for entry in settings.SETTINGS)]
    instance = {name: dict(spec[name], default=None) for name in names}
    instance.update(name=dict(type="str", required=True), state=dict(type="str", choices=["present", "absent"]))
    return dict(spec, instances=dict(type="list", elements="dict", default=[], options=instance))


def _one_service():
    return dict(
        name=dict(type="str", default="ollama"),
        state=dict(type="str", choices=["present", "absent", "uninstalled"], default="present"),
        remove_models=dict(type="bool", default=False),
        enabled=dict(type="bool", default=True),
        timeout=dict(type="int", default=180),
        visible_devices=dict(type="raw"),
        share_gpus=dict(type="bool", default=False),
        isolate=dict(type="bool", default=False),
        sandbox=dict(type="bool", default=False),
        sched_spread=dict(type="bool"),
        keep_alive=dict(type="str", no_log=False),
        num_parallel=dict(type="int"),
        max_loaded_models=dict(type="int"),
        max_queue=dict(type="int"),
        context_length=dict(type="int"),
        flash_attention=dict(type="bool"),
        kv_cache_type=dict(type="str", choices=list(settings.KV_CACHE_TYPES)),
        gpu_overhead=dict(type="str"),
        fit_target=dict(type="str"),
        fit=dict(type="bool"),
        load_timeout=dict(type="str"),
        llm_library=dict(type="str"),
        igpu_enable=dict(type="bool"),
        vulkan=dict(type="bool"),
        host=dict(type="str"),
        allow_unauthenticated=dict(type="bool", default=False),
        origins=dict(type="list", elements="str"),
        models_dir=dict(type="path"),
        models_dir_change=dict(type="str", choices=list(store.CHANGES), default="refuse"),
        noprune=dict(type="bool"),
        no_cloud=dict(type="bool"),
        remotes=dict(type="list", elements="str"),
        max_transfer_streams=dict(type="int"),
        auth=dict(type="bool"),
        go_template=dict(type="bool"),
        log_level=dict(type="str", choices=list(settings.LOG_LEVELS)),
        debug_log_requests=dict(type="bool"),
        https_proxy=dict(type="str"),
        no_proxy=dict(type="str"),
        environment=dict(type="dict", default={}),
        prove_model=dict(type="str"),
        prove_fit=dict(type="str", choices=["refuse", "warn", "ignore"], default="refuse"),
        uneven_spread=dict(type="str", choices=["fail", "warn"], default="fail"),
        version=dict(type="str"),
        mirror=dict(type="str"),
        archive=dict(type="str"),
        addons=dict(type="list", elements="str", default=[]),
        archive_checksum=dict(type="raw"),
        remote_src=dict(type="bool", default=False),
        prefix=dict(type="path", default="/usr/local"),
        facts_timeout=dict(type="float", default=10.0),
    )


def main():
    run(argument_spec(), service.bring)


if __name__ == "__main__":
    main()
