# SPDX-License-Identifier: Apache-2.0
"""Fused experts: what each of them is given, so that each of their weights is calibrated as a layer of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn.parameters import QParameters
from .statistics import Moments
from .step import Block, as_float

__all__ = ["expert_layers", "expert_moments"]

#: how many tokens, per input feature, the average of all experts counts for beside those that an expert saw itself
_PRIOR = 0.1


def expert_layers(block: Block) -> dict[str, QParameters]:
    """The modules of experts that are still floating and can be watched, by name.

    Left out, and named in `block.skipped`: those whose scales several experts share.
    """
    found = {}
    for name, module in block.module.named_modules():
        if not isinstance(module, QParameters) or module.operator != "grouped_linear" or module.frozen:
            continue
        blocks = [slot.scheme.block_size(slot.rows_shape()) for slot in module._slots.values()]
        if module.scheme.qtype.two_level or any(not b or b[0] != 1 for b in blocks):
            block.skipped.append(f"{name}: its experts share scales, and are rounded together")
        else:
            found[name] = module
    return found


@torch.no_grad()
def expert_moments(block: Block, name: str, parameter: str) -> list[Moments]:
    """The moments of the inputs of one 3-D weight, an expert at a time, over the tokens that are routed to it.

    The average of all experts is mixed in, weighted as a tenth of a token for each input feature: what an expert that
    saw little or nothing goes by. Where no expert saw anything the moments are empty.

    Args:
        block: with the experts in it.
        name: of the module.
        parameter: of its weight.
    """
    module = block.module.get_submodule(name)
    assert isinstance(module, QParameters)
    found = [Moments() for _ in range(module._slots[parameter].rows_shape()[0])]

    def see(which: str, rows: Tensor, ends: Tensor) -> None:
        start = 0
        for moments, end in zip(found if which == parameter else (), ends.tolist(), strict=False):
            if end > start:
                moments.add(rows[start:end])
            start = max(start, end)

    module.__dict__["watch"] = see
    try:
        with as_float(block.module):
            for index in range(len(block.inputs)):
                block.inputs.run(block.module, index)
    finally:
        del module.__dict__["watch"]
    return _share(found)


def _share(found: list[Moments]) -> list[Moments]:
    """Means, each with some of the average of all."""
    sums = [m.hessian for m in found if m.hessian is not None]
    if not sums:
        return found
    tokens = sum(m.tokens for m in found)
    average = torch.zeros_like(sums[0])
    for each in sums:
        average.add_(each, alpha=1 / tokens)
    prior = _PRIOR * len(average)
    for m in found:
        own = torch.zeros_like(average) if m.hessian is None else m.hessian
        m.hessian = own.add_(average, alpha=prior).div_(m.tokens + prior)
    return found
