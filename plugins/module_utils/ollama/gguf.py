# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the header of a GGUF file reports about a model: its shape, and the bytes of its tensors by layer.

Format: GGUF versions 2 and 3, little-endian, as in its specification. No weights are read. Whoever may write into a
store may write any header, so each number has a limit, and so has the header as a whole.
"""

from __future__ import annotations

import re
import struct
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Tuple

from ..toolbox.text import one_line

# number of a metadata value's type: struct letter; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# number of a tensor's type: name, weights of a block, bytes of a block
_TENSORS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}

# general.file_type, what a person calls the quantization of the whole file
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    30: "IQ4_XS",
    32: "BF16",
    38: "MXFP4_MOE",
}

_LARGEST = 1 << 26  # bytes of a header; those of models with 262144 tokens have 16 MiB
_MOST = {"metadata keys": 1 << 14, "tensors": 1 << 17, "entries of an array": 1 << 21}  # more is damage
_LAYERS = 10000
_NUMBER = 1 << 40  # tokens, widths, heads
_SIZE = 1 << 60  # bytes of a tensor
_NAME = 200  # characters of a name


class Header(NamedTuple):
    """A model's shape; sizes in bytes, layers without the output layer."""

    architecture: str
    name: Optional[str]
    parameters: int
    quantization: str
    file_bytes: int
    context: int
    """Tokens of context that it was trained with; 0 when the file does not say."""
    embedding: int
    forward: int
    """Width of the feed-forward part, the widest layer's."""
    heads: int
    kv_heads: Tuple[int, ...]
    """Per layer; 0 for a layer that keeps no cache by token (recurrent)."""
    key_length: int
    value_length: int
    vocabulary: int
    layer_bytes: Tuple[int, ...]
    output_bytes: int
    """The output layer, the token embedding where the file has no own matrix for the output."""

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)


def read(file: BinaryIO) -> Header:
    """The header of a GGUF file.

    :param file: opened in binary mode and seekable, at any position.
    :raises ValueError: with what was found, and what was expected.
    """
    file_bytes = file.seek(0, 2)
    file.seek(0)
    reader = _Reader(file)
    magic = reader.take(4)
    if magic != b"GGUF":
        raise ValueError("begins with %r, not with GGUF; expected a model in GGUF format" % magic)
    version = reader.number("I")
    if version in (2 << 24, 3 << 24):
        raise ValueError("is a big-endian GGUF; expected little-endian")
    if version not in (2, 3):
        raise ValueError("is GGUF version %d; expected 2 or 3" % version)
    tensor_count, key_count = reader.count("tensors"), reader.count("metadata keys")
    metadata = {}  # type: Dict[str, Any]
    for _index in range(key_count):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    sizes, parameters, types, end = _tensors(reader, tensor_count)
    alignment = _number("general.alignment", metadata.get("general.alignment", 32)) or 32
    expected = -(-reader.at // alignment) * alignment + end
    if file_bytes < expected:
        raise ValueError("is cut off: %d bytes, its header claims %d" % (file_bytes, expected))
    return _header(metadata, sizes, parameters, types, file_bytes)


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self.file, self.at = file, 0

    def take(self, length: int) -> bytes:
        if self.at + length > _LARGEST:
            raise ValueError("is damaged: its header continues after %d bytes" % _LARGEST)
        content = self.file.read(length)
        if len(content) < length:
            raise ValueError("is cut off within its header, at byte %d" % (self.at + len(content)))
        self.at += length
        return content

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def count(self, what: str) -> int:
        number = self.number("Q")
        if number > _MOST[what]:
            raise ValueError("is damaged: it claims %d %s" % (number, what))
        return number

    def text(self) -> str:
        length = self.number("Q")
        if length > _LARGEST:
            raise ValueError("is damaged: a string of %d bytes at byte %d" % (length, self.at))
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A metadata value; of an array with more entries than a model has layers (a vocabulary) only their number."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError("is damaged: metadata of type %d at byte %d" % (kind, self.at))
        inner, length = self.number("I"), self.count("entries of an array")
        if inner in _SCALARS:
            letters = "<%d%s" % (length, _SCALARS[inner])
            content = self.take(struct.calcsize(letters))
            return list(struct.unpack(letters, content)) if length <= _LAYERS else length
        if inner != _STRING:
            raise ValueError("is damaged: an array of type %d at byte %d" % (inner, self.at))
        for _index in range(length):
            self.text()
        return length


def _tensors(reader: _Reader, count: int) -> "Tuple[Dict[str, int], int, Dict[str, int], int]":
    """Bytes by tensor, parameters altogether, bytes by tensor type, and where the last tensor ends."""
    sizes = {}  # type: Dict[str, int]
    types = {}  # type: Dict[str, int]
    parameters = end = 0
    for _index in range(count):
        name = reader.text()
        dimensions = reader.number("I")
        if dimensions > 8:
            raise ValueError("is damaged: tensor %s has %d dimensions" % (_named(name), dimensions))
        weights = 1
        for _dimension in range(dimensions):
            weights *= reader.number("Q")
        kind, offset = reader.number("I"), reader.number("Q")
        if kind not in _TENSORS:
            raise ValueError("has a tensor, %s, of type %d, which is not known" % (_named(name), kind))
        label, block, block_bytes = _TENSORS[kind]
        sizes[name] = -(-weights // block) * block_bytes
        if max(sizes[name], offset) > _SIZE:
            raise ValueError("is damaged: tensor %s has %d weights at byte %d" % (_named(name), weights, offset))
        types[label] = types.get(label, 0) + sizes[name]
        parameters += weights
        end = max(end, offset + sizes[name])
    return sizes, parameters, types, end


def _header(
    metadata: Dict[str, Any], sizes: Dict[str, int], parameters: int, types: Dict[str, int], file_bytes: int
) -> Header:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not re.match(r"[\w.-]{1,64}\Z", architecture, re.ASCII):
        raise ValueError("names no general.architecture; expected a language model")

    def of(key: str, default: int = 0) -> int:
        key = "%s.%s" % (architecture, key)
        return _number(key, metadata.get(key, default))

    def per_layer(key: str, default: int) -> List[int]:
        key = "%s.%s" % (architecture, key)
        return _per_layer(key, metadata.get(key, default), layers)

    layers, embedding = of("block_count"), of("embedding_length")
    if not 0 < layers < _LAYERS or not embedding:
        raise ValueError(
            "has %s.block_count %s and %s.embedding_length %s; expected a language model's"
            % (architecture, layers, architecture, embedding)
        )
    heads = max(per_layer("attention.head_count", 1)) or 1
    layer_bytes = [0] * layers
    output = 0
    for name, size in sizes.items():
        part = re.match(r"blk\.([0-9]{1,5})\.", name)
        if part and int(part.group(1)) < layers:
            layer_bytes[int(part.group(1))] += size
        elif name.startswith("output"):
            output += size
    if "output.weight" not in sizes:  # the output layer uses the token embedding, and then it lies on a GPU, too
        output += sizes.get("token_embd.weight", 0)
    tokens = metadata.get("tokenizer.ggml.tokens")
    main_type = max(types, key=lambda label: types[label]) if types else "unknown"
    title, file_type = metadata.get("general.name"), metadata.get("general.file_type")
    return Header(
        architecture=architecture,
        name=_named(title) if isinstance(title, str) else None,
        parameters=parameters,
        quantization=_FILE_TYPES.get(file_type, main_type) if isinstance(file_type, int) else main_type,
        file_bytes=file_bytes,
        context=of("context_length"),
        embedding=embedding,
        forward=max(per_layer("feed_forward_length", 4 * embedding)),
        heads=heads,
        kv_heads=tuple(per_layer("attention.head_count_kv", heads)),
        key_length=of("attention.key_length", embedding // heads),
        value_length=of("attention.value_length", embedding // heads),
        vocabulary=of("vocab_size") or (tokens if isinstance(tokens, int) else 0),
        layer_bytes=tuple(layer_bytes),
        output_bytes=output,
    )


def _number(key: str, value: Any) -> int:
    if not isinstance(value, (int, float)) or not 0 <= value <= _NUMBER:  # which NaN is not either
        raise ValueError("is damaged: %s is %.40r; expected a number from 0 to %d" % (_named(key), value, _NUMBER))
    return int(value)


def _named(text: str) -> str:
    return one_line(text, _NAME)


def _per_layer(key: str, value: Any, layers: int) -> List[int]:
    """A number for all layers, or one for each; a list that is too short is continued with its last."""
    if not isinstance(value, list):
        return [_number(key, value)] * layers
    numbers = [_number(key, one) for one in value[:layers]] or [0]
    return numbers + numbers[-1:] * (layers - len(numbers))
