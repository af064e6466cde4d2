# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a model is split over GPUs: tensor, pipeline and data parallel sizes, and why these. Pure."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Union

from ..toolbox.errors import Refused
from .shape import Shape

Size = Union[int, str, None]


class Parallel(NamedTuple):
    tensor: int
    pipeline: int
    data: int
    why: str

    @property
    def world(self) -> int:
        """Processes, each with a GPU of its own."""
        return self.tensor * self.pipeline * self.data


def choose(gpus: int, shape: Optional[Shape], tensor: Size, pipeline: Size, data: Size, hosts: int = 1) -> Parallel:
    """The sizes for a number of GPUs.

    :param gpus: how many the instance is given on each host; 0: it runs on the CPU.
    :param shape: of the model; None where its config.json is not known before the start.
    :param tensor: a number, or None or ``auto``: as many as the heads allow; ``pipeline``: the same, by what is left of
        the GPUs and by the layers; ``data``: copies of the model, None and ``auto`` mean one.
    :param hosts: how many share the model. Where they choose, a layer is split over the GPUs of a host, and the layers
        are dealt out to the hosts, which says less between them.
    :raises Refused: with the numbers.
    """
    copies = _number("data_parallel_size", data) or 1
    fixed_tensor, fixed_pipeline = _number("tensor_parallel_size", tensor), _number("pipeline_parallel_size", pipeline)
    if hosts > 1:
        if copies > 1:
            raise Refused("data_parallel_size: %d copies of a model on %d hosts; expected 1" % (copies, hosts))
        if fixed_tensor is None and fixed_pipeline is None:
            fixed_tensor = choose(gpus, shape, None, None, 1).tensor
    if gpus % copies:
        raise Refused(
            "data_parallel_size: %d copies of the model do not share %d GPUs evenly; choose a divisor" % (copies, gpus)
        )
    gpus *= hosts
    each = max(gpus // copies, 1)
    if gpus == 0:
        return _checked(Parallel(fixed_tensor or 1, fixed_pipeline or 1, copies, "no GPU"), shape)
    if fixed_tensor is None:
        across = max(each // (fixed_pipeline or 1), 1)
        fitting = [size for size in _divisors(across) if _splits(shape, size)]
        fixed_tensor = max(fitting)
        if fixed_pipeline and fixed_tensor != across:
            raise Refused(
                "%s do not split over the %d GPUs of a stage; choose another pipeline_parallel_size, or %s GPUs"
                % (_heads(shape), across, " or ".join(map(str, fitting)))
            )
    if fixed_pipeline is None:
        fixed_pipeline = max(each // fixed_tensor, 1)
    found = _checked(Parallel(fixed_tensor, fixed_pipeline, copies, _why(each, copies, fixed_tensor, shape)), shape)
    if found.world != gpus:
        chosen = "visible_devices" + (", %d on each of %d hosts" % (gpus // hosts, hosts) if hosts > 1 else "")
        raise Refused(
            "tensor %d × pipeline %d × data %d = %d GPUs, but %d are chosen (%s); let one of the sizes be "
            "auto, or choose %d GPUs"
            % (found.tensor, found.pipeline, found.data, found.world, gpus, chosen, found.world)
        )
    return found


def _checked(found: Parallel, shape: Optional[Shape]) -> Parallel:
    if not _splits(shape, found.tensor):
        raise Refused(
            "tensor_parallel_size: %s do not split over %d GPUs; possible are %s"
            % (_heads(shape), found.tensor, ", ".join(str(size) for size in range(1, 65) if _splits(shape, size)))
        )
    if shape and shape.layers and found.pipeline > shape.layers:
        raise Refused(
            "pipeline_parallel_size: %d stages for %d layers; there can be no more stages than layers"
            % (found.pipeline, shape.layers)
        )
    return found


def _splits(shape: Optional[Shape], size: int) -> bool:
    """Whether the heads split evenly; vLLM copies heads of keys and values to several GPUs where there are too few."""
    if shape is None or not shape.heads:
        return True
    if shape.heads % size:
        return False
    kv_heads = shape.kv_heads or shape.heads
    return bool(shape.latent) or (size % kv_heads == 0 if size >= kv_heads else kv_heads % size == 0)


def _heads(shape: Any) -> str:
    of_keys = "" if shape.heads == shape.kv_heads else " (%s of keys and values)" % shape.kv_heads
    return "the model's %s attention heads%s" % (shape.heads, of_keys)


def _why(each: int, copies: int, tensor: int, shape: Optional[Shape]) -> str:
    words = ["%d GPU%s" % (each, "s"[: each != 1]) + (" for each of %d copies" % copies if copies > 1 else "")]
    if shape is None or not shape.heads:
        words.append("config.json not known before the start")
    elif tensor == each:
        words.append("%d heads split over all of them" % shape.heads)
    else:
        words.append("%d heads (%s of keys and values) split over %d" % (shape.heads, shape.kv_heads, tensor))
    return ", ".join(words)


def _divisors(number: int) -> List[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _number(option: str, value: Size) -> Optional[int]:
    """A size; None for ``auto``."""
    if value is None or value == "auto":
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise Refused("%s: %r is neither a number of 1 or more nor auto" % (option, value))
    return int(value)
