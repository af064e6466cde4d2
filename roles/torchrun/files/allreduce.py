# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures an all-reduce over all processes of a torchrun job, and the links between its hosts.

    allreduce.py [--mib 1024] [--iterations 20] [--timeout 60]

Uses NCCL if every process has its own GPU, else Gloo. Prints

    RANKS rank=0 local=0 world=4 node=0 master=192.0.2.10
    ALLREDUCE MiB=1024 s=0.00458 algbw=234.4GB/s busbw=351.6GB/s sum_ok=True backend=nccl     process 0 only
    PAIR a=0 b=1 MiB=64 s=0.0057 gbps=11.7GB/s                                                nodes a and b, both ways
"""

import argparse
import datetime
import os
import time

import torch
import torch.distributed as dist

try:
    from torch.distributed.elastic.multiprocessing.errors import record
except ImportError:  # no error file is written then

    def record(function):
        return function


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def all_reduce(size, iterations, device):
    """Mean seconds of one all-reduce of `size` floats, and whether the sum is right."""
    world = dist.get_world_size()
    tensor = torch.full((size,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(tensor)
    good = bool((tensor == world * (world + 1) / 2).all())
    tensor.zero_()
    for _turn in range(3):
        dist.all_reduce(tensor)
    synchronize(device)
    dist.barrier()
    began = time.perf_counter()
    for _turn in range(iterations):
        dist.all_reduce(tensor)
    synchronize(device)
    took = torch.tensor([(time.perf_counter() - began) / iterations, 0.0 if good else 1.0], device=device)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)  # the slowest, and whether any saw a wrong sum
    return took[0].item(), took[1].item() == 0.0


def link(peer, first, size, device):
    """Seconds that two processes take to exchange `size` floats each way; `first` sends first."""
    out, back = torch.ones(size, device=device), torch.empty(size, device=device)
    best = None
    for _turn in range(3):
        synchronize(device)
        began = time.perf_counter()
        if first:
            dist.send(out, peer)
            dist.recv(back, peer)
        else:
            dist.recv(back, peer)
            dist.send(out, peer)
        synchronize(device)
        took = time.perf_counter() - began
        best = took if best is None else min(best, took)
    return best


def rounds(nodes):
    """Every pair of nodes once, in rounds that use no node twice."""
    ring = list(range(nodes)) + ([None] if nodes % 2 else [])
    for _turn in range(len(ring) - 1):
        half = len(ring) // 2
        yield [
            (min(a, b), max(a, b))
            for a, b in zip(ring[:half], reversed(ring[half:]))
            if a is not None and b is not None
        ]
        ring = [ring[0], ring[-1], *ring[1:-1]]


@record
def main():
    options = argparse.ArgumentParser()
    options.add_argument("--mib", type=int, nargs="+", default=[1024])
    options.add_argument("--pair-mib", type=int, default=64)
    options.add_argument("--iterations", type=int, default=20)
    options.add_argument("--timeout", type=int, default=60)
    asked = options.parse_args()
    local, per_node = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    node, master = int(os.environ["GROUP_RANK"]), os.environ["MASTER_ADDR"]
    print(
        "RANKS rank=%s local=%d world=%s node=%d master=%s"
        % (os.environ["RANK"], local, os.environ["WORLD_SIZE"], node, master),
        flush=True,
    )
    more = {"device_id": device} if on_gpu else {}
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=asked.timeout), **more)
    rank, world = dist.get_rank(), dist.get_world_size()
    for mib in asked.mib:
        seconds, good = all_reduce(mib << 18, asked.iterations, device)
        if rank == 0:
            speed = (mib << 20) / seconds / 1e9
            print(
                "ALLREDUCE MiB=%d s=%.6f algbw=%.3fGB/s busbw=%.3fGB/s sum_ok=%s backend=%s"
                % (mib, seconds, speed, speed * 2 * (world - 1) / world, good, backend),
                flush=True,
            )
    nodes = int(os.environ["GROUP_WORLD_SIZE"])
    for pairs in rounds(nodes):
        for a, b in pairs:
            # the first process of each node
            if local == 0 and node in (a, b):
                seconds = link((b if node == a else a) * per_node, node == a, asked.pair_mib << 18, device)
                if node == a:
                    print(
                        "PAIR a=%d b=%d MiB=%d s=%.6f gbps=%.3fGB/s"
                        % (a, b, asked.pair_mib, seconds, 2 * (asked.pair_mib << 20) / seconds / 1e9),
                        flush=True,
                    )
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
