# SPDX-License-Identifier: Apache-2.0
"""A low-rank correction of what quantizing loses, layer by layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..nn import correction
from ..nn.linear import QLinear
from .awq import freeze_weighted
from .statistics import moments
from .step import Block, Step

__all__ = ["LowRank"]


class LowRank(Step):
    """Two small floating matrices beside the codes of each linear layer (LQER, Zhang et al., 2024, arXiv:2402.02446).

    Their product is as near to the error as its rank allows, in squares of the layer's output. They are in the weight's
    own dtype, cost `rank * (in + out)` numbers a layer, and are computed beside the quantized product at run time.
    Layers that no step before has frozen are rounded by least squares weighted with the inputs' mean squares.

    Args:
        rank: of the product.
        damping: added to the diagonal of the inputs' second moments, as a part of its mean.
    """

    name = "lowrank"
    needs_weights = True

    def __init__(self, rank: int = 16, damping: float = 0.01) -> None:
        if rank < 1 or damping <= 0:
            raise ValueError(f"rank must be at least 1 and damping positive, got {rank} and {damping}")
        self.rank, self.damping = rank, damping

    def finish(self, block: Block) -> None:
        """Freezes what is still floating, and corrects every linear layer of the block."""
        for name, weight in block.weights.items():
            module = block.module.get_submodule(name)
            if not isinstance(module, QLinear):
                continue
            found = moments(block, name)
            if not module.frozen:
                block.losses[name] = freeze_weighted(module, found)
            for slot in module._slots.values():
                slot.scheme = replace(slot.scheme, rank=self.rank)
            module.prepare()
            if found.hessian is None:
                correction.store(module, weight)
                continue
            diagonal = found.hessian.diagonal()
            extra = self.damping * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
            correction.store(module, weight, found.hessian + torch.eye(len(diagonal), device=weight.device) * extra)
