#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts how often fingerprints raise an alarm, with a real llama-server for the CPU and a real, tiny model.

    .venv/bin/python benchmarks/fingerprints.py --restarts 1000 --flips 100

Honest restarts must raise none. Wrong answers must: weights with one flipped bit (where the bit counts: in the exponent
of a weight that these prompts use), another base of the position encoding, another chat template, a coarser KV cache.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab/ollama"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab/llama_server"))

import models
import program

from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint import fingerprint
from ansible_collections.gpufleet.inference.plugins.module_utils.endpoint.client import Endpoint

PROMPTS = ["Say hello.", "List the first five prime numbers.", "Name three colours.", "Translate to French: the cat."]


@contextmanager
def serving(model: Path, *arguments: str) -> Iterator[Endpoint]:
    """A new process that serves the model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(program.path() / "llama-server"), "--model", str(model), "--port", str(port), "--alias", "tiny"]
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen([*command, "--no-warmup", "-t", "1", *arguments], stdout=nowhere, stderr=nowhere)
    try:
        endpoint = Endpoint("http://127.0.0.1:%d" % port)
        endpoint.wait_ready(60, "tiny")
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def record(model: Path) -> fingerprint.Recorded:
    """What is recorded of a model once it is accepted."""
    with serving(model) as endpoint:
        several = [fingerprint.take(endpoint, "tiny", PROMPTS, 60) for _ in range(1 + fingerprint.REPEATS)]
    return fingerprint.Recorded("tiny", PROMPTS, several[0], fingerprint.learned(several))


def alarm(recorded: fingerprint.Recorded, model: Path, *arguments: str) -> Tuple[bool, float]:
    """Whether a new process raises an alarm, and by how much its answers differ."""
    with serving(model, *arguments) as endpoint:
        try:
            answers = fingerprint.take(endpoint, "tiny", PROMPTS, 60)
        except fingerprint.NoLogprobs:  # its numbers have become NaN
            return True, float("inf")
    worst = max(map(fingerprint.deviation, recorded.answers, answers))
    return fingerprint.difference(recorded, answers) is not None, worst


def flipped(model: Path, where: random.Random) -> Path:
    """The model with the highest bit of the exponent of one weight flipped: a weight becomes huge, or nothing."""
    content = bytearray(model.read_bytes())
    # the weights are at the end, four bytes each, and the highest byte is the last one
    place = len(content) - 4 * where.randrange(1, len(content) // 8) + 3
    content[place] ^= 0x40
    other = model.with_suffix(".flipped")
    other.write_bytes(content)
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--flips", type=int, default=20)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "tiny.gguf")
        models.write_gguf(model, "tiny")
        recorded, rng = record(model), random.Random(7)
        print("tolerance: %.3f" % recorded.tolerance)
        template = "{% for message in messages %}{{ message.content }} {% endfor %}"
        coarse = ("-ctk", "q4_0", "-ctv", "q4_0", "-fa", "on")
        print("| %-32s | %5s | %6s | %s |" % ("what", "runs", "alarms", "largest difference, least to most"))
        print("| --- | --- | --- | --- |")

        def row(what: str, times: int, *arguments: str, broken: bool = False) -> None:
            found = [alarm(recorded, flipped(model, rng) if broken else model, *arguments) for _ in range(times)]
            differences = sorted(difference for _alarm, difference in found)
            alarms = sum(raised for raised, _difference in found)
            span = "%.4f to %.4f" % (differences[0], differences[-1])
            print("| %-32s | %5d | %6d | %s |" % (what, times, alarms, span), flush=True)

        row("honest restart", chosen.restarts)
        row("honest restart, two threads", chosen.flips, "-t", "2")
        row("position encoding of base 20000", 1, "--rope-freq-base", "20000")
        row("another chat template", 1, "--jinja", "--chat-template", template)
        row("KV cache of 4 bits", 1, *coarse)
        row("one bit flipped", chosen.flips, broken=True)


if __name__ == "__main__":
    main()
