# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A training of a few steps with checkpoints, for the tests of torchrun jobs: train.py FOLDER STEPS SECONDS_A_STEP

Learns y = 3x by averaging gradients over all processes. Every host keeps a checkpoint in FOLDER; after a restart all go
on from the newest one that any of them has. At its end each process leaves done-RANK there, with what it has learnt.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


def load(path):
    try:
        return torch.load(path)
    except FileNotFoundError:
        return {"step": 0, "weight": torch.zeros(1)}


def save(path, state):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


@record
def main():
    folder, steps, pace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    rank, local, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    node = int(os.environ["GROUP_RANK"])
    print("RANKS rank=%d local=%d world=%d node=%d" % (rank, local, world, node), flush=True)
    os.makedirs(folder, exist_ok=True)
    dist.init_process_group("gloo")
    path = os.path.join(folder, "checkpoint.pt")
    state = load(path)
    everyone = [None] * world
    dist.all_gather_object(everyone, (state["step"], rank, state["weight"]))
    step, _rank, weight = max(everyone, key=lambda one: one[:2])
    print("from step %d" % step, flush=True)
    torch.manual_seed(rank)
    while step < steps:
        x = torch.rand(8)
        gradient = (2 * (weight * x - 3 * x) * x).mean().reshape(1)
        dist.all_reduce(gradient)
        weight = weight - 0.5 * gradient / world
        step += 1
        if local == 0:
            save(path, {"step": step, "weight": weight})
        time.sleep(pace)
    done = {
        "rank": rank, "local_rank": local, "node_rank": node, "world": world, "step": step, "weight": weight.item(),
        "restarts": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
    }  # fmt: skip
    with open(os.path.join(folder, "done-%d" % rank), "w", encoding="utf-8") as stream:
        json.dump(done, stream)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
