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
    the float block's output stays what it was. A router or any other reader of the same tensor so excludes itself.
    """
    copied = copy.deepcopy(block.module).float()  # in bfloat16 a residual stream would hide what changes
    args, kwargs = tree_map_only(Tensor, _float, block.inputs.others[0])
    value = _float(block.inputs.values[0])
    width = block.layers()[group[0]]._slots["weight"].shape[-1]
    found = [c for name, module in copied.named_modules() for c in _candidates(name, module, width, group)]
    layers: list[Any] = [copied.get_submodule(name) for name in group]
    with as_float(copied):
        before = first_tensor(copied(value, *args, **kwargs))
        for candidate in sorted(found, key=lambda c: isinstance(c.module, QModule)):
            channels = width // candidate.repeat
            probe = torch.rand(channels, generator=torch.Generator().manual_seed(0)).add_(0.5).to(before.device)
            parameters = [p for m in (candidate.module, *layers) for p in m._parameters.values() if p is not None]
            saved = [p.detach().clone() for p in parameters]
            scale_inputs(candidate, layers, candidate.expand(probe))
            after = first_tensor(copied(value, *args, **kwargs))
            for parameter, old in zip(parameters, saved, strict=True):
                parameter.copy_(old)
            if (after - before).norm() <= 1e-4 * before.norm():
                return replace(candidate, module=block.module.get_submodule(candidate.name))
    return None


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
    heads = [h for h in (32, 64, 80, 96, 128, 256) if weight.shape[0] % h == 0]
    return [Absorber(name, module, repeat, head) for head in heads]


@torch.no_grad()
def scale_inputs(absorber: Absorber, layers: list[QModule], scale: Tensor) -> None:
    """Multiplies the input columns of layers by `scale`, `[in]`, and divides the absorber's output by it."""
    inverse = 1 / absorber.reduce(scale)
    for key in ("weight", "bias"):
        parameter = absorber.module._parameters.get(key)
        if parameter is not None:
            parameter.mul_((inverse if parameter.ndim == 1 else inverse[:, None]).to(parameter.dtype))
    for layer in layers:
        weight = layer._parameters["weight"]
        assert weight is not None
        weight.mul_(scale.to(weight.dtype))
