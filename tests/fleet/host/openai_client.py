# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the client `openai` gets of a server; runs in a virtual environment that has it.

openai_client.py URL MODEL KEY     one JSON object; "wrong key" is the answer to another one
"""

from __future__ import annotations

import json
import sys

import openai


def ask(url, model, key):
    told = {}
    client = openai.OpenAI(base_url=url + "/v1", api_key=key, timeout=120, max_retries=0)
    told["models"] = [one.id for one in client.models.list()]
    messages = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=5, seed=1)
    told["chat"] = [chat.choices[0].finish_reason, chat.usage.completion_tokens]
    parts = list(client.chat.completions.create(model=model, messages=messages, max_tokens=5, stream=True))
    told["stream"] = [parts[0].object, parts[-1].choices[0].finish_reason]
    text = client.completions.create(model=model, prompt="hello", max_tokens=5)
    told["completion"] = [text.choices[0].finish_reason, text.usage.completion_tokens]
    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
    except openai.NotFoundError as error:
        told["missing"] = error.status_code
    return told


def main(url, model, key):
    told = ask(url, model, key)
    try:
        openai.OpenAI(base_url=url + "/v1", api_key=key + "x", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        told["wrong key"] = error.status_code
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
