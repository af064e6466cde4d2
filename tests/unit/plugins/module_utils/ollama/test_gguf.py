# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header reader, on files put together here."""

from __future__ import annotations

import io
import random
import struct
from typing import Any, Dict, List, Tuple

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.ollama import gguf, sizing


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value(content: Any) -> bytes:
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, bool):
        return struct.pack("<I?", 7, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, list) and content and isinstance(content[0], str):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(text, content))
    if isinstance(content, list):
        return struct.pack("<IIQ%di" % len(content), 9, 5, len(content), *content)
    return struct.pack("<II", 4, content)


def made(keys: Dict[str, Any], tensors: List[Tuple[str, Tuple[int, ...], int, int]], version: int = 3) -> bytes:
    """A file: keys, and tensors as (name, dimensions, type, bytes)."""
    parts = [struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(keys))]
    parts += [text(key) + value(content) for key, content in keys.items()]
    offset = 0
    for name, dimensions, kind, size in tensors:
        described = struct.pack("<I%dQIQ" % len(dimensions), len(dimensions), *dimensions, kind, offset)
        parts.append(text(name) + described)
        offset += size
    head = b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(offset)


KEYS = {
    "general.architecture": "llama",
    "general.name": "two layers",
    "general.file_type": 15,
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": [128, 256],
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 0],
    "llama.rope.scale": 1.0,
    "llama.tied": True,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
TENSORS = [
    ("token_embd.weight", (64, 3), 0, 768),
    ("blk.0.attn_q.weight", (64, 64), 12, 2304),
    ("blk.1.attn_q.weight", (64, 64), 8, 4352),
    ("output_norm.weight", (64,), 0, 256),
]


def read(content: bytes) -> gguf.Header:
    return gguf.read(io.BytesIO(content))


def test_a_model_by_its_header() -> None:
    content = made(KEYS, TENSORS)
    found = read(content)
    assert found.architecture == "llama"
    assert found.name == "two layers"
    assert found.quantization == "Q4_K_M"
    assert found.parameters == 64 * 3 + 2 * 64 * 64 + 64
    assert found.file_bytes == len(content)
    assert (found.layers, found.context, found.embedding, found.heads) == (2, 8192, 64, 4)
    assert found.forward == 256
    assert found.kv_heads == (2, 0), "one number for each layer; 0: recurrent"
    assert (found.key_length, found.value_length) == (16, 16)
    assert found.layer_bytes == (2304, 4352)
    assert found.output_bytes == 256 + 768, "without output.weight the embedding is the output"
    assert found.vocabulary == 3


def test_what_the_file_does_not_say() -> None:
    keys = {"general.architecture": "bert", "bert.block_count": 3, "bert.embedding_length": 8}
    found = read(made(keys, [("output.weight", (32,), 2, 18), ("blk.9.x", (32,), 2, 18)], version=2))
    assert found.quantization == "Q4_0", "of the tensors"
    assert (found.heads, found.kv_heads, found.context, found.vocabulary) == (1, (1, 1, 1), 0, 0)
    assert found.forward == 32
    assert found.output_bytes == 18


def test_a_list_that_is_too_short_goes_on() -> None:
    assert read(made(dict(KEYS, **{"llama.attention.head_count_kv": [3]}), TENSORS)).kv_heads == (3, 3)


@pytest.mark.parametrize("cut", [2, 6, 14, 40, 300])
def test_cut_off_within_its_header(cut: int) -> None:
    with pytest.raises(ValueError, match="cut off within its header|begins with"):
        read(made(KEYS, TENSORS)[:cut])


def test_cut_off_within_its_weights() -> None:
    with pytest.raises(ValueError, match="is cut off: .* bytes, its header claims"):
        read(made(KEYS, TENSORS)[:-1])


def head(*numbers: int, magic: bytes = b"GGUF") -> bytes:
    return struct.pack("<4sIQQ", magic, *numbers)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"PK\x03\x04" + bytes(99), "begins with b'PK"),
        (head(1, 0, 0), "version 1; expected 2 or 3"),
        (head(3 << 24, 0, 0), "big-endian"),
        (head(3, 1 << 40, 0), "claims 1099511627776 tensors"),
        (head(3, 0, 1) + struct.pack("<Q", 1 << 40), "a string of 1099511627776 bytes"),
        (head(3, 0, 1) + text("a") + struct.pack("<I", 77), "metadata of type 77"),
        (head(3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "an array of type 9"),
        (head(3, 1, 0) + text("t") + struct.pack("<I", 99), "99 dimensions"),
        (head(3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 32, 77, 0), "of type 77, which is not known"),
        (head(3, 0, 0) + bytes(8), "no general.architecture"),
        (made({"general.architecture": "clip"}, []), "clip.block_count 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_model(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(content)


# --- headers that somebody made


DAMAGED = "is damaged"


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.block_count": "two"},
        {"llama.block_count": [2, 2]},
        {"llama.block_count": float("nan")},
        {"llama.embedding_length": float("inf")},
        {"llama.context_length": -1.0},
        {"llama.context_length": float("inf")},
        {"llama.attention.head_count": [-4]},
        {"llama.attention.head_count_kv": [-2, -2]},
        {"llama.attention.head_count_kv": "x"},
        {"llama.attention.key_length": -1.0},
        {"llama.feed_forward_length": [-1]},
        {"llama.vocab_size": "x"},
        {"general.alignment": "x"},
        {"general.alignment": -32.0},
    ],
    ids=str,
)
def test_a_number_that_is_none(keys: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=DAMAGED):
        read(made({**KEYS, **keys}, TENSORS))


@pytest.mark.parametrize("architecture", ["", "a b", "x" * 100000, "a\x1b[2J", "a\n", ["llama"], 7])
def test_an_architecture_that_is_none(architecture: Any) -> None:
    with pytest.raises(ValueError, match="names no general.architecture"):
        read(made({**KEYS, "general.architecture": architecture}, TENSORS))


@pytest.mark.parametrize("name, shown", [("a\n\x1b[2Jb", "a b"), ("x" * 5000, "x" * 200), (["a"], None), (7, None)])
def test_a_name_is_one_short_line(name: Any, shown: Any) -> None:
    assert read(made({**KEYS, "general.name": name}, TENSORS)).name == shown


@pytest.mark.parametrize("file_type", [[1], "x", 999, 1.5])
def test_a_file_type_that_is_none(file_type: Any) -> None:
    assert read(made({**KEYS, "general.file_type": file_type}, TENSORS)).quantization == "Q8_0"


@pytest.mark.parametrize(
    "described, words",
    [
        (struct.pack("<I8QIQ", 8, *[(1 << 64) - 1] * 8, 0, 0), DAMAGED),
        (struct.pack("<IQIQ", 1, 1, 0, (1 << 64) - 1), DAMAGED),
        (struct.pack("<IQIQ", 1, 1 << 50, 0, 0), "is cut off"),
        (struct.pack("<IQIQ", 1, 1, 0, 1 << 59), "is cut off"),
    ],
)
def test_tensors_beyond_any_disk(described: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(head(3, 1, 0) + text("blk." + "9" * 5000 + ".x") + described)


def test_names_of_tensors_are_no_numbers_to_compute_with() -> None:
    tensors = [*TENSORS, ("blk.%s.x" % ("9" * 50000), (32,), 2, 18)]
    assert read(made(KEYS, tensors)).layers == 2


class Endless:
    """A file of terabytes that takes no room: its beginning, and then the same again and again."""

    def __init__(self, content: bytes, again: bytes) -> None:
        self.content, self.again, self.at, self.most = content, again, 0, 0

    def seek(self, position: int, whence: int = 0) -> int:
        self.at = 1 << 43 if whence == 2 else position
        return self.at

    def read(self, length: int) -> bytes:
        found = self.content[self.at : self.at + length]
        while len(found) < length:
            start = (self.at + len(found) - len(self.content)) % len(self.again)
            found += self.again[start : start + length - len(found)]
        self.at += length
        self.most = max(self.most, self.at)
        return found


MANY = struct.pack("<QIIQ", 0, 9, 0, 1 << 20) + bytes(1 << 20)


@pytest.mark.parametrize(
    "content, again",
    [
        (head(3, 0, 1 << 14), MANY),
        (head(3, 0, 1 << 14), struct.pack("<QIQ", 0, 8, 1 << 20) + bytes(1 << 20)),
        (head(3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 21), struct.pack("<Q", 1 << 10) + bytes(1 << 10)),
        (head(3, 1 << 17, 0), struct.pack("<Q", 1 << 12) + bytes(1 << 12) + struct.pack("<IIQ", 0, 0, 0)),
    ],
    ids=["arrays", "strings", "array-of-strings", "tensors"],
)
def test_a_header_that_does_not_end(content: bytes, again: bytes) -> None:
    """Whoever may write a model of terabytes, most of it a hole, could have root read all of it into its memory."""
    file = Endless(content, again)
    with pytest.raises(ValueError, match="its header continues after 67108864 bytes"):
        gguf.read(file)  # type: ignore[arg-type]
    assert file.most <= 1 << 26


@pytest.mark.parametrize("counts", [(0, 1 << 15), (1 << 18, 0)])
def test_a_header_of_zeroes(counts: Tuple[int, int]) -> None:
    """Each key takes thirteen bytes of a hole in the file, and a microsecond of root's time."""
    with pytest.raises(ValueError, match="is damaged: it claims"):
        gguf.read(Endless(head(3, *counts), bytes(100)))  # type: ignore[arg-type]


def test_a_long_list_is_only_counted() -> None:
    keys = {**KEYS, "tokenizer.ggml.scores": [1] * 20000, "llama.attention.head_count_kv": [2] * 5000}
    assert read(made(keys, TENSORS)).kv_heads == (2, 2)


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_is_an_error_or_a_header(seed: int) -> None:
    """Bytes changed at random: nothing but ValueError comes of it."""
    numbers, content = random.Random(seed), bytearray(made(KEYS, TENSORS))
    for _again in range(50):
        damaged = bytearray(content)
        for _byte in range(numbers.randrange(1, 6)):
            damaged[numbers.randrange(4, len(damaged))] = numbers.choice([0, 1, 8, 9, 127, 128, 255])
        try:
            found = read(bytes(damaged))
        except ValueError:
            continue
        sizing.describe(sizing.estimate(found, [1 << 37], [4096, found.context]), [0])
