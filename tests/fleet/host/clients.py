# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the clients `ollama` and `openai` get of a server; runs in a virtual environment that has both.

clients.py URL MODEL     one JSON object
"""

from __future__ import annotations

import json
import sys

import ollama
import openai_client


def main(url, model):
    told = {}
    client = ollama.Client(host=url, timeout=120)
    options = {"num_predict": 5, "seed": 1}
    told["list"] = [one.model for one in client.list().models]
    told["show"] = client.show(model).details.family
    answer = client.generate(model=model, prompt="hello", options=options)
    told["generate"] = [answer.done, answer.eval_count, len(answer.response)]
    told["stream"] = [part.done for part in client.generate(model=model, prompt="hello", options=options, stream=True)]
    said = client.chat(model=model, messages=[{"role": "user", "content": "hello"}], options=options)
    told["chat"] = [said.message.role, said.eval_count]
    told["ps"] = [one.model for one in client.ps().models]
    try:
        client.embed(model=model, input="one")
    except ollama.ResponseError as error:  # a model that generates text has none
        told["embed"] = error.status_code
    try:
        client.generate(model="no-such-model", prompt="hello")
    except ollama.ResponseError as error:
        told["missing"] = error.status_code

    told.update({"openai " + name: got for name, got in openai_client.ask(url, model, "unused").items()})
    print(json.dumps(told))


main(*sys.argv[1:])
