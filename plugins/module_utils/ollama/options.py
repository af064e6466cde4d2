# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of an Ollama service. Pure.

What a row is as a variable of the process, and how its value is read, is in ``settings.SETTINGS`` under the same name.
"""

from __future__ import annotations

from ..serving.options import Option, table
from . import settings

OPTIONS = table(
    Option(
        "state",
        "str",
        """V(present) configures the service, enables it and starts it.

        V(absent) removes the drop-in of this collection and restarts the service with what is left. Nothing is
        uninstalled.

        V(stopped) drains the service, stops it and disables it, for example for work on the host. All else of it stays,
        as it is. Load balancers send it no requests until V(present) has started and verified it again.

        V(uninstalled) removes everything that this collection installed. If upstream's files or a foreign unit were
        there before, they are restored and the service continues with them. Otherwise the service is stopped, and its
        unit, releases and user are removed. Models and the user that owns them stay, unless O(remove_models) is
        set.""",
        choices=("present", "stopped", "absent", "uninstalled"),
        default="present",
        per_host=True,
    ),
    Option(
        "sandbox",
        "bool",
        """Run the service in a systemd sandbox in which it can still use its GPUs. C(systemd-analyze security) then
        rates its exposure at 1.6 or less; upstream's own unit has 9.2.

        It can write only to its user's home and to O(models_dir). Neither may be under C(/home), C(/root), C(/tmp) or
        C(/var/tmp), which it cannot see.""",
        default=False,
    ),
    Option(
        "allow_unauthenticated",
        "bool",
        """Whether O(host) may be an address that other hosts can reach. Anyone there can then use, pull and
        delete models.""",
        default=False,
    ),
    Option(
        "environment",
        "dict",
        """Further variables of the process. A variable that Ollama reads is checked like its option. A name that Ollama
        does not know but that resembles a known one causes a warning.""",
        default={},
    ),
    Option(
        "remove_models",
        "bool",
        "Whether O(state=uninstalled) also removes the models in the service's store.",
        default=False,
        per_host=True,
    ),
    Option(
        "host",
        "str",
        """Where the server listens (E(OLLAMA_HOST)): C(ADDRESS), C(ADDRESS:PORT) or C(:PORT), with IPv6 addresses in
        brackets. Ollama's default is V(127.0.0.1:11434).

        The API has no authentication. An address that other hosts can reach is rejected, unless
        O(allow_unauthenticated) is set.

        A port that another service of this collection claims, or on which another process listens, is rejected.""",
    ),
    Option(
        "origins",
        "list",
        "Origins that browsers may call from, in addition to those of localhost (E(OLLAMA_ORIGINS)).",
        elements="str",
    ),
    Option(
        "sched_spread",
        "bool",
        "Spread every model over all visible GPUs, even one that fits on a single GPU (E(OLLAMA_SCHED_SPREAD)).",
    ),
    Option(
        "keep_alive",
        "str",
        """How long a model stays loaded after its last request (E(OLLAMA_KEEP_ALIVE)): a duration such as V(30m) or
        V(1h30m), a number of seconds, V(-1) to keep it loaded indefinitely, or V(0) to unload it at once. A value in a
        request takes precedence.

        Ollama has no unit for days, so V(1d) is rejected.""",
        no_log=False,
    ),
    Option(
        "num_parallel",
        "int",
        """How many requests one model serves at the same time (E(OLLAMA_NUM_PARALLEL)). The memory of the context grows
        by this factor.""",
    ),
    Option(
        "max_loaded_models",
        "int",
        "How many models are loaded at the same time (E(OLLAMA_MAX_LOADED_MODELS)). V(0) means three per GPU.",
    ),
    Option("max_queue", "int", "How many requests may wait before the server answers 503 (E(OLLAMA_MAX_QUEUE))."),
    Option(
        "context_length",
        "int",
        """Length of the context in tokens, unless a request or model sets it (E(OLLAMA_CONTEXT_LENGTH)). With V(0)
        Ollama chooses it by the memory of the GPUs.""",
    ),
    Option(
        "flash_attention",
        "bool",
        "Use flash attention (E(OLLAMA_FLASH_ATTENTION)). Left out, Ollama decides for each model.",
    ),
    Option(
        "kv_cache_type",
        "str",
        "Data type of the context's cache (E(OLLAMA_KV_CACHE_TYPE)). The quantized types need flash attention.",
        choices=settings.KV_CACHE_TYPES,
    ),
    Option(
        "gpu_overhead",
        "str",
        """Memory that Ollama leaves unused on each GPU (E(OLLAMA_GPU_OVERHEAD)), such as V(512MiB) or V(1.5GB), or a
        number of bytes.

        Since Ollama 0.30 it no longer decides where GGUF models are placed; use O(fit_target) for them.""",
    ),
    Option(
        "fit_target",
        "str",
        """Memory that llama.cpp keeps free on each GPU (E(LLAMA_ARG_FIT_TARGET)), such as V(2GiB), or a number of MiB.
        Needs Ollama 0.30 or later.""",
    ),
    Option(
        "llama_fit",
        "bool",
        """Whether llama.cpp adapts parameters that are not set to the free memory (E(LLAMA_ARG_FIT)). Needs Ollama 0.30
        or later.""",
    ),
    Option(
        "load_timeout",
        "str",
        "How long a model may stall while it loads (E(OLLAMA_LOAD_TIMEOUT)), in the format of O(keep_alive).",
    ),
    Option(
        "llm_library",
        "str",
        """Folder under C(lib/ollama), such as V(cuda_v13), to use instead of the one that Ollama detects
        (E(OLLAMA_LLM_LIBRARY)). A folder that does not exist is rejected, because Ollama would serve on the CPU.""",
    ),
    Option("igpu_enable", "bool", "Use integrated GPUs (E(OLLAMA_IGPU_ENABLE))."),
    Option("vulkan", "bool", "Use Vulkan if there is no better library (E(OLLAMA_VULKAN))."),
    Option(
        "models_dir",
        "path",
        """Where models are stored (E(OLLAMA_MODELS)). The directory is created for the service's user if it does not
        exist.

        If the user cannot use it, the run stops before anything is changed. The error names the first folder or file in
        the way, and the command that fixes it.

        If this collection creates the user, it also gives the user a directory that root has prepared, provided that
        the directory is empty or is a store that belongs to root entirely.""",
    ),
    Option(
        "models_dir_change",
        "str",
        """What to do if another store is in use and has models that the new one lacks.

        V(refuse) stops before anything is changed, and lists the models that the server would no longer see.

        V(move) moves them with the rights of the service's user; a file that this user may not read or remove stops the
        run. Within one file system this is immediate and needs no space. Otherwise the files are copied and their
        digests compared, which needs space for both copies. The old store stays complete until the service is verified
        on the new one. If a run is killed, the next one resumes. If that one declares the previous store or a third
        one, it removes the copies.

        V(leave) leaves them where they are.""",
        choices=("refuse", "move", "leave"),
        default="refuse",
    ),
    Option(
        "noprune",
        "bool",
        """Keep blobs that no model uses (E(OLLAMA_NOPRUNE)).

        Left out, it is set for instances that share a directory of models, because one server would otherwise remove
        what another one is pulling.""",
    ),
    Option(
        "no_cloud",
        "bool",
        """Do not call ollama.com or offer its models (E(OLLAMA_NO_CLOUD)).

        Left out, it is set too, unless another file of the unit sets it. A server older than 0.16.2, which does not
        know it, is then accepted. With V(false) it is not set.""",
    ),
    Option("remotes", "list", "Hosts whose models may be used remotely (E(OLLAMA_REMOTES)).", elements="str"),
    Option(
        "max_transfer_streams",
        "int",
        "Parallel transfers when a safetensors model is pulled or pushed (E(OLLAMA_MAX_TRANSFER_STREAMS)).",
    ),
    Option(
        "auth",
        "bool",
        "Sign requests between Ollama's client and server (E(OLLAMA_AUTH)). This does not protect the API.",
    ),
    Option("go_template", "bool", "Use the model's own template (E(OLLAMA_GO_TEMPLATE))."),
    Option("log_level", "str", "How much the server logs (E(OLLAMA_DEBUG)).", choices=settings.LOG_LEVELS),
    Option(
        "debug_log_requests",
        "bool",
        """Write the bodies of all requests, including private ones, to a temporary folder
        (E(OLLAMA_DEBUG_LOG_REQUESTS)).""",
    ),
    Option(
        "https_proxy",
        "str",
        """Proxy for pulls (E(HTTPS_PROXY)). A URL with a password is rejected, because Ollama writes the
        URL to its log.""",
    ),
    Option("no_proxy", "str", "Hosts to reach without the proxy (E(NO_PROXY))."),
    Option(
        "prove_model",
        "str",
        """A model in the store that must answer. After a change it is loaded and generates one token, and NVML must
        show the unit's processes on the declared GPUs; with O(sched_spread), on all of them.

        If nothing changed, nothing is loaded. The model is then checked only if it is already loaded.""",
    ),
    Option(
        "prove",
        "str",
        """When O(prove_model) has to generate a token.

        V(change) has it do so after a change. V(now) also where nothing changes, in check mode too: the model is loaded
        if it is not, and nothing is restarted.

        V(later) is V(change), except that the model may still be missing. The service is then configured without it,
        and RV(proof_due) says that the model must be downloaded and proven with V(now).""",
        choices=("change", "now", "later"),
        default="change",
        only="module",
        per_host=True,
    ),
    Option(
        "prove_fit",
        "str",
        """What to do if O(prove_model) does not fit, as estimated from the header of its file and the free memory of
        the GPUs. V(refuse) stops before anything is changed, V(warn) tries it with a warning, and V(ignore) skips the
        estimate.""",
        choices=("refuse", "warn", "ignore"),
        default="refuse",
    ),
    Option(
        "uneven_spread",
        "str",
        """What to do if O(prove_model) is spread (O(sched_spread)), but one GPU got less than two thirds of what
        another one got, relative to their sizes, because other processes use memory there. The message lists the memory
        on each GPU and the processes that use it.

        V(fail) fails the verification with the verdict V(uneven_spread) and rolls a change back. V(warn) keeps the
        change and prints a warning.""",
        choices=("fail", "warn"),
        default="fail",
    ),
    Option(
        "version",
        "str",
        """The release to install, such as V(0.32.15), for the architecture of the host. Afterwards the server must
        report this version.

        If neither this nor O(archive) is set, Ollama must already be installed.

        The release is unpacked under C(lib/gpufleet) in O(prefix), next to the one in use, and activated by two links,
        so the service is down only for a restart. The previous release is kept for a rollback. The user and the unit
        are created as upstream's C(install.sh) does, if they do not exist.

        Releases since 0.14.0 are C(.tar.zst) files, which need the program C(zstd) on the host.""",
        per_host=True,
    ),
    Option(
        "mirror",
        "str",
        """Where to get releases from: a URL or a folder on the controller, with the layout of the official releases,
        C(MIRROR/vVERSION/ollama-linux-amd64.tar.zst). Files on the controller are sent only to hosts that lack this
        release.

        The default is V(https://github.com/ollama/ollama/releases/download).""",
        per_host=True,
    ),
    Option(
        "archive",
        "str",
        """A release to install instead of one from O(mirror): a C(.tar.zst) or C(.tgz) file on the controller, on the
        host (with O(remote_src)), or at a URL.

        A file on the controller is sent only to hosts that lack this release.""",
        per_host=True,
    ),
    Option(
        "addons",
        "list",
        """Archives to unpack over the release, such as V(rocm), V(jetpack5) or V(jetpack6). A single word is an add-on
        from O(mirror); a path or URL works as in O(archive).""",
        default=[],
        elements="str",
        per_host=True,
    ),
    Option(
        "archive_checksum",
        "raw",
        """SHA-256 checksum of the archive, as V(sha256:HEX). Required for anything that comes from a URL; the release's
        C(sha256sum.txt) lists it. With add-ons, or hosts of several architectures, use a dictionary of file names and
        checksums.

        V(unverified), for everything or for single files, skips the check. Such a file is not downloaded again from the
        same URL. Over plain HTTP this causes a warning.

        For a file on the controller, the C(sha256sum.txt) next to it is read; without one, the file is hashed on every
        run. A file on the host is also hashed on every run.""",
        per_host=True,
    ),
    Option("remote_src", "bool", "Whether O(archive) and O(addons) are on the host.", default=False, per_host=True),
    Option(
        "prefix",
        "path",
        """Where Ollama is installed, with C(bin/ollama) and C(lib/ollama) under it. Only root may have
        write access there.""",
        default="/usr/local",
        per_host=True,
    ),
    name="ollama",
    timeout=180,
)
"""Options of the module ``ollama_service``."""
