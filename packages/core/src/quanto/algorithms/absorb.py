# SPDX-License-Identifier: Apache-2.0
"""Where the scales of a layer's inputs can go: into what made them, if the block then computes what it did."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..nn.base import QModule
from .step import Block, as_float, first_tensor

__all__ = ["Absorber", "find_absorber", "scale_inputs"]

_LEAST, _USUAL = 8, (32, 64, 80, 96, 128, 256)  # channels of a head
_TRIED, _MOST = 4, 16  # batches, the latter where none of the former reaches the layers


@dataclass(frozen=True)
class Absorber:
    """A module whose output can be divided by one number per channel.

    Attributes:
        name: in the block.
        module: a norm, or a linear layer.
        repeat: how often each channel of it occurs, one head after another, in what the layers read: grouped-query
            attention repeats its values.
        head: channels that are repeated together.
    """

    name: str
    module: nn.Module
    repeat: int = 1
    head: int = 1

    def reduce(self, scale: Tensor) -> Tensor:
        """One number per channel of the module, from one per input of the layers: the mean of its logarithms."""
        if self.repeat == 1:
            return scale
        return scale.log().reshape(-1, self.repeat, self.head).mean(1).exp().flatten()

    def expand(self, scale: Tensor) -> Tensor:
        """The inverse of `reduce`."""
        if self.repeat == 1:
            return scale
        return scale.reshape(-1, 1, self.head).expand(-1, self.repeat, -1).flatten()


@torch.no_grad()
def find_absorber(block: Block, group: list[str]) -> Absorber | None:
    """A module that can take the inverse of scales on the inputs of a group of layers.

    No architecture is listed: each norm and linear layer of the right width is tried with random scales, and taken if
    the float block's output stays what it was, measured by what the same scales do to the layers alone. A router or any
    other reader of the same tensor so excludes itself. Batches that never reach the layers, as those of an expert, tell
    nothing about them, and what other blocks use too is left alone.
    """
    layers = block.layers()
    if any(layers[name] in block.shared for name in group):
        return None
    trial = _Trial(block, group)
    width = layers[group[0]]._slots["weight"].shape[-1]
    found = [
        candidate
        for name, module in trial.module.named_modules()
        if (not name or block.module.get_submodule(name) not in block.shared)
        for candidate in _candidates(name, module, width, group)
    ]
    with as_float(trial.module):
        batches = trial.telling(width) if found else []
        for candidate in sorted(found, key=lambda c: isinstance(c.module, QModule)):
            if batches and all(trial.keeps(candidate, width, index) for index in batches):
                return replace(candidate, module=block.module.get_submodule(candidate.name))
    return None


class _Trial:
    """A float copy of a block, whose weights can be scaled and put back."""

    def __init__(self, block: Block, group: list[str]) -> None:
        self.module = copy.deepcopy(block.module).float()  # in bfloat16 a residual stream would hide what changes
        self.layers: list[Any] = [self.module.get_submodule(name) for name in group]
        self.inputs = block.inputs
        #: batches to what comes out, and how far scales on the layers alone move it
        self.seen: dict[int, tuple[Tensor, float]] = {}

    def telling(self, width: int) -> list[int]:
        """A few batches, of which one at least shows what the layers do; none if there is none."""
        scale = _probe(width, self.layers[0])
        some, more = ([i * len(self.inputs) // n for i in range(n)] for n in (_TRIED, _MOST))
        for index in dict.fromkeys([*some, *more]):
            if index not in some and any(self._shows(i) for i in self.seen):
                break
            before = self._run(index)
            moved = float((self._scaled(None, scale, index) - before).norm())
            if index in some or moved:
                self.seen[index] = before, moved
        return list(self.seen) if any(self._shows(i) for i in self.seen) else []

    def keeps(self, candidate: Absorber, width: int, index: int) -> bool:
        """Whether scales that the candidate takes the inverse of leave a batch's output as it was."""
        scale = candidate.expand(_probe(width // candidate.repeat, self.layers[0]))
        before, moved = self.seen[index]
        changed = float((self._scaled(candidate, scale, index) - before).norm())
        return changed <= 1e-6 * float(before.norm()) + 1e-3 * moved

    def _shows(self, index: int) -> bool:
        before, moved = self.seen[index]
        return moved > 1e-4 * float(before.norm())

    def _scaled(self, candidate: Absorber | None, scale: Tensor, index: int) -> Tensor:
        modules = [*self.layers] if candidate is None else [candidate.module, *self.layers]
        parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        saved = [p.detach().clone() for p in parameters]
        scale_inputs(candidate, self.layers, scale)
        after = self._run(index)
        for parameter, old in zip(parameters, saved, strict=True):
            parameter.copy_(old)
        return after

    def _run(self, index: int) -> Tensor:
        args, kwargs = tree_map_only(Tensor, _float, self.inputs.others[index])
        return first_tensor(self.module(_float(self.inputs.value(index)), *args, **kwargs))


def _probe(width: int, layer: QModule) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return torch.rand(width, generator=torch.Generator().manual_seed(0)).add_(0.5).to(weight.device)


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _candidates(name: str, module: nn.Module, width: int, group: list[str]) -> list[Absorber]:
    weight = module._parameters.get("weight")
    if weight is None or name in group or not weight.is_floating_point():
        return []
    if weight.ndim == 1:
        return [Absorber(name, module)] if weight.numel() == width else []
    if weight.ndim != 2 or not isinstance(module, nn.Linear) or width % weight.shape[0]:
        return []
    repeat = width // weight.shape[0]
    if repeat == 1:
        return [Absorber(name, module)]
    heads = [h for h in range(_LEAST, weight.shape[0] + 1) if weight.shape[0] % h == 0]
    return [Absorber(name, module, repeat, head) for head in sorted(heads, key=lambda h: h not in _USUAL)]


@torch.no_grad()
def scale_inputs(absorber: Absorber | None, layers: list[QModule], scale: Tensor) -> None:
    """Multiplies the input columns of layers by `scale`, `[in]`, and divides the absorber's output by it, if any."""
    if absorber is not None:
        inverse = 1 / absorber.reduce(scale)
        for key in ("weight", "bias"):
            parameter = absorber.module._parameters.get(key)
            if parameter is not None:
                parameter.mul_((inverse if parameter.ndim == 1 else inverse[:, None]).to(parameter.dtype))
    for layer in layers:
        weight = layer._parameters["weight"]
        assert weight is not None
        weight.mul_(scale.to(weight.dtype))
