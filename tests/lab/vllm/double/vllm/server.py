# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for a vLLM server over simulated GPUs: the same options, file, paths, metrics, log lines and ways to end.

What the real one says (vLLM 0.32.0) is recorded in tests/unit/fixtures/vllm; tests/unit/lab/test_vllm_double.py holds
this double to it: the list of options, answers with and without the key, metrics, last words and exit status.
The real one binds its port at once, listens only when it is ready, answers /health for as long as the front end lives,
and ends with status 0 when its engine died. What differs here: no model is read but config.json, no token is computed,
it is up in a second, and it reads only YAML whose values are JSON.

Of one model on several hosts (nodes.json; a real one on two nodes, killed and stopped) it has this: each waits for the
others at the rendezvous; a node whose worker dies ends with status 0; node 0 does not notice before the next request,
which it answers with status 500, and ends with status 0; the others do not notice that node 0 has ended, and stay.

GPU memory is claimed from the simulator (nvml_sim) by one process per GPU, named VLLM::Worker, as the real ones are.

/etc/nvidia-sim/vllm on the host tells it to misbehave, one line NAME[:N] [OPTION=VALUE]; with the latter only a server
with that option has the fault:

    slow-start:SECONDS   loading takes so long, with a line and more memory each second
    hung-start           a line, some memory, and then nothing for ever
    oom                  CUDA runs out of memory while loading: exit status 1
    cpu                  serves without any GPU memory
    dead-engine          /health and /v1/models go on answering 200, no token ever comes
    liar                 an answer with a token that no engine has counted
    slow-token:SECONDS   so long for each answer
    deaf                 SIGTERM is ignored
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import inspect
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = os.environ.get("NVIDIA_SIM_ROOT", "")
sys.path.insert(1, os.environ.get("NVIDIA_SIM_LIB", "/usr/local/lib/nvidia-sim"))
GUARDED = ("/v1", "/v2", "/inference", "/cohere")
GIB = 1 << 30
TASKS = {
    "embed": ("/v1/embeddings", "/score", "/pooling"),
    "classify": ("/classify", "/pooling"),
    "transcribe": ("/v1/audio/transcriptions",),
}
"""Paths of a model that generates no text, by --convert; the last is this double's own, for a model such as Whisper."""
RESULTS = {
    "/v1/embeddings": {"object": "embedding", "embedding": [0.1] * 128},
    "/score": {"object": "score", "score": 1.0},
    "/classify": {"label": "LABEL_1", "probs": [0.0, 1.0], "num_classes": 2},
    "/pooling": {"object": "pooling", "data": [0.1] * 128},
}
DTYPES = ("auto", "bfloat16", "float", "float16", "float32", "half")


def log(text, who="APIServer", level="INFO"):
    now = time.strftime("%m-%d %H:%M:%S")
    sys.stdout.write("(%s pid=%d) %s %s [double.py:1] %s\n" % (who, os.getpid(), level, now, text))
    sys.stdout.flush()


def fault_of(options):
    """The fault for a server with these options: {"slow-start": "20"}; nothing without one."""
    try:
        words = Path(ROOT + "/etc/nvidia-sim/vllm").read_text().split()
    except OSError:
        return {}
    name, _, number = words[0].partition(":") if words else ("", "", "")
    key, _, value = words[1].partition("=") if len(words) > 1 else ("", "", "")
    return {name: number} if name and (not key or str(options.get(key.replace("-", "_"))) == value) else {}


# --- options


def read_config(path, known=()):
    """A configuration file as words of the command line, by the real one's rules.

    `known` are the options of the parser that reads it: of `vllm serve` that is the one above, which has none of them.
    """
    if path.rpartition(".")[2] not in ("yaml", "yml"):
        raise ValueError("Config file must be of a yaml/yml type. %s supplied" % path.rpartition(".")[2])
    words = []
    for line in Path(path).read_text().splitlines():
        key, colon, value = line.partition(": ")
        if line.startswith("#") or not colon:
            continue
        value = json.loads(value)
        if isinstance(value, bool):
            words += ["--" + key] if value else ["--no-" + key] if "--no-" + key in known else []
        elif isinstance(value, list):
            words += ["--" + key, *map(str, value)] if value else []
        else:
            words += ["--" + key, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def parser():
    """With every option of the recorded list; some have a type or choices."""
    made = argparse.ArgumentParser(prog="api_server.py", usage="api_server.py [options] [model_tag]")
    made.add_argument("model_tag", nargs="?")
    listed = json.loads(Path(__file__).with_name("options.json").read_text())
    types = {"--max-num-seqs": int, "--max-num-batched-tokens": int, "--port": int, "--tensor-parallel-size": int}
    types.update({"--pipeline-parallel-size": int, "--data-parallel-size": int, "--gpu-memory-utilization": float})
    types.update(dict.fromkeys(("--shutdown-timeout", "--nnodes", "--node-rank", "--master-port"), int))
    several = ("--served-model-name", "--middleware", "--api-key", "--allowed-origins", "--lora-modules")
    for name, bare in listed.items():
        if not name.startswith("--") or name == "--help":
            continue
        if bare and name.startswith("--no-") and "--" + name[5:] in listed:
            made.add_argument(name, action="store_false", dest=name[5:].replace("-", "_"), default=None)
        elif bare:
            made.add_argument(name, action="store_true", default=None)
        else:
            more = {"nargs": "+"} if name in several else {"type": types.get(name, str)}
            if name == "--dtype":
                more = {"choices": DTYPES}
            made.add_argument(name, **more)
    return made


def options_of(words):
    known = [] if words[:1] == ["serve"] else parser()._option_string_actions
    if words[:1] == ["serve"]:
        words = words[1:]
    if "--config" in words:  # with "=", as in the real one, it is not seen
        at = words.index("--config")
        words = read_config(words[at + 1], known) + words[:at] + words[at + 2 :]
    words = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    found = vars(parser().parse_args(words))
    defaults = {"port": 8000, "gpu_memory_utilization": 0.92, "shutdown_timeout": 0, "model": "Qwen/Qwen3-0.6B"}
    sizes = dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "nnodes"), 1)
    sizes.update(node_rank=0, master_addr="127.0.0.1", master_port=29501, headless=False)
    given = {key: value for key, value in found.items() if value is not None}
    return {**defaults, **sizes, **({"model": given["model_tag"]} if "model_tag" in given else {}), **given}


def check(options):
    """What the real one finds wrong when it has read the model's config.json."""
    path = Path(options["model"], "config.json")
    if not path.is_file():
        raise OSError("Repo id must be in the form 'repo_name' or 'namespace/repo_name': '%s'." % options["model"])
    config = json.loads(path.read_text())
    heads, size = config["num_attention_heads"], options["tensor_parallel_size"]
    if heads % size:
        raise ValueError(
            "1 validation error for VllmConfig\n  Value error, Total number of attention heads (%d) must be divisible "
            "by tensor parallel size (%d)." % (heads, size)
        )
    derived = config["max_position_embeddings"]
    length = int(options.get("max_model_len", derived))
    if length > derived and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        raise ValueError(
            "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (%d) is greater than the "
            "derived max_model_len (max_position_embeddings=%s)." % (length, float(derived))
        )
    return length


# --- several hosts


class Nodes:
    """The nodes of one model, at the rendezvous of node 0."""

    def __init__(self, options):
        self.count, self.rank = options["nnodes"], options["node_rank"]
        self.place = (options["master_addr"], options["master_port"])
        self.others = []

    def meet(self, ended):
        """Wait for the others, or to be told to end."""
        if self.count > 1 and not self.rank:
            with socket.create_server(("", self.place[1])) as listener:
                listener.settimeout(0.2)
                while len(self.others) < self.count - 1 and not ended.is_set():
                    try:
                        self.others.append(listener.accept()[0])
                    except socket.timeout:
                        continue
        elif self.count > 1:
            where = "%s:%d" % self.place
            log("Launching vLLM (v0.32.0) headless multiproc executor, with head node address %s for torch.distributed "
                "process group." % where, "MainProcess")  # fmt: skip
            while not self.others and not ended.wait(0.1):
                try:
                    self.others = [socket.create_connection(self.place)]
                except OSError:
                    continue

    def lost(self):
        """Whether another node's process has closed its connection."""
        for other in self.others:
            try:
                if not other.recv(1, socket.MSG_DONTWAIT):
                    return True
            except BlockingIOError:
                continue
            except OSError:
                return True
        return False


# --- workers


def set_name(name):
    ctypes.CDLL(None).prctl(15, name.encode()[:15])  # PR_SET_NAME


class Workers:
    """A process for each GPU, which holds its memory until it is told to end or its father does."""

    def __init__(self, options, fault):
        self.options, self.fault, self.pids = options, fault, []

    def start(self):
        count = 1
        for size in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
            count *= self.options[size]
        count //= self.options["nnodes"]
        visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
        if not visible or "cpu" in self.fault:
            return
        import nvml_sim

        if count > len(visible):
            raise ValueError("World size (%d) is larger than the number of available GPUs (%d)" % (count, len(visible)))
        nvml, devices = nvml_sim.Nvml(), []
        for word in visible[:count]:
            found = [one for one in nvml.devices if one.uuid == word or word == str(one.index)]
            if not found:
                raise RuntimeError("No CUDA GPUs are available")
            devices.append(found[0])
        for number, device in enumerate(devices):
            self._fork(nvml_sim, number, device)

    def _fork(self, nvml_sim, number, device):
        share, memory = self.options["gpu_memory_utilization"], device.memory
        wanted = math.ceil(memory["total"] * share)
        if memory["free"] < wanted:
            raise ValueError(
                "Free memory on device cuda:%d (%.2f/%.2f GiB) on startup is less than desired GPU memory utilization "
                "(%s, %.2f GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
                % (number, memory["free"] / GIB, memory["total"] / GIB, share, wanted / GIB)
            )
        uuid, father = device.uuid, os.getpid()
        loading = float(self.fault.get("slow-start") or 0.2)
        pid = os.fork()
        if pid:
            self.pids.append(pid)
            return
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in self.fault else signal.SIG_DFL)
        for number_, part in ((signal.SIGUSR1, wanted // 30), (signal.SIGUSR2, wanted)):
            signal.signal(number_, lambda *_, part=part: nvml_sim.claim(os.getpid(), uuid, part))
        set_name("VLLM::Worker")
        steps = max(1, int(loading))
        for step in range(1, steps + 1):
            nvml_sim.claim(os.getpid(), uuid, wanted * step // steps)
            if "hung-start" in self.fault:
                break
            if not number:
                log("Loading safetensors checkpoint shards: %d/%d" % (step, steps), "Worker")
            time.sleep(loading / steps)
        while os.getppid() == father:
            time.sleep(0.5)
        os._exit(0)

    def gone(self):
        """Whether one has died; a real one ends at once upon SIGTERM, whatever it computes."""
        for pid in self.pids:
            try:
                if Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0] == "Z":
                    return True
            except OSError:
                return True
        return False

    def alive(self):
        """Whether all are there; upon a death the front end ends, with status 0."""
        return all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in self.pids)

    def stop(self):
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        self.pids = []


# --- the API


class Api:
    def __init__(self, options, length, fault, nodes, workers):
        self.options, self.length, self.fault, self.nodes, self.workers = options, length, fault, nodes, workers
        self.dead = False
        keys = options.get("api_key") or [os.environ.get("VLLM_API_KEY")]
        self.keys = {hashlib.sha256(key.encode()).digest() for key in keys if key}
        self.names = list(options.get("served_model_name") or [options["model"]])
        self.names += [json.loads(adapter)["name"] for adapter in options.get("lora_modules") or ()]
        self.running = self.generated = self.requests = 0
        self.awake = threading.Event()
        self.awake.set()
        self.stopping = False
        self.lock = threading.Lock()
        self.guards = []
        for name in options.get("middleware") or ():
            module, _, member = name.rpartition(".")
            self.guards.append(getattr(importlib.import_module(module), member))

    def refused(self, method, path, headers):
        """Whether the key is asked for and is not there; middleware is asked as the real one's would be."""
        for guard in self.guards:
            assert inspect.isclass(guard)
            if run_guard(guard, method, path, headers):
                return True
        if method == "OPTIONS" or not self.keys or not path.startswith(GUARDED):
            return False
        scheme, _, key = (headers.get("Authorization") or "").partition(" ")
        return scheme.lower() != "bearer" or hashlib.sha256(key.encode()).digest() not in self.keys

    def answer(self, method, path, body):
        """(status, document or text)."""
        if path in ("/health", "/ping"):
            return 200, ""
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [self._model(name) for name in self.names]}
        if path == "/metrics":
            return 200, self._metrics()
        if path == "/tokenize":
            return 200, {"count": 1, "max_model_len": self.length, "tokens": [1], "token_strs": None}
        if path in ("/is_sleeping", "/sleep", "/wake_up") and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            return self._sleep(path)
        task = self.options.get("convert")
        if task is None and path in ("/v1/chat/completions", "/v1/completions", "/invocations"):
            return self._generate(path, body or {})
        if path in TASKS.get(task, ()) and method == "POST":
            return self._pool(path, body or {})
        return 404, {"detail": "Not Found"}

    def _model(self, name):
        root = self.options["model"]
        return {"id": name, "object": "model", "owned_by": "vllm", "root": root, "max_model_len": self.length}

    def _metrics(self):
        label = '{engine="0",model_name="%s"}' % self.names[0]
        lines = []
        for name, kind, value in (
            ("vllm:num_requests_running", "gauge", self.running),
            ("vllm:num_requests_waiting", "gauge", 0),
            ("vllm:generation_tokens_total", "counter", self.generated),
            ("vllm:kv_cache_usage_perc", "gauge", 0),
        ):
            lines += ["# HELP %s double" % name, "# TYPE %s %s" % (name, kind), "%s%s %.1f" % (name, label, value)]
        state = 'vllm:engine_sleep_state{engine="0",model_name="%s",sleep_state="awake"} %.1f'
        lines.append(state % (self.names[0], self.awake.is_set()))
        return "\n".join(lines) + "\n"

    def _sleep(self, path):
        """Put it to sleep or wake it; asleep it keeps requests waiting, and its workers hold little memory."""
        if path == "/is_sleeping":
            return 200, {"is_sleeping": not self.awake.is_set()}
        (self.awake.set if path == "/wake_up" else self.awake.clear)()
        for pid in self.workers.pids:
            os.kill(pid, signal.SIGUSR2 if path == "/wake_up" else signal.SIGUSR1)
        if path == "/sleep":
            return 200, {"status": "sleeping", "level": 1}
        return 200, {"status": "awake", "tags": None}

    def _pool(self, path, body):
        """One request of a model that generates no text."""
        if path not in RESULTS:
            return 400, {"error": {"message": "[{'msg': 'Field required'}]", "type": "Bad Request", "code": 400}}
        if body.get("model", self.names[0]) not in self.names:
            words = "The model `%s` does not exist." % body["model"]
            return 404, {"error": {"message": words, "type": "NotFoundError", "param": None, "code": 404}}
        if "dead-engine" in self.fault:
            time.sleep(1 << 20)  # as a real one, whose front end never answers
        read = 8 if path == "/score" else 4
        usage = {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0}
        data = [{"index": 0, **RESULTS[path]}]
        return 200, {"id": "pool-0", "object": "list", "model": self.names[0], "data": data, "usage": usage}

    def _fatal(self):
        self.dead = True
        words = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        log("EngineCore encountered a fatal error.", "EngineCore", "ERROR")
        return 500, {"error": {"message": words, "type": "InternalServerError", "param": None, "code": 500}}

    def _generate(self, path, body):
        model, wanted = body.get("model", self.names[0]), int(body.get("max_tokens") or 16)
        if model not in self.names:
            words = "The model `%s` does not exist. Valid aliases: %s." % (model, ", ".join(self.names))
            return 404, {"error": {"message": words, "type": "NotFoundError", "param": "model", "code": 404}}
        if wanted > self.length:
            words = "max_tokens=%d cannot be greater than max_model_len=%d." % (wanted, self.length)
            return 400, {"error": {"message": words, "type": "BadRequestError", "param": "max_tokens", "code": 400}}
        if self.stopping:
            words = "cannot schedule new futures after shutdown"
            return 500, {"error": {"message": words, "type": "InternalServerError", "param": None, "code": 500}}
        if self.nodes.lost():
            return self._fatal()
        with self.lock:
            self.running += 1
        try:
            if "dead-engine" in self.fault:
                time.sleep(1 << 20)  # as a real one, whose front end never answers
            self.awake.wait()
            time.sleep(float(self.fault.get("slow-token") or 0.01))
            if self.workers.gone():
                return self._fatal()
        finally:
            with self.lock:
                self.running -= 1
                self.generated += 0 if "liar" in self.fault else wanted
        chat = path != "/v1/completions"
        prompt = 21 if chat else 8
        choice = {"message": {"role": "assistant", "content": "word"}} if chat else {"text": "word"}
        return 200, {
            "id": "chatcmpl-0" if chat else "cmpl-0",
            "object": "chat.completion" if chat else "text_completion",
            "model": model,
            "choices": [{"index": 0, "finish_reason": "length", **choice}],
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt + wanted, "completion_tokens": wanted},
        }


def run_guard(guard, method, path, headers):
    """Whether a middleware class answers by itself, instead of giving the request on."""
    import asyncio

    given = []

    async def app(scope, receive, send):
        given.append(True)

    async def send(message):
        pass

    listed = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": listed}
    asyncio.run(guard(app)(scope, None, send))
    return not given


def handler(api):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            if api.refused(self.command, path, self.headers):
                status, document = 401, {"error": "Unauthorized"}
            else:
                status, document = api.answer(self.command, path, json.loads(raw) if raw else None)
            text = document if isinstance(document, str) else json.dumps(document)
            kind = "text/plain; charset=utf-8" if isinstance(document, str) else "application/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_OPTIONS = do_GET

        def log_message(self, form, *words):
            sys.stdout.write("INFO:     %s - %s\n" % (self.client_address[0], form % words))
            sys.stdout.flush()

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, sock, made):
        super().__init__(sock.getsockname(), made, bind_and_activate=False)
        self.socket.close()
        self.socket = sock


# --- the process


def headless(workers, ended):
    """A node without an API stays until it is told to end, or one of its own workers has died."""
    while not ended.wait(0.2):
        if not workers.alive():
            words = "Worker proc VllmWorker-1 died unexpectedly (exit code: None), shutting down executor."
            log(words, "MainProcess", "ERROR")
            break
    workers.stop()
    return 0


def main():
    options = options_of(sys.argv[1:])
    fault = fault_of(options)
    log("version 0.32.0")
    shown = {key: "<secret>" if key == "api_key" else value for key, value in options.items()}
    log("non-default args: %s" % shown)
    workers, nodes = Workers(options, fault), Nodes(options)
    ended = threading.Event()
    try:
        family = socket.AF_INET6 if ":" in options.get("host", "") else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not options["headless"]:
            sock.bind((options.get("host", ""), options["port"]))
        length = check(options)
        log("Using max model len %d" % length)
        if "deaf" in fault:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, lambda *_: ended.set())
        nodes.meet(ended)
        workers.start()
        if "oom" in fault:
            raise RuntimeError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB"
            )
        if "hung-start" in fault:
            ended.wait()
        until = time.monotonic() + float(fault.get("slow-start") or 0.3)
        while time.monotonic() < until and not ended.wait(0.05):
            pass
        if options["headless"]:
            raise SystemExit(headless(workers, ended))
        api = Api(options, length, fault, nodes, workers)
    except (ValueError, OSError, RuntimeError) as error:
        workers.stop()
        if isinstance(error, (ValueError, RuntimeError)) and "validation error" not in str(error):
            for line in ("EngineCore failed to start.", "%s: %s" % (type(error).__name__, error)):
                log(line, "EngineCore", "ERROR")
            error = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
        kind = (
            "pydantic_core._pydantic_core.ValidationError" if "validation error" in str(error) else type(error).__name__
        )
        sys.stderr.write("Traceback (most recent call last):\n%s: %s\n" % (kind, error))
        sys.stderr.flush()
        os._exit(1)
    if not ended.is_set():
        log("Starting vLLM server on http://%s:%d" % (options.get("host", "0.0.0.0"), options["port"]))
        sock.listen(128)
        server = Server(sock, handler(api))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        while not ended.wait(0.2) and workers.alive() and not api.dead:
            pass
    drain = options["shutdown_timeout"]
    log("[shutdown] API server: stopping engine client mode=%s timeout=%ss" % ("drain" if drain else "abort", drain))
    api.stopping = True
    until = time.monotonic() + drain
    while api.running and time.monotonic() < until:
        time.sleep(0.05)
    workers.stop()
    log("Application shutdown complete.")
    os._exit(0)


if __name__ == "__main__":
    main()
