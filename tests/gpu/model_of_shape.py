#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a model without weights, for `load_format: dummy`: `model_of_shape.py DIRECTORY SHAPE`.

The tokenizer is the small one of tests/lab/vllm/tiny_model.py. Runs in an environment with transformers and torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab/vllm"))

import tiny_model

LLAMA = {"vocab_size": 128256, "max_position_embeddings": 8192, "head_dim": 128, "torch_dtype": "bfloat16"}
SHAPES = {
    "llama-8b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-70b": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def main() -> None:
    folder = Path(sys.argv[1])
    config = {**tiny_model.CONFIG, **SHAPES[sys.argv[2]]}
    tiny_model.make(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = config["max_position_embeddings"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    main()
