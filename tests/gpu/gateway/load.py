#!/usr/bin/env python3
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats whose beginnings are shared: `GATEWAY_KEY=KEY load.py URL MODEL REQUESTS`.

Prints JSON: requests, failed ones with their errors, tokens/s of all answers, seconds to the first token. On SIGTERM it
begins no further request, and prints what it has. Needs the package openai.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time

import openai

FAMILIES = 16
PREFIX = 5000  # digits, each at most a token
USERS = 32
TOKENS = 32


async def chat(client: openai.AsyncOpenAI, model: str, family: int, question: str) -> tuple[float, int]:
    """Seconds to the first token, and the number of tokens."""
    beginning = "".join(random.Random(family).choices("0123456789", k=PREFIX))
    started, first, tokens, finished = time.monotonic(), 0.0, 0, None
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": beginning}, {"role": "user", "content": question}],
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "min_tokens": TOKENS},
    )
    async for part in stream:
        first = first or time.monotonic() - started
        tokens = part.usage.completion_tokens if part.usage else tokens
        finished = part.choices[0].finish_reason or finished if part.choices else finished
    if tokens != TOKENS or finished != "length":
        raise RuntimeError("cut after %d of %d tokens, finish_reason %s" % (tokens, TOKENS, finished))
    return first, tokens


async def run(url: str, model: str, requests: int) -> dict[str, object]:
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=os.environ["GATEWAY_KEY"], max_retries=0, timeout=300)
    chance = random.Random(1)
    left = [(chance.randrange(FAMILIES), str(number)) for number in range(requests)]
    done: list[tuple[float, int]] = []
    errors: list[str] = []

    async def user() -> None:
        while left:
            family, question = left.pop()
            try:
                done.append(await chat(client, model, family, question))
            except (openai.OpenAIError, RuntimeError) as error:
                errors.append("%s: %s" % (type(error).__name__, error))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, left.clear)
    started = time.monotonic()
    await asyncio.gather(*(user() for _ in range(USERS)))
    seconds = time.monotonic() - started
    firsts = sorted(first for first, _tokens in done)
    return {
        "requests": len(done) + len(errors),
        "failed": len(errors),
        "errors": sorted(set(errors))[:5],
        "seconds": round(seconds, 1),
        "tokens_per_second": round(sum(tokens for _first, tokens in done) / seconds),
        "first_token_median_s": round(statistics.median(firsts), 3) if firsts else None,
        "first_token_p90_s": round(firsts[int(0.9 * len(firsts))], 3) if firsts else None,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
