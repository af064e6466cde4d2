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


def choose(
    gpus: int,
    shape: Optional[Shape],
    tensor: Size,
    pipeline: Size,
    data: Size,
    hosts: int = 1,
    *,
    whole_experts: bool = False,
    part: int = 1,
) -> Parallel:
    """The sizes for a number of GPUs.

    :param gpus: how many the instance is given on each host; 0: it runs on the CPU.
    :param shape: of the model; None where its config.json is not known before the start.
    :param tensor: a number, or None or ``auto``: as many as the heads allow; ``pipeline``: the same, by what is left of
        the GPUs and by the layers; ``data``: copies of the model, or of what is not in its experts, which are divided
        among all GPUs; None and ``auto`` mean one.
    :param hosts: how many share the model. Where they choose, a layer is split over the GPUs of a host, and the layers
        are divided among the hosts, which saves traffic between them. Each of several copies stays on one host.
    :param whole_experts: each expert is on one GPU (expert parallel), so that its size does not matter.
    :param part: a GPU's part of an expert or perceptron must be a multiple of this, because of quantised weights.
    :raises Refused: with the numbers.
    """
    copies = _number("data_parallel_size", data) or 1
    fixed_tensor, fixed_pipeline = _number("tensor_parallel_size", tensor), _number("pipeline_parallel_size", pipeline)
    if hosts > 1 and copies > 1 and copies % hosts:
        raise Refused(
            "data_parallel_size: %d copies of a model on %d hosts; expected 1 or a multiple of %d"
            % (copies, hosts, hosts)
        )
    if hosts > 1 and copies == 1 and fixed_tensor is None and fixed_pipeline is None:
        fixed_tensor = choose(gpus, shape, None, None, 1, whole_experts=whole_experts, part=part).tensor
    gpus *= hosts
    if gpus % copies:
        raise Refused(
            "data_parallel_size: %d copies of the model do not share %d GPUs evenly; choose a divisor" % (copies, gpus)
        )
    each = max(gpus // copies, 1)
    rules = _Rules(shape, copies, whole_experts, part)
    if gpus == 0:
        return _checked(Parallel(fixed_tensor or 1, fixed_pipeline or 1, copies, "no GPU"), rules)
    if fixed_tensor is None:
        across = max(each // (fixed_pipeline or 1), 1)
        fitting = [size for size in _divisors(across) if not rules.against(size)] or [1]
        fixed_tensor = max(fitting)
        if fixed_pipeline and fixed_tensor != across:
            raise Refused(
                "%s over the %d GPUs of a stage; choose another pipeline_parallel_size, or %s GPUs"
                % (rules.against(across), across, " or ".join(map(str, fitting)))
            )
    if fixed_pipeline is None:
        fixed_pipeline = max(each // fixed_tensor, 1)
    found = _checked(Parallel(fixed_tensor, fixed_pipeline, copies, _why(each, copies, fixed_tensor, shape)), rules)
    if found.world != gpus:
        chosen = "visible_devices" + (", %d on each of %d hosts" % (gpus // hosts, hosts) if hosts > 1 else "")
        raise Refused(
            "tensor %d × pipeline %d × data %d = %d GPUs, but %d are chosen (%s); let one of the sizes be "
            "auto, or choose %d GPUs"
            % (found.tensor, found.pipeline, found.data, found.world, gpus, chosen, found.world)
        )
    return found


def _checked(found: Parallel, rules: "_Rules") -> Parallel:
    against = rules.against(found.tensor)
    if against:
        possible = [str(size) for size in range(1, 65) if not rules.against(size)]
        raise Refused(
            "tensor_parallel_size: %s over %d GPUs; possible are %s%s"
            % (
                *(against, found.tensor * (found.data if "experts" in against else 1)),
                ", ".join(possible) or "none with data_parallel_size %d" % found.data,
                ", or whole experts on each GPU (expert parallel)" if "experts" in against else "",
            )
        )
    layers = rules.shape.layers if rules.shape else None
    if layers and found.pipeline > layers:
        raise Refused(
            "pipeline_parallel_size: %d stages for %d layers; there can be no more stages than layers"
            % (found.pipeline, layers)
        )
    return found


class _Rules(NamedTuple):
    """What a layer may be split over."""

    shape: Optional[Shape]
    copies: int
    whole_experts: bool
    part: int

    def against(self, size: int) -> str:
        """What does not split over so many GPUs, as the beginning of a sentence; empty if all does."""
        if self.shape is None:
            return ""
        return self._heads(self.shape, size) or self._inner(self.shape, size)

    def _heads(self, shape: Shape, size: int) -> str:
        """vLLM copies heads of keys and values to several GPUs where there are too few."""
        if not shape.heads:
            return ""
        kv_heads = shape.kv_heads or shape.heads
        splits = bool(shape.latent) or (size % kv_heads == 0 if size >= kv_heads else kv_heads % size == 0)
        return "" if splits and not shape.heads % size else "%s do not split" % _heads(shape)

    def _inner(self, shape: Shape, size: int) -> str:
        """Experts are split over the GPUs of all copies."""
        width, parts = shape.inner_size, size * (self.copies if shape.experts else 1)
        if not width or parts == 1 or (self.whole_experts if shape.experts else self.part == 1):
            return ""
        if width % (self.part * parts) == 0:
            return ""
        what = "experts" if shape.experts else "perceptrons"
        multiples = " into multiples of %d (their blocks of quantised weights)" % self.part if self.part > 1 else ""
        return "the model's %s of width %d do not split%s" % (what, width, multiples)


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
