# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of llama.cpp's server. Pure.

What a row is as a variable of the process is in ``settings.SETTINGS`` under the same name.
"""

from __future__ import annotations

from ..serving.options import ONE_MODEL, Option, table

OPTIONS = table(
    Option(
        "environment",
        "dict",
        """Further variables of the process, such as E(LLAMA_ARG_FLASH_ATTN). llama-server reads nearly every argument
        from a variable as well; C(llama-server --help) names them. A name that this version does not know is
        rejected.""",
        default={},
    ),
    Option(
        "program",
        "path",
        """The program C(llama-server) on the host. It is not installed by this module.

        Left out, it is the one that the unit already starts, with the arguments that it has there, and else
        C(/opt/llama.cpp/bin/llama-server).""",
    ),
    Option(
        "user",
        "str",
        """The user that the server runs as. It is created if it does not exist. Left out, it is the user of a unit that
        was written manually, and else C(llama-server).""",
    ),
    Option(
        "model",
        "str",
        """Path of a GGUF file on the host, of the first part of a split model, or of a directory with one model in it
        (E(LLAMA_ARG_MODEL)). Or the name of a downloaded model: one of C(llama_server_models) of the role, or of
        C(model_paths) of the module.""",
    ),
    Option(
        "alias",
        "str",
        """Name of the model for clients, or several separated by commas (E(LLAMA_ARG_ALIAS)). Left out, it is the name
        of the downloaded model, or that of the instance.""",
    ),
    Option(
        "ctx_size",
        "int",
        """Tokens of context, shared by all O(parallel) requests (E(LLAMA_ARG_CTX_SIZE)). V(0) is what the model was
        trained with.""",
    ),
    Option("parallel", "int", "How many requests are served at a time (E(LLAMA_ARG_N_PARALLEL))."),
    Option(
        "cache_type_k",
        "str",
        "Data type of the keys in the KV cache, such as V(q8_0) (E(LLAMA_ARG_CACHE_TYPE_K)).",
        no_log=False,
    ),
    Option(
        "cache_type_v",
        "str",
        """Data type of the values in the KV cache (E(LLAMA_ARG_CACHE_TYPE_V)). The quantised types need
        flash attention.""",
    ),
    Option(
        "n_gpu_layers",
        "str",
        """Layers on the GPUs: a number, V(all), or V(auto), as many as fit (E(LLAMA_ARG_N_GPU_LAYERS)).

        If O(visible_devices) is set, all layers are put on the GPUs, so that a model that does not fit fails rather
        than being computed by the CPU in part.""",
    ),
    Option(
        "split_mode",
        "str",
        """How a model is split over several GPUs, such as V(layer), V(row) or V(none) (E(LLAMA_ARG_SPLIT_MODE)). With
        V(none), declare one GPU.""",
    ),
    Option(
        "embeddings", "bool", "Serve embeddings (E(LLAMA_ARG_EMBEDDINGS)). The server is then verified by an embedding."
    ),
    Option("reranking", "bool", "Serve rankings (E(LLAMA_ARG_RERANKING)). The server is then verified by a score."),
    Option(
        "host",
        "str",
        """Address at which the server listens (E(LLAMA_ARG_HOST)). Left out, it is V(127.0.0.1). An address that other
        hosts can reach requires O(api_key) or O(allow_unauthenticated).""",
    ),
    Option(
        "port",
        "int",
        """Port at which the server listens (E(LLAMA_ARG_PORT)). Left out, it is V(8080). A port that another service of
        this collection claims, or on which another process listens, is rejected.""",
    ),
    Option(
        "api_key",
        "str",
        """Key that clients must send (E(LLAMA_API_KEY)). It is kept in a file that only root can read, and is in
        neither the unit nor the process list. C(/health) and C(/v1/models) are served without it.""",
        no_log=True,
    ),
    Option(
        "ssl_key_file",
        "path",
        """File on the host with the private key for TLS (E(LLAMA_ARG_SSL_KEY_FILE)); O(user) must be able to read it.
        The program must be built with OpenSSL.""",
        no_log=False,
    ),
    Option(
        "ssl_cert_file",
        "path",
        "File on the host with the certificate for O(ssl_key_file) (E(LLAMA_ARG_SSL_CERT_FILE)).",
    ),
    Option(
        "extra_args",
        "dict",
        """Further arguments by their long names, such as V(flash-attn). V(true) gives the argument alone, a list gives
        it several values.

        Before anything is changed, each is compared with C(llama-server --help). An argument that this version does not
        know is rejected, with the nearest that it does.""",
        default={},
    ),
    *ONE_MODEL,
    name="llama-server",
    instances=None,
)
