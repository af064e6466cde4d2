# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers the agent checks of HAProxy gateways about the services of this host.

A gateway sends ``UNIT MODEL`` and gets one line: ``up ready 80% maxconn:4``, ``drain``, or ``down #cpu_fallback``. (The
blank before # is needed: HAProxy 2.6 takes ``down#cpu_fallback`` for no answer at all.) A process of this host may send
``?``, which is answered with what the gateways were sent and when, as JSON.

It runs as a user without rights and writes nothing. Only the gateways and this host are answered; a service is asked
at most twice a second, however many gateways ask. A change is announced by a mark, a file that only root can write:
see ``module_utils/serving/drain.py``.

The Ansible collection gpufleet.inference writes this file, and replaces it on its next run.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import re
import stat
import sys
import time

MARKS = "/run/gpufleet-agent"
PATIENCE = 2.0  # seconds that a gateway may take to send its question
FRESH = 0.5  # seconds for which the status of a service is reused
WAIT = 0.4  # seconds for which a question waits for a newer answer of the service
PROBE = 3.0  # seconds that a service may take to answer
STALLS = 3  # timeouts in a row after which a service is down
ALIVE = 10.0  # seconds after its last question for which a gateway still counts
LINE = 512  # bytes of a question, and of a line of metrics
MARK = 4096  # bytes of a mark
BODY = 1 << 20  # bytes of a service's answer
QUESTIONS = 10000  # the most different ones to remember
ASKERS = 64  # open connections of one gateway, and of this host
READY = 3  # answers that end a drain; more would undo what an operator of the gateway declares
LEAST = 5  # per cent: a busy service still gets requests; only drain and down get none
AWAKE = "vllm:engine_sleep_state{"
ROOT = 0
HERE = "this host"  # counts as one asker, however many loopback addresses it has


class Health:
    """What a service said last."""

    def __init__(self, down="", waiting=0.0, cache=0.0):
        self.down = down
        """Why it takes no requests; empty where it does."""
        self.waiting = waiting
        """Requests that wait in it."""
        self.cache = cache
        """Share of its KV cache in use, 0 to 1."""


def answer(mark, health, limit, gateways, ready=True):
    """The line for HAProxy. Pure.

    :param mark: what a run has left for the service: ``state`` drain or down, ``verdict``; empty for nothing.
    :param limit: requests that it takes at a time; 0 where that is not known.
    :param gateways: how many gateways share them.
    :param ready: whether a drain is ended, which would also end one that an operator of the gateway has begun.
    """
    if mark.get("state") == "drain":
        return "drain"
    if mark.get("state") == "down":
        return "down #%s" % word(mark.get("verdict"))
    if health.down:
        return "down #%s" % word(health.down)
    weight = 100.0 * (1.0 - min(max(health.cache, 0.0), 1.0)) / (1.0 + max(health.waiting, 0.0))
    places = " maxconn:%d" % -(-limit // max(gateways, 1)) if limit else ""
    return "up %s%d%%%s" % ("ready " if ready else "", max(LEAST, round(weight)), places)


def word(text):
    """The name of a verdict as HAProxy and its log can take it."""
    return re.sub(r"[^a-z0-9_]", "_", str(text).lower())[:40] or "unknown"


def read_mark(folder, unit):
    """The mark that a run left for a service. A file that root did not write is ignored; one that cannot be opened or
    read counts as a drain."""
    try:
        descriptor = os.open(os.path.join(folder, unit), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        none = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # nothing, a link, a socket
        return {} if none else {"state": "drain"}
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != ROOT:
            return {}
        said = json.loads(os.read(descriptor, MARK).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {"state": "drain"}
    finally:
        os.close(descriptor)
    return said if isinstance(said, dict) else {"state": "drain"}


# --- what the engines say


async def get(place, path):
    """Status and text of one answer, read to its end or its limit.

    :param place: address, port, and a TLS context or None.
    """
    address, port, tls = place
    reader, writer = await asyncio.open_connection(address, port, limit=65536, ssl=tls)
    try:
        host = "[%s]" % address if ":" in address else address
        request = "GET %s HTTP/1.0\r\nHost: %s:%d\r\nConnection: close\r\n\r\n" % (path, host, port)
        writer.write(request.encode("ascii"))
        await writer.drain()
        parts, size = [], 0
        while size < BODY:
            part = await reader.read(65536)
            if not part:
                break
            parts.append(part)
            size += len(part)
    finally:
        writer.close()
    head, _blank, body = b"".join(parts).partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    return int(status.group(1)) if status else 0, body.decode("utf-8", "replace")


def unverified():
    """TLS without a look at the certificate: it names the host as clients know it, and the address is this host's."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def metrics(text):
    """Prometheus text as pairs of name with labels, and value. Pure."""
    for line in text.splitlines():
        name, _blank, value = line.rpartition(" ")
        if len(line) <= LINE and name and not line.startswith("#"):
            try:
                number = float(value)
            except ValueError:
                continue
            if 0 <= number < 1e9:  # nor is it NaN
                yield name, number


def total(samples, *names):
    """The sum of a metric over all its labels, by whichever of its names it has."""
    return sum(value for name, value in samples if name.partition("{")[0] in names)


async def ask_ollama(place):
    status, _text = await get(place, "/api/version")
    return Health("" if status == 200 else "not_ready")


async def ask_vllm(place):
    status, _text = await get(place, "/health")
    if status != 200 and status not in (401, 403):  # without a key it says as much by its 401
        return Health("not_ready")
    status, text = await get(place, "/metrics")
    if status != 200:
        return Health()
    samples = list(metrics(text))
    awake = [value for name, value in samples if name.startswith(AWAKE) and 'sleep_state="awake"' in name]
    asleep = bool(awake) and not any(awake)
    cache = total(samples, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    return Health("asleep" if asleep else "", total(samples, "vllm:num_requests_waiting"), cache)


async def ask_llama_server(place):
    status, _text = await get(place, "/health")
    if status != 200:
        return Health("not_ready")
    status, text = await get(place, "/metrics")
    return Health(waiting=total(metrics(text), "llamacpp:requests_deferred") if status == 200 else 0.0)


ENGINES = {"ollama": ask_ollama, "vllm": ask_vllm, "llama_server": ask_llama_server}


class Service:
    """A service, and what it said last."""

    def __init__(self, unit, config):
        self.unit, self.limit = unit, int(config.get("limit") or 0)
        self.place = (config["address"], int(config["port"]), unverified() if config.get("tls") else None)
        self.ask = ENGINES[config["engine"]]
        self.held = {"state": "drain"} if config.get("held") else {}
        """In place of a mark, for a service whose GPU must not be used."""
        self.health = Health("not_ready")
        self.read = float("-inf")
        self.stalls = 0
        self.probe = None
        self.said = ""
        """Last line for a gateway."""

    async def look(self):
        """What it says now, or what it said last where it takes its time."""
        if self.probe is None and time.monotonic() - self.read > FRESH:
            self.probe = asyncio.ensure_future(self._probe())
        if self.probe is not None:
            await asyncio.wait([self.probe], timeout=WAIT)
        return self.health

    async def _probe(self):
        try:
            self.health = await asyncio.wait_for(self.ask(self.place), PROBE)
            self.stalls = 0
        except asyncio.TimeoutError:
            self.stalls += 1
            if self.stalls >= STALLS:
                self.health = Health("stalled")
        except Exception:  # refused, reset, or whatever a hostile server makes of it: it takes no requests
            self.health, self.stalls = Health("not_ready"), 0
        finally:
            self.read, self.probe = time.monotonic(), None


class Agent:
    """The services and the gateways of this host.

    :param config: ``services``: unit to ``engine``, ``address``, ``port``, ``limit``, ``held``; ``gateways``: name to
        addresses.
    """

    def __init__(self, config, marks=MARKS):
        self.marks = marks
        self.services = {unit: Service(unit, service) for unit, service in config["services"].items()}
        self.gateways = {plain(one): name for name, addresses in config["gateways"].items() for one in addresses}
        self.started = time.monotonic()
        self.asked: dict = dict.fromkeys(config["gateways"])
        """When each gateway last asked anything, on CLOCK_MONOTONIC."""
        self.questions: dict = {}
        """By unit, gateway and model: when that was last asked, when it was last answered with ``drain``, and how often
        with ``ready`` since. A gateway asks for each of its pools, and sends requests to a service in all those that
        have not heard of its drain."""
        self.open: dict = {}
        """Connections by gateway."""

    def asker(self, address):
        """Name of the gateway, or of this host, that asks from an address; None for anybody else."""
        local = HERE if ipaddress.ip_address(address).is_loopback else None
        return self.gateways.get(address, local)

    async def reply(self, line, address):
        """The answer to one question, as text; None closes the connection without one."""
        unit, _blank, model = line.strip().partition(" ")
        if unit == "?":
            return self.report() if ipaddress.ip_address(address).is_loopback else None
        service, gateway = self.services.get(unit) or self.services.get(unit + ".service"), self.gateways.get(address)
        if service is None:
            return "down #unknown_service"
        if gateway is not None:
            self.asked[gateway] = time.monotonic()
        unit = service.unit
        mark = read_mark(self.marks, unit) or service.held
        health = service.health if mark else await service.look()
        model = model.strip()
        known = self.questions.get((unit, gateway, model))
        said = answer(mark, health, service.limit, self._sharing(), known is None or known[2] < READY)
        if gateway is not None:
            self._note(unit, gateway, model, said)
        if said.partition(" ")[0] != service.said.partition(" ")[0]:
            sys.stderr.write("%s: %s\n" % (unit, said))
            sys.stderr.flush()
        service.said = said
        return said

    def _sharing(self):
        now = time.monotonic()
        return sum(1 for then in self.asked.values() if then is not None and now - then < ALIVE)

    def _note(self, unit, gateway, model, said):
        now, key = time.monotonic(), (unit, gateway, model)
        _asked, drained, ready = self.questions.get(key, (now, None, 0))
        if said == "drain":
            drained, ready = now, 0
        self.questions[key] = (now, drained, ready + said.startswith("up ready"))
        if len(self.questions) > QUESTIONS:
            self.questions = {key: times for key, times in self.questions.items() if now - times[0] < ALIVE}
        if len(self.questions) > QUESTIONS:
            self.questions.clear()

    def drained(self, unit):
        """When each gateway had heard, for all of its pools, that a service is drained; None for one that has not."""
        now = time.monotonic()
        found: dict = {}
        for (asked_for, gateway, _model), (asked, drained, _ready) in self.questions.items():
            if asked_for == unit and now - asked < ALIVE:
                earlier = found.get(gateway, drained)
                found[gateway] = None if drained is None or earlier is None else min(drained, earlier)
        return found

    def ready(self, unit):
        """How often each gateway was told since its last drain, in each of its pools, that a service is ready."""
        now = time.monotonic()
        found: dict = {}
        for (asked_for, gateway, _model), (asked, _drained, ready) in self.questions.items():
            if asked_for == unit and now - asked < ALIVE:
                found[gateway] = min(ready, found.get(gateway, ready))
        return found

    def report(self):
        services = {
            unit: {"said": service.said, "drained": self.drained(unit), "ready": self.ready(unit)}
            for unit, service in self.services.items()
        }
        found = {"started": self.started, "gateways": self.asked, "services": services}
        return json.dumps(found, sort_keys=True)


class Asker(asyncio.Protocol):
    """One connection."""

    def __init__(self, agent):
        self.agent, self.line, self.task, self.limit = agent, b"", None, None
        self.address, self.asker = "", None

    def connection_made(self, transport):
        self.transport = transport
        address = plain((transport.get_extra_info("peername") or ("0.0.0.0",))[0])
        asker = self.agent.asker(address)
        if asker is None or self.agent.open.get(asker, 0) >= ASKERS:
            transport.abort()
            return
        self.address, self.asker = address, asker
        self.agent.open[asker] = self.agent.open.get(asker, 0) + 1
        self.limit = asyncio.get_event_loop().call_later(PATIENCE, transport.abort)

    def connection_lost(self, _error):
        if self.limit:
            self.limit.cancel()
        if self.task:
            self.task.cancel()
        if self.asker:
            self.agent.open[self.asker] -= 1

    def data_received(self, data):
        if self.task or not self.address:
            return
        self.line += data
        if b"\n" in self.line:
            self.task = asyncio.ensure_future(self._answer(self.line.partition(b"\n")[0]))
        elif len(self.line) > LINE:
            self.transport.abort()

    async def _answer(self, line):
        said = await self.agent.reply(line.decode("utf-8", "replace"), self.address) if len(line) <= LINE else None
        if said is None:
            self.transport.abort()
        else:
            self.transport.write(said.encode("utf-8") + b"\n")
            self.transport.close()


def plain(address):
    """An address in one spelling, without a zone; an IPv4 address for one that is written as IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)


async def serve(config, marks=MARKS):
    """Serve at the port of the configuration, on all addresses of the host."""
    agent = Agent(config, marks)
    loop = asyncio.get_event_loop()
    addresses = ["0.0.0.0", "::"] if os.path.exists("/proc/net/if_inet6") else ["0.0.0.0"]
    server = await loop.create_server(lambda: Asker(agent), addresses, int(config["port"]), backlog=256)
    async with server:
        await server.serve_forever()


def main(path):
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    asyncio.run(serve(config))


if __name__ == "__main__":
    main(sys.argv[1])
