# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users with the clients `openai` and `ollama`, streaming and plain, until standard input ends; `clients.py` starts it.

users.py OPTIONS      a line after as many answers as there are users, at the end one JSON object
    urls      the gateways; a user has one, and the next one after a fault if `again` is set
    key, ca   the API key; the file with the certificate, if the gateways speak TLS
    ollama, openai      the models to ask for by each API
    users, tokens       how many users, and how long an answer is
    again     how often a user asks again after a fault
"""

from __future__ import annotations

import collections
import itertools
import json
import ssl
import sys
import threading

import httpx
import ollama
import openai

TIMEOUT = 60


class Cut(Exception):
    """An answer ended before its end."""


class User:
    """One user: one API, streaming or plain, one model after the other."""

    def __init__(self, number, options):
        self.api, self.stream = ("ollama", "openai")[number % 2], number // 2 % 2 == 0
        self.kind = "%s, %s" % (self.api, "streaming" if self.stream else "plain")
        self.models = itertools.cycle(options[self.api])
        first = number // 4 % len(options["urls"])
        urls = options["urls"][first:] + options["urls"][:first]
        self.clients = [self.client(url, options) for url in urls]
        self.tokens, self.again = options["tokens"], options["again"]

    def client(self, url, options):
        tls = ssl.create_default_context(cafile=options["ca"]) if options["ca"] else True
        if self.api == "ollama":
            header = {"Authorization": "Bearer " + options["key"]}
            return ollama.Client(host=url, headers=header, verify=tls, timeout=TIMEOUT, trust_env=False)
        http = httpx.Client(verify=tls, timeout=TIMEOUT, trust_env=False)
        return openai.OpenAI(base_url=url + "/v1", api_key=options["key"], http_client=http, max_retries=0)

    def ask(self, client, model):
        """One answer, whole; any exception says what is wrong with it."""
        if self.api == "ollama":
            found = client.generate(
                model=model, prompt="hello", stream=self.stream, options={"num_predict": self.tokens}
            )
            ended = [part.done for part in found] if self.stream else [found.done]
        else:
            words = [{"role": "user", "content": "hello"}]
            found = client.chat.completions.create(
                model=model, messages=words, stream=self.stream, max_tokens=self.tokens
            )
            parts = found if self.stream else [found]
            ended = [part.choices[0].finish_reason for part in parts if part.choices]
        if not ended or not ended[-1]:
            raise Cut("the answer has no end")


class Load:
    """All users, and what became of their requests."""

    def __init__(self, options):
        self.users = [User(number, options) for number in range(options["users"])]
        self.whole = collections.Counter()
        self.faults, self.lost = [], 0
        self.ended = threading.Event()
        self.answered = threading.Semaphore(0)

    def run(self, user):
        """Ask on and on; the first answer may come from a model that is loaded only now."""
        while not self.ended.is_set():
            model = next(user.models)
            if any(self.tried(user, model) for _ in range(user.again + 1)):
                self.whole[user.kind] += 1
            else:
                self.lost += 1
            self.answered.release()

    def tried(self, user, model):
        """Whether the user got a whole answer; if not, the next gateway is asked from now on."""
        try:
            user.ask(user.clients[0], model)
            return True
        except (Cut, httpx.HTTPError, openai.APIError, ollama.ResponseError, ConnectionError) as error:
            self.faults.append("%s: %s, %s: %s" % (kind_of(error), user.kind, model, str(error)[:200]))
            user.clients.append(user.clients.pop(0))
            self.ended.wait(0.1)  # as a person would, not a loop
            return False


def kind_of(error):
    """``refused``: no connection, or an answer that is an error; ``cut``: an answer that had begun, or was awaited."""
    status = getattr(error, "status_code", None)
    no_connection = isinstance(error, ConnectionError) or any(
        isinstance(one, httpx.ConnectError) for one in (error, error.__cause__)
    )
    return "refused" if no_connection or (status and status > 0) else "cut"


def main(words):
    load = Load(json.loads(words))
    threads = [threading.Thread(target=load.run, args=(user,)) for user in load.users]
    for thread in threads:
        thread.start()
    for _ in threads:
        load.answered.acquire()
    print("under load", flush=True)
    sys.stdin.read()
    load.ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"whole": load.whole, "faults": load.faults, "lost": load.lost}))


if __name__ == "__main__":
    main(sys.argv[1])
