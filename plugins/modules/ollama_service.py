#!/usr/bin/python
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs and configures an Ollama service, verifies it on its GPUs, and rolls back what fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_service
short_description: Configure an Ollama service and verify it on the GPUs
version_added: 0.1.0
description:
  - Configures the environment of an Ollama service through a drop-in of its unit, restarts the service only when an
    effective value changes, and verifies the running process. Installs Ollama if O(version) or O(archive) is set.
  - Ollama never rejects a value. It replaces a value that it cannot read with a default, usually without a message,
    and with a wrong E(CUDA_VISIBLE_DEVICES) it serves on the CPU. So every value is checked by the server's own rules
    before anything is changed, and after a start the server's own log must show the declared values and GPUs.
  - With O(prove_model), one token is generated after a change, and NVML must show the unit's own processes on the
    declared GPUs.
  - If the verification fails, the previous state is restored. The service then runs as before, and the message says
    what was found, what was expected and what to do.
  - A service in the declared state that serves on the CPU or on other GPUs, or whose model has lost its worker, is
    repaired and verified by a restart or by loading the model again. Check mode reports which.
  - The vendor's unit file is never edited, and C(override.conf), the file of C(systemctl edit), is never written. A
    drop-in that overrides a declared value is reported in RV(shadowed).
  - An option that is left out is not declared. The unit's own value applies, or Ollama's default.
author:
  - The gpufleet developers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.inference.attributes
attributes:
  action_group:
    membership: [gpufleet.inference.all, gpufleet.inference.ollama, gpufleet.inference.services]
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  # begin: written by make generate from module_utils/ollama/options.py
  name:
    description:
      - >-
        Name of the unit, with or without C(.service). With O(instances), the name of the template: each instance is
        C(NAME@INSTANCE.service).
    type: str
    default: ollama
  state:
    description:
      - V(present) configures the service, enables it and starts it.
      - V(absent) removes the drop-in of this collection and restarts the service with what is left. Nothing is
        uninstalled.
      - V(stopped) drains the service, stops it and disables it, for example for work on the host. All else of it stays,
        as it is. Load balancers send it no requests until V(present) has started and verified it again.
      - V(uninstalled) removes everything that this collection installed. If upstream's files or a foreign unit were
        there before, they are restored and the service continues with them. Otherwise the service is stopped, and its
        unit, releases and user are removed. Models and the user that owns them stay, unless O(remove_models) is set.
    type: str
    choices: [present, stopped, absent, uninstalled]
    default: present
  enabled:
    description: Whether the service starts at boot.
    type: bool
    default: true
  ready_unit:
    description:
      - Whether there is a unit C(NAME-ready.service), or C(NAME-ready@INSTANCE.service), that waits until the service
        answers requests. Units with C(Wants=) and C(After=) of it start when the service can be used, however long it
        takes to load a model.
    type: bool
    default: false
  timeout:
    description:
      - Seconds within which the service must be up and verified, including the time to load a model.
      - A service that dies is noticed at once.
    type: int
    default: 180
  instances:
    description:
      - Several services on this host. Each is an instance, C(NAME@INSTANCE.service), of the template C(NAME@.service),
        which is created if it does not exist. For C(NAME.service) itself see O(main).
      - An instance takes the options that it leaves out from those next to this one. Its C(environment) is merged over
        O(environment), and its C(secret_environment) over O(secret_environment).
      - All instances are checked before the first one is changed. Two that claim the same GPU or port are rejected; the
        error names both.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - >-
            Name of the instance: letters, digits, C(_) and C(.).
        type: str
        required: true
      state:
        description:
          - V(absent) stops and disables the instance and removes its files. Models stay. V(stopped) stops and disables
            it, and keeps its files. Left out, it is that of O(state).
        type: str
        choices: [present, stopped, absent]
      environment:
        description: Further variables of its process, merged over O(environment).
        type: dict
      secret_environment:
        description: Further secret variables of its process, merged over O(secret_environment).
        type: dict
      enabled:
        description: Overrides O(enabled) for this instance.
        type: bool
      ready_unit:
        description: Overrides O(ready_unit) for this instance.
        type: bool
      timeout:
        description: Overrides O(timeout) for this instance.
        type: int
      visible_devices:
        description: Overrides O(visible_devices) for this instance.
        type: raw
      share_gpus:
        description: Overrides O(share_gpus) for this instance.
        type: bool
      isolate:
        description: Overrides O(isolate) for this instance.
        type: bool
      sandbox:
        description: Overrides O(sandbox) for this instance.
        type: bool
      allow_unauthenticated:
        description: Overrides O(allow_unauthenticated) for this instance.
        type: bool
      clients:
        description: Overrides O(clients) for this instance.
        type: list
        elements: str
      drain_timeout:
        description: Overrides O(drain_timeout) for this instance.
        type: float
      drain_command:
        description: Overrides O(drain_command) for this instance.
        type: list
        elements: str
      undrain_command:
        description: Overrides O(undrain_command) for this instance.
        type: list
        elements: str
      generation:
        description: Overrides O(generation) for this instance.
        type: str
      fingerprints:
        description: Overrides O(fingerprints) for this instance.
        type: list
        elements: str
      host:
        description: Overrides O(host) for this instance.
        type: str
      origins:
        description: Overrides O(origins) for this instance.
        type: list
        elements: str
      sched_spread:
        description: Overrides O(sched_spread) for this instance.
        type: bool
      keep_alive:
        description: Overrides O(keep_alive) for this instance.
        type: str
      num_parallel:
        description: Overrides O(num_parallel) for this instance.
        type: int
      max_loaded_models:
        description: Overrides O(max_loaded_models) for this instance.
        type: int
      max_queue:
        description: Overrides O(max_queue) for this instance.
        type: int
      context_length:
        description: Overrides O(context_length) for this instance.
        type: int
      flash_attention:
        description: Overrides O(flash_attention) for this instance.
        type: bool
      kv_cache_type:
        description: Overrides O(kv_cache_type) for this instance.
        type: str
        choices: [f16, q8_0, q4_0, f32, bf16, q4_1, iq4_nl, q5_0, q5_1]
      gpu_overhead:
        description: Overrides O(gpu_overhead) for this instance.
        type: str
      fit_target:
        description: Overrides O(fit_target) for this instance.
        type: str
      llama_fit:
        description: Overrides O(llama_fit) for this instance.
        type: bool
      load_timeout:
        description: Overrides O(load_timeout) for this instance.
        type: str
      llm_library:
        description: Overrides O(llm_library) for this instance.
        type: str
      igpu_enable:
        description: Overrides O(igpu_enable) for this instance.
        type: bool
      vulkan:
        description: Overrides O(vulkan) for this instance.
        type: bool
      models_dir:
        description: Overrides O(models_dir) for this instance.
        type: path
      models_dir_change:
        description: Overrides O(models_dir_change) for this instance.
        type: str
        choices: [refuse, move, leave]
      noprune:
        description: Overrides O(noprune) for this instance.
        type: bool
      no_cloud:
        description: Overrides O(no_cloud) for this instance.
        type: bool
      remotes:
        description: Overrides O(remotes) for this instance.
        type: list
        elements: str
      max_transfer_streams:
        description: Overrides O(max_transfer_streams) for this instance.
        type: int
      auth:
        description: Overrides O(auth) for this instance.
        type: bool
      go_template:
        description: Overrides O(go_template) for this instance.
        type: bool
      log_level:
        description: Overrides O(log_level) for this instance.
        type: str
        choices: [info, debug, trace]
      debug_log_requests:
        description: Overrides O(debug_log_requests) for this instance.
        type: bool
      https_proxy:
        description: Overrides O(https_proxy) for this instance.
        type: str
      no_proxy:
        description: Overrides O(no_proxy) for this instance.
        type: str
      prove_model:
        description: Overrides O(prove_model) for this instance.
        type: str
      prove_fit:
        description: Overrides O(prove_fit) for this instance.
        type: str
        choices: [refuse, warn, ignore]
      uneven_spread:
        description: Overrides O(uneven_spread) for this instance.
        type: str
        choices: [fail, warn]
  main:
    description:
      - What happens to C(NAME.service) itself when there are O(instances).
      - V(kept) leaves it alone. V(disabled) stops it before the first instance starts, and disables it and removes its
        drop-in once all instances are verified. If one fails, C(NAME.service) is started again.
    type: str
    choices: [kept, disabled]
    default: kept
  visible_devices:
    description:
      - The GPUs of the service, passed to it as E(CUDA_VISIBLE_DEVICES).
      - V(all) for all healthy ones, a list of indexes, UUIDs or PCI bus ids, or a policy. A policy is a dictionary with
        any of the keys C(count), C(min_memory_gib), C(min_free_memory_gib), C(model) (a regular expression searched in
        the GPU's name), C(healthy) (default true) and C(exclude_display).
      - V(all) leaves out a GPU that is lost or has memory errors, and the result says so. One that is only slowed down
        stays. The first run after the repair uses the GPU again.
      - A GPU that does not exist is rejected before anything is changed, and so is a policy that selects no GPU.
    type: raw
  share_gpus:
    description:
      - Whether other services of this collection may use the same GPUs. They must set this too. Otherwise a service
        that claims one of these GPUs is rejected before anything is changed; the error names both services. Without
        O(visible_devices), all GPUs are claimed.
      - The claim is stored in the service's own drop-in. It counts while the unit exists and is running or enabled.
    type: bool
    default: false
  isolate:
    description:
      - Let the kernel deny the service every GPU except those in O(visible_devices), which must be set (C(DeviceAllow=)
        for their device nodes).
      - The service then sees no other GPU, so the indexes of its own start at 0 inside it.
    type: bool
    default: false
  sandbox:
    description:
      - Run the service in a systemd sandbox in which it can still use its GPUs. C(systemd-analyze security) then rates
        its exposure at 1.6 or less; upstream's own unit has 9.2.
      - It can write only to its user's home and to O(models_dir). Neither may be under C(/home), C(/root), C(/tmp) or
        C(/var/tmp), which it cannot see.
    type: bool
    default: false
  allow_unauthenticated:
    description:
      - Whether O(host) may be an address that other hosts can reach. Anyone there can then use, pull and delete models.
    type: bool
    default: false
  clients:
    description:
      - Addresses or networks that alone exchange packets with the service (C(IPAddressAllow=)), such as those of the
        gateways. The service may then listen, without authentication, on an address that other hosts can reach.
      - It must listen on one IPv4 address of the host. The verification tests that another address is kept out; it
        fails if the kernel cannot filter the packets of a unit.
      - The service itself cannot reach other addresses either. List the registry from which Ollama pulls, and the other
        hosts of a vLLM that spans several.
    type: list
    elements: str
    default: []
  drain_timeout:
    description:
      - >-
        Seconds that running and waiting requests get to finish before the process is stopped. Those that are still
        running then are cut, with a warning. V(0) skips the drain altogether: gateways are not notified, and
        O(drain_command) is not run.
      - On a host with M(gpufleet.inference.gateway_agent), all gateways first send new requests elsewhere; they send
        requests again once the service is verified.
    type: float
    default: 120.0
  drain_command:
    description:
      - Command and arguments that take the service out of another load balancer before it is stopped. It is run on the
        host as root, without a shell, with the name of the unit in E(GPUFLEET_UNIT), and must end within 60 seconds. If
        it fails, nothing is stopped.
    type: list
    elements: str
    default: []
  undrain_command:
    description:
      - Command and arguments that put the service back after O(drain_command), once it is verified or was rolled back.
        If it fails, so does the run, and the next one tries again.
    type: list
    elements: str
    default: []
  environment:
    description:
      - Further variables of the process. A variable that Ollama reads is checked like its option. A name that Ollama
        does not know but that resembles a known one causes a warning.
    type: dict
    default: {}
  secret_environment:
    description:
      - Further variables of the process that hold secrets, such as E(AWS_SECRET_ACCESS_KEY). They are passed from a
        file that only root can read. O(environment) rejects a variable with the name of a secret, and a URL with a
        password.
    type: dict
    default: {}
  generation:
    description:
      - >-
        Earlier accepted configuration to take the service back to: its number, or a time in UTC such as
        V(2026-11-30T08:00Z) for the one that was in force then. M(gpufleet.inference.generations_info) lists them.
      - Its options replace those declared here, except secrets, the drain, and with O(instances) the release. The
        change is verified, and rolled back if it fails, like any other.
      - The service stays there while this is set. Without it, the declared options apply again.
    type: str
  fingerprints:
    description:
      - Prompts that show whether the model still answers as before. When a change is verified, the model answers each
        of them with 16 tokens at temperature 0. The tokens and their log probabilities are recorded on the host, where
        only root can read them. They are compared after each later change of the service, and whenever a run makes
        every model answer. If they differ by more than the answers of one process do, the verdict is V(wrong_answers),
        and the change is rolled back.
      - The engine must report log probabilities with C(/v1/chat/completions). If it does not, the run warns, and
        nothing is compared.
    type: list
    elements: str
    default: []
  new_answers:
    description:
      - Whether this change is meant to change the answers, for example by another model or quantisation under the same
        name. The answers to O(fingerprints) are then recorded again instead of compared.
    type: bool
    default: false
  prove:
    description:
      - When O(prove_model) has to generate a token.
      - >-
        V(change) has it do so after a change. V(now) also where nothing changes, in check mode too: the model is loaded
        if it is not, and nothing is restarted.
      - V(later) is V(change), except that the model may still be missing. The service is then configured without it,
        and RV(proof_due) says that the model must be downloaded and proven with V(now).
    type: str
    choices: [change, now, later]
    default: change
  facts_timeout:
    description: Seconds that reading the GPUs may take.
    type: float
    default: 10.0
  remove_models:
    description: Whether O(state=uninstalled) also removes the models in the service's store.
    type: bool
    default: false
  host:
    description:
      - >-
        Where the server listens (E(OLLAMA_HOST)): C(ADDRESS), C(ADDRESS:PORT) or C(:PORT), with IPv6 addresses in
        brackets. Ollama's default is V(127.0.0.1:11434).
      - The API has no authentication. An address that other hosts can reach is rejected, unless
        O(allow_unauthenticated) is set.
      - A port that another service of this collection claims, or on which another process listens, is rejected.
    type: str
  origins:
    description: Origins that browsers may call from, in addition to those of localhost (E(OLLAMA_ORIGINS)).
    type: list
    elements: str
  sched_spread:
    description: Spread every model over all visible GPUs, even one that fits on a single GPU (E(OLLAMA_SCHED_SPREAD)).
    type: bool
  keep_alive:
    description:
      - >-
        How long a model stays loaded after its last request (E(OLLAMA_KEEP_ALIVE)): a duration such as V(30m) or
        V(1h30m), a number of seconds, V(-1) to keep it loaded indefinitely, or V(0) to unload it at once. A value in a
        request takes precedence.
      - Ollama has no unit for days, so V(1d) is rejected.
    type: str
  num_parallel:
    description:
      - How many requests one model serves at the same time (E(OLLAMA_NUM_PARALLEL)). The memory of the context grows by
        this factor.
    type: int
  max_loaded_models:
    description: How many models are loaded at the same time (E(OLLAMA_MAX_LOADED_MODELS)). V(0) means three per GPU.
    type: int
  max_queue:
    description: How many requests may wait before the server answers 503 (E(OLLAMA_MAX_QUEUE)).
    type: int
  context_length:
    description:
      - Length of the context in tokens, unless a request or model sets it (E(OLLAMA_CONTEXT_LENGTH)). With V(0) Ollama
        chooses it by the memory of the GPUs.
    type: int
  flash_attention:
    description: Use flash attention (E(OLLAMA_FLASH_ATTENTION)). Left out, Ollama decides for each model.
    type: bool
  kv_cache_type:
    description: Data type of the context's cache (E(OLLAMA_KV_CACHE_TYPE)). The quantized types need flash attention.
    type: str
    choices: [f16, q8_0, q4_0, f32, bf16, q4_1, iq4_nl, q5_0, q5_1]
  gpu_overhead:
    description:
      - Memory that Ollama leaves unused on each GPU (E(OLLAMA_GPU_OVERHEAD)), such as V(512MiB) or V(1.5GB), or a
        number of bytes.
      - Since Ollama 0.30 it no longer decides where GGUF models are placed; use O(fit_target) for them.
    type: str
  fit_target:
    description:
      - Memory that llama.cpp keeps free on each GPU (E(LLAMA_ARG_FIT_TARGET)), such as V(2GiB), or a number of MiB.
        Needs Ollama 0.30 or later.
    type: str
  llama_fit:
    description:
      - Whether llama.cpp adapts parameters that are not set to the free memory (E(LLAMA_ARG_FIT)). Needs Ollama 0.30 or
        later.
    type: bool
  load_timeout:
    description: How long a model may stall while it loads (E(OLLAMA_LOAD_TIMEOUT)), in the format of O(keep_alive).
    type: str
  llm_library:
    description:
      - Folder under C(lib/ollama), such as V(cuda_v13), to use instead of the one that Ollama detects
        (E(OLLAMA_LLM_LIBRARY)). A folder that does not exist is rejected, because Ollama would serve on the CPU.
    type: str
  igpu_enable:
    description: Use integrated GPUs (E(OLLAMA_IGPU_ENABLE)).
    type: bool
  vulkan:
    description: Use Vulkan if there is no better library (E(OLLAMA_VULKAN)).
    type: bool
  models_dir:
    description:
      - Where models are stored (E(OLLAMA_MODELS)). The directory is created for the service's user if it does not
        exist.
      - If the user cannot use it, the run stops before anything is changed. The error names the first folder or file in
        the way, and the command that fixes it.
      - If this collection creates the user, it also gives the user a directory that root has prepared, provided that
        the directory is empty or is a store that belongs to root entirely.
    type: path
  models_dir_change:
    description:
      - What to do if another store is in use and has models that the new one lacks.
      - V(refuse) stops before anything is changed, and lists the models that the server would no longer see.
      - V(move) moves them with the rights of the service's user; a file that this user may not read or remove stops the
        run. Within one file system this is immediate and needs no space. Otherwise the files are copied and their
        digests compared, which needs space for both copies. The old store stays complete until the service is verified
        on the new one. If a run is killed, the next one resumes. If that one declares the previous store or a third
        one, it removes the copies.
      - V(leave) leaves them where they are.
    type: str
    choices: [refuse, move, leave]
    default: refuse
  noprune:
    description:
      - Keep blobs that no model uses (E(OLLAMA_NOPRUNE)).
      - Left out, it is set for instances that share a directory of models, because one server would otherwise remove
        what another one is pulling.
    type: bool
  no_cloud:
    description:
      - Do not call ollama.com or offer its models (E(OLLAMA_NO_CLOUD)).
      - Left out, it is set too, unless another file of the unit sets it. A server older than 0.16.2, which does not
        know it, is then accepted. With V(false) it is not set.
    type: bool
  remotes:
    description: Hosts whose models may be used remotely (E(OLLAMA_REMOTES)).
    type: list
    elements: str
  max_transfer_streams:
    description: Parallel transfers when a safetensors model is pulled or pushed (E(OLLAMA_MAX_TRANSFER_STREAMS)).
    type: int
  auth:
    description: Sign requests between Ollama's client and server (E(OLLAMA_AUTH)). This does not protect the API.
    type: bool
  go_template:
    description: Use the model's own template (E(OLLAMA_GO_TEMPLATE)).
    type: bool
  log_level:
    description: How much the server logs (E(OLLAMA_DEBUG)).
    type: str
    choices: [info, debug, trace]
  debug_log_requests:
    description:
      - Write the bodies of all requests, including private ones, to a temporary folder (E(OLLAMA_DEBUG_LOG_REQUESTS)).
    type: bool
  https_proxy:
    description:
      - Proxy for pulls (E(HTTPS_PROXY)). A URL with a password is rejected, because Ollama writes the URL to its log.
    type: str
  no_proxy:
    description: Hosts to reach without the proxy (E(NO_PROXY)).
    type: str
  prove_model:
    description:
      - A model in the store that must answer. After a change it is loaded and generates one token, and NVML must show
        the unit's processes on the declared GPUs; with O(sched_spread), on all of them.
      - If nothing changed, nothing is loaded. The model is then checked only if it is already loaded.
    type: str
  prove_fit:
    description:
      - What to do if O(prove_model) does not fit, as estimated from the header of its file and the free memory of the
        GPUs. V(refuse) stops before anything is changed, V(warn) tries it with a warning, and V(ignore) skips the
        estimate.
    type: str
    choices: [refuse, warn, ignore]
    default: refuse
  uneven_spread:
    description:
      - What to do if O(prove_model) is spread (O(sched_spread)), but one GPU got less than two thirds of what another
        one got, relative to their sizes, because other processes use memory there. The message lists the memory on each
        GPU and the processes that use it.
      - V(fail) fails the verification with the verdict V(uneven_spread) and rolls a change back. V(warn) keeps the
        change and prints a warning.
    type: str
    choices: [fail, warn]
    default: fail
  version:
    description:
      - The release to install, such as V(0.32.15), for the architecture of the host. Afterwards the server must report
        this version.
      - If neither this nor O(archive) is set, Ollama must already be installed.
      - The release is unpacked under C(lib/gpufleet) in O(prefix), next to the one in use, and activated by two links,
        so the service is down only for a restart. The previous release is kept for a rollback. The user and the unit
        are created as upstream's C(install.sh) does, if they do not exist.
      - Releases since 0.14.0 are C(.tar.zst) files, which need the program C(zstd) on the host.
    type: str
  mirror:
    description:
      - >-
        Where to get releases from: a URL or a folder on the controller, with the layout of the official releases,
        C(MIRROR/vVERSION/ollama-linux-amd64.tar.zst). Files on the controller are sent only to hosts that lack this
        release.
      - The default is V(https://github.com/ollama/ollama/releases/download).
    type: str
  archive:
    description:
      - >-
        A release to install instead of one from O(mirror): a C(.tar.zst) or C(.tgz) file on the controller, on the host
        (with O(remote_src)), or at a URL.
      - A file on the controller is sent only to hosts that lack this release.
    type: str
  addons:
    description:
      - Archives to unpack over the release, such as V(rocm), V(jetpack5) or V(jetpack6). A single word is an add-on
        from O(mirror); a path or URL works as in O(archive).
    type: list
    elements: str
    default: []
  archive_checksum:
    description:
      - SHA-256 checksum of the archive, as V(sha256:HEX). Required for anything that comes from a URL; the release's
        C(sha256sum.txt) lists it. With add-ons, or hosts of several architectures, use a dictionary of file names and
        checksums.
      - V(unverified), for everything or for single files, skips the check. Such a file is not downloaded again from the
        same URL. Over plain HTTP this causes a warning.
      - For a file on the controller, the C(sha256sum.txt) next to it is read; without one, the file is hashed on every
        run. A file on the host is also hashed on every run.
    type: raw
  remote_src:
    description: Whether O(archive) and O(addons) are on the host.
    type: bool
    default: false
  prefix:
    description:
      - Where Ollama is installed, with C(bin/ollama) and C(lib/ollama) under it. Only root may have write access there.
    type: path
    default: /usr/local
  # end
seealso:
  - module: gpufleet.inference.gpu_facts
  - module: gpufleet.inference.systemd_override
"""

EXAMPLES = r"""
- name: Serve on all GPUs, spread every model over them and keep it loaded indefinitely
  gpufleet.inference.ollama_service:
    visible_devices: all
    sched_spread: true
    keep_alive: "-1"

- name: Install a release and verify it with a model from the store
  gpufleet.inference.ollama_service:
    version: 0.32.15
    archive_checksum:
      ollama-linux-amd64.tar.zst: sha256:0000000000000000000000000000000000000000000000000000000000000000
      ollama-linux-arm64.tar.zst: sha256:0000000000000000000000000000000000000000000000000000000000000000
    visible_devices: all
    prove_model: llama3.3:70b

- name: Run two instances, each with its own GPUs
  gpufleet.inference.ollama_service:
    isolate: true
    sandbox: true
    keep_alive: "-1"
    instances:
      - {name: chat, visible_devices: [0, 1], host: "127.0.0.1:11434", sched_spread: true}
      - {name: code, visible_devices: [2, 3], host: "127.0.0.1:11440", models_dir: /srv/code/models}

- name: Serve on two healthy GPUs with at least 40 GiB each, none of which drives a display
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
  sample: ok · 4× H200 · CUDA_VISIBLE_DEVICES=0,1,2,3 spread · m70b on 4 GPUs · Ollama 0.32.15 · restart 1.9 s
verdict:
  description:
    - The result of the verification. V(ok), or one of V(crash_loop), V(not_ready), V(port_taken), V(wrong_version),
      V(unproven), V(misread), V(cpu_fallback), V(wrong_gpu), V(model_missing), V(load_failed), V(stalled),
      V(partial_offload), V(vram_missing), V(spread_missing), V(uneven_spread), V(vram_held), V(exposed),
      V(wrong_answers), or a verdict of the M(gpufleet.inference.systemd_override) module.
  returned: when a service was inspected
  type: str
  sample: ok
unproven:
  description:
    - Why the model was not asked to answer in this run, such as V(nothing changed). Empty if it answered.
    - With O(prove=now) it is always asked.
  returned: when a service was inspected
  type: str
proof_due:
  description: Whether O(prove_model) has to be downloaded, and then proven with O(prove=now).
  returned: with O(state=present)
  type: bool
evidence:
  description: The measurements behind the verdict, and the last lines of the journal.
  returned: when a service was inspected
  type: dict
restarted:
  description: Whether the service was restarted. In check mode, whether it would be.
  returned: when a service was inspected
  type: bool
reasons:
  description: Why the service was restarted, or its model loaded again.
  returned: when a service was inspected
  type: list
  elements: str
  sample: ["the value in force changes: OLLAMA_KEEP_ALIVE"]
differs:
  description: Names of what differed from the declared state. They are listed in C(docs/faults.md).
  returned: when a service was inspected
  type: list
  elements: str
  sample: [environment, override]
planned:
  description:
    - The writes and systemctl commands of the run, in order. In check mode those of a real run.
    - Empty when the service is in its declared state.
  returned: when a service was inspected
  type: list
  elements: str
  sample: [systemctl daemon-reload]
reloaded:
  description: Whether systemd reloaded its units. In check mode, whether it would.
  returned: when a service was inspected
  type: bool
rolled_back:
  description: Whether the previous state was restored.
  returned: when a service was inspected
  type: bool
downtime_ms:
  description: Milliseconds from the stop of the service until it was verified, or until the previous one was back.
  returned: when a service was inspected
  type: int
  sample: 1900
environment:
  description: The declared variables, with their values in the running process.
  returned: when a service was inspected
  type: dict
  sample: {CUDA_VISIBLE_DEVICES: "0,1,2,3", OLLAMA_KEEP_ALIVE: "-1", OLLAMA_SCHED_SPREAD: "1"}
drift:
  description: Variables whose values differed between the inventory, the disk and the running process, with all three,
    and the file and line of the value on disk.
  returned: when a service was inspected
  type: dict
  sample: {OLLAMA_KEEP_ALIVE: {declared: "-1", on_disk: null, running: null, file: null}}
shadowed:
  description: Declared values that another file overrides, with the file and line.
  returned: when a service was inspected
  type: list
  elements: dict
unit_state:
  description: State of the unit, as systemd reports it.
  returned: when a service was inspected
  type: dict
visible_devices:
  description: The value of E(CUDA_VISIBLE_DEVICES), or null if no GPUs are declared.
  returned: success
  type: str
  sample: 0,1,2,3
gpus:
  description: The declared GPUs, or all GPUs of the host if none are declared.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Index in NVML's order.
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
      description: PCI bus id in the format of sysfs.
      returned: always
      type: str
    used_bytes:
      description: Memory that the unit's own processes use there.
      returned: always
      type: int
estimate:
  description:
    - The memory that O(prove_model) was expected to use before anything was changed, in the format of
      RV(gpufleet.inference.ollama_model#module:models[].estimate).
  returned: when O(prove_model) is given, something changed, and the host has GPUs
  type: dict
estimate_ratio:
  description: The memory that NVML shows for the service after the change, divided by the estimate.
  returned: with RV(estimate), outside of check mode
  type: float
  sample: 1.0
version:
  description: Version of the server that answered. Null in check mode if something would change.
  returned: success
  type: str
  sample: 0.32.15
generation:
  description: Number of the generation that this run has recorded, see M(gpufleet.inference.generations_info). Null if
    it recorded none.
  returned: success, with O(state=present) and without O(instances)
  type: int
  sample: 3
fingerprint:
  description: Result of O(fingerprints). Empty if this run compared and recorded nothing.
  returned: success, with O(state=present) and without O(instances)
  type: dict
  contains:
    state:
      description: V(same) as before, V(recorded) by this run, or V(not_offered) by the server.
      returned: always
      type: str
    deviation:
      description: The largest difference of a log probability from the recorded one, in nats.
      returned: unless RV(fingerprint.state) is V(not_offered)
      type: float
      sample: 0.0002
    tolerance:
      description: The largest difference allowed, derived from how much the answers of one process differed.
      returned: unless RV(fingerprint.state) is V(not_offered)
      type: float
      sample: 0.1
drain:
  description: What happened before the service was stopped; empty where it was not stopped or O(drain_timeout=0).
  returned: success, with O(state=present) and without O(instances)
  type: dict
  contains:
    seconds:
      description: How long it took until nothing was running any more.
      returned: always
      type: float
    gateways:
      description: Gateways that sent new requests elsewhere by then.
      returned: always
      type: list
      elements: str
    silent:
      description: Gateways that did not ask this host in time, and so do not know of the drain.
      returned: always
      type: list
      elements: str
    cut:
      description: What was still running at the end, and was cut; empty for nothing.
      returned: always
      type: str
      sample: 2 connections from 192.0.2.10 are open
instances:
  description: The result of each service as described here, by the name of its unit. RV(msg) has one part for each.
  returned: success, with O(instances)
  type: dict
needs:
  description:
    - The archives of the release, which is not on the host. Nothing was changed. The action plugin then sends those
      that are on the controller.
  returned: when an archive is on the controller and the host needs it
  type: list
  elements: str
"""

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama.options import OPTIONS
from ansible_collections.gpufleet.inference.plugins.module_utils.serving import options
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.entry import run


def argument_spec():
    return options.argument_spec(OPTIONS)


def main():
    from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import service

    run(argument_spec(), service.converge)


if __name__ == "__main__":
    main()
