# SPDX-License-Identifier: Apache-2.0
"""GPTQ: rounds column by column, and lets the columns to come make up for the error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import packing, reference
from ..nn.base import QModule
from ..nn.slot import Slot
from ..quantizers import Parameters, fit
from ..tensor.quantize import make_target
from .columns import cholesky, round_columns
from .convolutions import convolution_layers
from .descend import descend
from .experts import expert_layers, expert_moments
from .hessian import each_row, solve, times
from .refine import refine
from .statistics import Moments, input_groups, moments
from .step import Block, Step, adopt

__all__ = ["GPTQ", "Solved"]


class Solved(NamedTuple):
    """A rounded weight.

    Attributes:
        codes: packed.
        parameters: scales and zero points.
        floats: `[out, in]` float32, the values that were rounded to the codes.
        loss: the part of the output, in squares, that is lost.
    """

    codes: Tensor
    parameters: Parameters
    floats: Tensor
    loss: float


class GPTQ(Step):
    """Second-order rounding (Frantar et al., 2022, arXiv:2210.17323) with act-order and static groups.

    Layers that read the same tensor share one Hessian; layers behind see inputs that the quantized ones before made. A
    convolution is a linear layer of its input's windows, with a Hessian for each of its groups.
    Scales and zero points are found before rounding by least squares weighted with the Hessian's diagonal, so that
    act-order needs no index of groups in the file.

    With `correct`, the weights are first moved to where they map the inputs behind quantized predecessors to what the
    float model makes of its own (as in GPTAQ, Li et al., 2025, arXiv:2504.02692), for errors add up over blocks.

    Args:
        damping: added to the Hessian's diagonal, as a part of its mean.
        act_order: whether columns with large inputs come first.
        sequential: whether inputs are taken anew for each layer, behind the layers of the block that are quantized
            already; False takes them once per block, in about a third of the time.
        correct: 0 to 1, how far the weights are moved.
        refine: whether scales and zero points are fitted once more to the chosen codes, all groups of a row together.
        sweeps: how often each column is rounded anew to where all others leave least error (see `descend`); each takes
            about the time of the rounding itself.
    """

    name = "gptq"

    def __init__(
        self,
        damping: float = 0.05,
        act_order: bool = True,
        sequential: bool = True,
        correct: float = 0.75,
        refine: bool = True,
        sweeps: int = 2,
    ) -> None:
        if damping <= 0:
            raise ValueError(f"damping must be positive, got {damping}")
        if not 0 <= correct <= 1:
            raise ValueError(f"correct must be in [0, 1], got {correct}")
        if sweeps < 0:
            raise ValueError(f"sweeps must not be negative, got {sweeps}")
        self.damping, self.act_order, self.sequential, self.correct = damping, act_order, sequential, correct
        self.needs_original, self.refine, self.sweeps = correct > 0, refine, sweeps

    def apply(self, block: Block) -> None:
        """Freezes every linear layer and convolution of the block, and the weights of fused experts."""
        convolutions = convolution_layers(block)
        layers = {**block.layers(), **convolutions}
        groups = input_groups(block, convolutions)
        crossed = self.correct > 0 and block.originals is not block.inputs
        if crossed:
            block.keep_original()  # as it is now: steps before may have scaled its channels
        ahead = {} if self.sequential else {g[0]: moments(block, g[0], crossed) for g in groups}
        for group in groups:
            found = ahead.pop(group[0], None) or moments(block, group[0], crossed, group is groups[-1])
            for name in group:
                slot, weight = layers[name]._slots["weight"], layers[name]._parameters["weight"]
                assert weight is not None
                try:
                    made = self.solve(slot.rows(weight.detach()), slot, found, name == group[-1])
                except ValueError as error:
                    raise ValueError(f"{'.'.join(filter(None, (block.name, name)))}: {error}") from None
                adopt(layers[name], made.codes, made.parameters)
                block.losses[name] = made.loss
                if block.keeps_floats and name not in convolutions:
                    block.floats[name] = made.floats
        for name, module in expert_layers(block).items():
            for parameter in module._slots:
                block.losses[f"{name}.{parameter}"] = self._experts(
                    module, parameter, expert_moments(block, name, parameter)
                )

    def _experts(self, module: QModule, parameter: str, found: list[Moments]) -> float:
        """Freezes one 3-D weight, expert by expert; returns the mean of their losses."""
        slot = module._slots[parameter]
        weights = slot.rows(module._parameters[parameter].detach())  # type: ignore[union-attr]
        made = [self.solve(w, slot, f) for w, f in zip(weights, found, strict=True)]
        zeros = [m.parameters.zero_point for m in made if m.parameters.zero_point is not None]
        scale, zero = torch.stack([m.parameters.scale for m in made]), torch.stack(zeros) if zeros else None
        adopt(module, torch.stack([m.codes for m in made]), Parameters(scale, zero), parameter)
        return sum(m.loss for m in made) / len(made)

    def solve(self, weight: Tensor, slot: Slot, found: Moments, last: bool = False) -> Solved:
        """Codes and parameters of one weight.

        Args:
            weight: `[out, in]`, floating.
            slot: how it is quantized; one that leaves the algorithm open gets that of `fit`, with its zero points.
            found: the moments of its inputs; those of no input at all are taken for white noise.
            last: whether nobody needs the cross moments any more, so that they can go.
        """
        slot.scheme = slot.scheme.fitted()
        target = make_target(slot.scheme, slot.scheme.block_size(tuple(weight.shape)), slot.dtype)
        weight = weight.float()
        hessian = torch.eye(weight.shape[1], device=weight.device) if found.hessian is None else found.hessian
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        mean = diagonal.mean(-1, keepdim=True)
        mean = mean.clamp(min=max(1e-6 * float(mean.max()), torch.finfo(torch.float32).tiny))  # groups may be idle
        difference = None if found.cross is None else times(weight, found.cross).sub_(times(weight, hessian))
        if last:
            found.cross = None
        # damped in place and put back at the end: another matrix as large would be the largest thing in memory
        before = diagonal.clone()
        diagonal.add_(self.damping * mean)
        wanted = weight
        if difference is not None:
            wanted = solve(difference, cholesky(hessian.clone)).mul_(self.correct).add_(weight)
            del difference
        parameters = fit(wanted, target, each_row(diagonal, len(weight)))
        elements, floats = round_columns(wanted, hessian, target, parameters, self.act_order)
        for again in range(1 + self.sweeps):
            if again:
                elements, floats = descend(wanted, elements, hessian, target, parameters)
            if self.refine:
                parameters = refine(wanted, elements, hessian, target, parameters)
        diagonal.copy_(before)
        codes = packing.pack(reference.encode(elements, target.qtype), target.qtype.bits)
        blocks, columns = target.block_size, weight.shape[1]
        error = reference.dequantize(codes, *parameters, target.qtype.name, blocks, columns, torch.float32) - wanted
        whole = (times(weight, hessian) * weight).sum().clamp(min=torch.finfo(torch.float32).tiny)
        return Solved(codes, parameters, floats, float((times(error, hessian) * error).sum() / whole))
