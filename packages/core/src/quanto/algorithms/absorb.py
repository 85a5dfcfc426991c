# SPDX-License-Identifier: Apache-2.0
"""Where the scales of a layer's inputs can go: into what made them, if the block then computes what it did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    layers = block.layers()
    width = layers[group[0]]._slots["weight"].shape[-1]
    found = [c for name, module in block.module.named_modules() for c in _candidates(name, module, width, group)]
    if not found:
        return None
    with as_float(block.module):
        before = first_tensor(block.inputs.run(block.module, 0)).float()
        for candidate in sorted(found, key=lambda c: isinstance(c.module, QModule)):
            generator = torch.Generator().manual_seed(0)
            channels = width // candidate.repeat
            probe = torch.rand(channels, generator=generator).add_(0.5).to(before.device)
            scale = candidate.expand(probe)
            saved = _weights([candidate.module, *(layers[name] for name in group)])
            scale_inputs(candidate, [layers[name] for name in group], scale)
            after = first_tensor(block.inputs.run(block.module, 0)).float()
            for parameter, value in saved:
                parameter.copy_(value)
            if (after - before).norm() <= _tolerance(saved[-1][0].dtype) * before.norm():
                return candidate
    return None


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype == torch.float32 else 20 * torch.finfo(dtype).eps


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


def _weights(modules: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    return [(p, p.detach().clone()) for m in modules for p in m._parameters.values() if p is not None]


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
