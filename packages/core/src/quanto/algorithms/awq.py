# SPDX-License-Identifier: Apache-2.0
"""AWQ: scales input channels by how large they are, so that rounding hurts the large ones less."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..nn.base import QModule
from ..quantizers import fit
from ..tensor.quantize import make_target
from .absorb import find_absorber, scale_inputs
from .statistics import Moments, input_groups, moments
from .step import Block, Step, adopt
from .trial import rounded

__all__ = ["AWQ"]


class AWQ(Step):
    """Activation-aware scales (Lin et al., 2023, arXiv:2306.00978), and clipping by weighted least squares.

    Scales are a power between 0 and 1 of the inputs' root mean square; the power is the one with the least squared
    error at the outputs. They go into the norm or layer before (see `find_absorber`), which is found by trying. The
    search of the clipping range is that of `fit`, weighted with the inputs' mean squares; it is left out where another
    step follows that chooses codes, such as GPTQ.

    Args:
        steps: how many powers above 0 are tried.
    """

    name = "awq"

    def __init__(self, steps: int = 10) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.steps = steps

    def apply(self, block: Block) -> None:
        """Scales the inputs of every layer whose inputs something can absorb."""
        layers = block.layers()
        for group in input_groups(block):
            absorber = find_absorber(block, group)
            if absorber is None:
                block.skipped.append(f"{', '.join(group)}: nothing before can take the inverse of the scales")
                continue
            found = moments(block, group[0])
            if found.hessian is None:
                continue
            members = [layers[name] for name in group]
            size = found.hessian.diagonal().clamp(min=1e-12).sqrt()
            best, least = torch.ones_like(size), self._error(members, torch.ones_like(size), found.hessian)
            for step in range(1, self.steps + 1):
                scale = size ** (step / self.steps)
                scale = scale / (scale.max() * scale.min()).sqrt()
                scale = absorber.expand(absorber.reduce(scale.clamp(1e-4, 1e4)))
                error = self._error(members, scale, found.hessian)
                if error < least:
                    best, least = scale, error
            scale_inputs(absorber, members, best)

    def finish(self, block: Block) -> None:
        """Freezes what is still floating, with parameters weighted by the inputs' mean squares."""
        layers = block.layers()
        for group in input_groups(block):
            found = moments(block, group[0])
            for name in group:
                block.losses[name] = freeze_weighted(layers[name], found)

    @staticmethod
    def _error(layers: list[QModule], scale: Tensor, hessian: Tensor) -> float:
        total = 0.0
        for layer in layers:
            weight = layer._parameters["weight"]
            assert weight is not None
            rows = weight.detach().float() * scale
            error = (rounded(layer, rows) - rows) / scale
            total += float(((error @ hessian) * error).sum())
        return total


def freeze_weighted(layer: QModule, found: Moments) -> float:
    """Freezes a layer by least squares weighted with its inputs' mean squares; returns the relative loss."""
    slot = layer._slots["weight"]
    parameter = layer._parameters["weight"]
    assert parameter is not None
    weight = parameter.detach().float()
    slot.scheme = slot.scheme.fitted()
    target = make_target(slot.scheme, slot.scheme.block_size(tuple(weight.shape)), parameter.dtype)
    hessian = torch.eye(weight.shape[1], device=weight.device) if found.hessian is None else found.hessian
    p = fit(weight, target, hessian.diagonal())
    codes = reference.quantize(weight, *p, target.qtype.name, target.block_size)
    values = reference.dequantize(codes, *p, target.qtype.name, target.block_size, weight.shape[1], torch.float32)
    adopt(layer, codes, p)
    error, whole = values - weight, ((weight @ hessian) * weight).sum()
    return float(((error @ hessian) * error).sum() / whole.clamp(min=torch.finfo(torch.float32).tiny))
