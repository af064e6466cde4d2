#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models for a lab host's store: large ones without weights, and a tiny one that a real worker can run.

    models.py gpu2 m70b m32b             into the store of a lab host, as its user ollama (GPUFLEET_LAB: another lab)
    models.py /var/tmp/models tiny       into a store on this machine

m70b (43 GB), m32b (20 GB) and m8b (4.4 GB) have the Llama shapes that the recorded placements were made with
(tests/unit/fixtures/ollama): true GGUF headers, weights zero, the file sparse, so they take a few kB of disk. tiny
(2 MB) has random weights. Blob and manifest are put straight into the store, as a running server takes them up at once.
The blob's name is made from its header: the server checks digests when it pulls, not when it loads.

GGUF version 3 by its specification; store layout as the server itself writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Tuple

STORE = "/usr/share/ollama/.ollama/models"  # of the user that upstream's installer makes
F32, Q4_1 = 0, 3  # GGUF tensor types
TYPE_NAMES = {F32: "F32", Q4_1: "Q4_1"}
ALIGNMENT = 32


class Shape(NamedTuple):
    """A Llama model's dimensions; `weights` is the GGUF type of its matrices, `size` what Ollama calls it."""

    embedding: int
    layers: int
    forward: int
    heads: int
    kv_heads: int
    weights: int
    size: str
    context: int = 131072


MODELS = {
    "m70b": Shape(8192, 80, 28672, 64, 8, Q4_1, "70B"),
    "m32b": Shape(5120, 64, 27648, 40, 8, Q4_1, "32B"),
    "m8b": Shape(4096, 32, 14336, 32, 8, Q4_1, "8B"),
    "tiny": Shape(128, 2, 384, 4, 2, F32, "0.5M", 2048),
}


def vocabulary() -> List[str]:
    """The 256 byte tokens of GPT-2's tokenizer, in its order, and two of our own for begin and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)] + ["<|bos|>", "<|eos|>"]


def metadata(name: str, shape: Shape) -> List[Tuple[str, str, Any]]:
    """Key, type and value of each GGUF key; types as struct letters, `s` string, `[x` list of x."""
    words = vocabulary()
    head = shape.embedding // shape.heads
    return [
        ("general.architecture", "s", "llama"),
        ("general.name", "s", name),
        ("llama.context_length", "I", shape.context),
        ("llama.embedding_length", "I", shape.embedding),
        ("llama.block_count", "I", shape.layers),
        ("llama.feed_forward_length", "I", shape.forward),
        ("llama.attention.head_count", "I", shape.heads),
        ("llama.attention.head_count_kv", "I", shape.kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", "f", 1e-5),
        ("llama.rope.dimension_count", "I", head),
        ("llama.vocab_size", "I", len(words)),
        ("general.file_type", "I", shape.weights),
        ("tokenizer.ggml.model", "s", "gpt2"),
        ("tokenizer.ggml.pre", "s", "gpt-2"),
        ("tokenizer.ggml.tokens", "[s", words),
        ("tokenizer.ggml.token_type", "[i", [1] * (len(words) - 2) + [3, 3]),
        ("tokenizer.ggml.merges", "[s", ["a b"]),
        ("tokenizer.ggml.bos_token_id", "I", len(words) - 2),
        ("tokenizer.ggml.eos_token_id", "I", len(words) - 1),
        (
            "tokenizer.chat_template",
            "s",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
        ),
    ]


def tensors(shape: Shape) -> Iterator[Tuple[str, Tuple[int, ...], int]]:
    """Name, dimensions and type of each tensor, in the order of the file."""
    wide = shape.embedding
    kv = wide // shape.heads * shape.kv_heads
    yield "token_embd.weight", (wide, len(vocabulary())), F32
    for layer in range(shape.layers):
        for part, dims in (
            ("attn_norm", (wide,)),
            ("attn_q", (wide, wide)),
            ("attn_k", (wide, kv)),
            ("attn_v", (wide, kv)),
            ("attn_output", (wide, wide)),
            ("ffn_norm", (wide,)),
            ("ffn_gate", (wide, shape.forward)),
            ("ffn_up", (wide, shape.forward)),
            ("ffn_down", (shape.forward, wide)),
        ):
            yield "blk.%d.%s.weight" % (layer, part), dims, shape.weights if len(dims) > 1 else F32
    yield "output_norm.weight", (wide,), F32
    yield "output.weight", (wide, len(vocabulary())), F32


def size_of(dims: Tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor; every one of ours is a multiple of the alignment."""
    weights = 1
    for dim in dims:
        weights *= dim
    return weights * 4 if kind == F32 else weights // 32 * 20


def pack(kind: str, value: Any) -> bytes:
    """One GGUF value without its type."""
    if kind == "s":
        return struct.pack("<Q", len(value.encode())) + value.encode()
    if kind[0] == "[":
        return struct.pack("<IQ", type_number(kind[1:]), len(value)) + b"".join(pack(kind[1:], one) for one in value)
    return struct.pack("<" + kind, value)


def type_number(kind: str) -> int:
    """GGUF's number of a value type."""
    return {"I": 4, "i": 5, "f": 6, "s": 8, "[": 9}[kind[0]]


def header(name: str, shape: Shape) -> Tuple[bytes, int]:
    """Everything before the weights, padded; and the bytes of the weights."""
    pairs, listed = metadata(name, shape), list(tensors(shape))
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(pairs))]
    parts += [pack("s", key) + struct.pack("<I", type_number(kind)) + pack(kind, value) for key, kind, value in pairs]
    offset = 0
    for tensor, dims, kind in listed:
        parts.append(pack("s", tensor) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, kind, offset))
        offset += size_of(dims, kind)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % ALIGNMENT), offset


def random_weights(name: str, dims: Tuple[int, ...], rng: random.Random) -> array:
    """Weights of one tensor of a model that runs, and that answers in printable ASCII alone.

    The 94 printable tokens come first; their rows of the output are each other's opposite by twos, so that 47 are above
    the zero of all others whatever the state, and sampling takes 40. A stray byte of a longer UTF-8 sequence would end
    a generation in silence.
    """
    if len(dims) == 1:
        return array("f", [1.0] * dims[0])
    wide, rows = dims
    values = array("f", (rng.gauss(0, 0.3) for _ in range(wide * rows)))
    if name == "output.weight":
        values = array("f", bytes(values.itemsize * wide * rows))
        for row in range(0, 94, 2):
            some = [rng.gauss(0, 0.3) for _ in range(wide)]
            values[row * wide : (row + 2) * wide] = array("f", some + [-value for value in some])
    return values


def write_gguf(path: Path, name: str) -> None:
    """Write the model `name` to `path`: sparse, but for tiny, whose weights are random and always the same."""
    shape = MODELS[name]
    head, size = header(name, shape)
    with open(path, "wb") as file:
        file.write(head)
        if shape.weights == F32:
            rng = random.Random(name)
            for tensor, dims, _ in tensors(shape):
                file.write(random_weights(tensor, dims, rng).tobytes())
        file.truncate(len(head) + size)


def put(store: Path, name: str) -> str:
    """Put the model into a store, unless it is there; returns the digest of its weights.

    Raises KeyError for an unknown name and OSError when the store cannot be written.
    """
    shape = MODELS[name]
    digest = hashlib.sha256(header(name, shape)[0]).hexdigest()
    config = json.dumps(
        {
            "model_format": "gguf",
            "model_family": "llama",
            "model_families": ["llama"],
            "model_type": shape.size,
            "file_type": TYPE_NAMES[shape.weights],
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
        }
    ).encode()
    blobs, manifest = store / "blobs", store / "manifests/registry.ollama.ai/library" / name / "latest"
    blob, settings = blobs / ("sha256-" + digest), blobs / ("sha256-" + hashlib.sha256(config).hexdigest())
    blobs.mkdir(parents=True, exist_ok=True)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    if not blob.exists():
        write_gguf(blob.with_suffix(".new"), name)
        os.replace(blob.with_suffix(".new"), blob)
    settings.write_bytes(config)
    layers = [(settings, "docker.container.image.v1+json"), (blob, "ollama.image.model")]
    described = [
        {"mediaType": "application/vnd." + kind, "digest": path.name.replace("-", ":"), "size": path.stat().st_size}
        for path, kind in layers
    ]
    manifest.write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": described[0],
                "layers": described[1:],
            }
        )
    )
    return digest


def main(words: List[str]) -> int:
    """Put models into a store; exit status 2 when asked for something that is not there."""
    where, names = words[:1], words[1:]
    unknown = [name for name in names if name not in MODELS]
    if not names or unknown:
        sys.stderr.write(
            "usage: models.py HOST|DIRECTORY MODEL…, of %s%s\n"
            % (", ".join(MODELS), "".join("; no model " + n for n in unknown))
        )
        return 2
    if "/" in where[0]:
        for name in names:
            print(name, put(Path(where[0]), name))
        return 0
    inside = ["runuser", "-u", "ollama", "--", "python3", "-", STORE, *names]
    with open(__file__, "rb") as script:  # made there: a copy would not stay sparse
        lab = [sys.executable, str(Path(__file__).resolve().parents[1] / "lab.py"), "exec", where[0], "--", *inside]
        return subprocess.run(lab, stdin=script, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
