# SPDX-License-Identifier: Apache-2.0
"""GPTQ: rounds column by column, and lets the columns to come make up for the error."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import packing, reference
from ..nn.base import QModule
from ..quantizers import Parameters, Target, fit
from ..quantizers.grid import nearest
from ..tensor.quantize import make_target
from .descend import descend
from .refine import refine
from .spread import spread_parameters
from .statistics import Moments, input_groups, moments
from .step import Block, Step, adopt

__all__ = ["GPTQ", "round_columns"]

_COLUMNS = 128  # of a lazy batch


class GPTQ(Step):
    """Second-order rounding (Frantar et al., 2022, arXiv:2210.17323) with act-order and static groups.

    Layers that read the same tensor share one Hessian; layers behind see inputs that the quantized ones before made.
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
        """Freezes every linear layer of the block."""
        layers = block.layers()
        groups = input_groups(block)
        crossed = self.correct > 0 and block.originals is not block.inputs
        if crossed:
            block.keep_original()  # as it is now: steps before may have scaled its channels
        ahead = {} if self.sequential else {g[0]: moments(block, g[0], crossed) for g in groups}
        for group in groups:
            found = ahead.pop(group[0], None) or moments(block, group[0], crossed)
            for name in group:
                block.losses[name], floats = self._quantize(layers[name], found)
                if block.keeps_floats:
                    block.floats[name] = floats

    def _quantize(self, layer: QModule, found: Moments) -> tuple[float, Tensor]:
        slot = layer._slots["weight"]
        parameter: Tensor = layer._parameters["weight"]  # type: ignore[assignment]
        weight = slot.rows(parameter.detach()).float()
        if slot.scheme.algorithm is None and not slot.scheme.is_symmetric:
            slot.scheme = replace(slot.scheme, algorithm="mse")  # what `fit` does, and its zero points
        target = make_target(slot.scheme, slot.scheme.block_size(tuple(weight.shape)), parameter.dtype)
        if found.hessian is None:  # never called
            found.hessian = torch.eye(weight.shape[1], device=weight.device)
        hessian = found.hessian
        mean = hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        damped = hessian + torch.eye(len(hessian), device=weight.device) * (self.damping * mean)
        wanted = weight
        if found.cross is not None:
            difference = weight @ (found.cross - hessian)
            wanted = weight + self.correct * torch.cholesky_solve(difference.T, _cholesky(damped)).T
        importance = damped.diagonal()
        parameters = fit(wanted, target, importance)
        elements, floats = round_columns(wanted, damped, target, parameters, self.act_order)
        for again in range(1 + self.sweeps):
            if again:
                elements, floats = descend(wanted, elements, damped, target, parameters)
            if self.refine:
                parameters = refine(wanted, elements, damped, target, parameters)
        codes = packing.pack(reference.encode(elements, target.qtype), target.qtype.bits)
        error = self._values(codes, parameters, target, weight) - wanted
        adopt(layer, codes, parameters)
        whole = ((weight @ hessian) * weight).sum()
        loss = ((error @ hessian) * error).sum() / whole.clamp(min=torch.finfo(torch.float32).tiny)
        return float(loss), floats

    @staticmethod
    def _values(codes: Tensor, p: Parameters, target: Target, weight: Tensor) -> Tensor:
        return reference.dequantize(codes, *p, target.qtype.name, target.block_size, weight.shape[1], torch.float32)


def round_columns(
    weight: Tensor, hessian: Tensor, target: Target, parameters: Parameters, act_order: bool = True
) -> tuple[Tensor, Tensor]:
    """Elements of the qtype for `weight`, and the values that were rounded to them, both `[out, in]` float32.

    Args:
        weight: `[out, in]` float32.
        hessian: `[in, in]` float32, positive definite.
        target: of the weight.
        parameters: its scales and zero points.
        act_order: whether columns with a large diagonal of the Hessian come first.
    """
    scale, zero = spread_parameters(parameters, target, weight)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else None
    if order is not None:
        weight, hessian, scale = weight[:, order], hessian[order][:, order], scale[:, order]
        zero = None if zero is None else zero[:, order]
    # The upper Cholesky factor of the inverse: its row i says how the error of column i spreads to the later ones.
    factor = _cholesky(torch.cholesky_inverse(_cholesky(hessian))).T.contiguous()
    work = weight.T.contiguous()  # a column of the weight is a row here, contiguous
    scale, zero = scale.T.contiguous(), None if zero is None else zero.T.contiguous()
    elements = torch.empty_like(work)
    for start in range(0, len(work), _COLUMNS):
        end = min(start + _COLUMNS, len(work))
        errors = torch.empty_like(work[start:end])
        for i in range(start, end):
            steps = work[i] / scale[i]
            element = nearest(steps if zero is None else steps.add_(zero[i]), target.qtype)
            value = (element if zero is None else element - zero[i]) * scale[i]
            error = (work[i] - value) / factor[i, i]
            elements[i], errors[i - start] = element, error
            if i + 1 < end:
                work[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
        work[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    elements, work = elements.T, work.T  # a column of work is as it was when its turn came
    if order is not None:
        back = order.argsort()
        elements, work = elements[:, back], work[:, back]
    return elements, work


def _cholesky(matrix: Tensor) -> Tensor:
    """The lower factor; the diagonal grows until there is one."""
    extra = 0.0
    for _ in range(8):
        grown = matrix + extra * torch.diag(matrix.diagonal()) if extra else matrix
        found: tuple[Tensor, Tensor] = torch.linalg.cholesky_ex(grown)
        if int(found[1]) == 0:
            return found[0]
        extra = max(10 * extra, 1e-4)
    raise ValueError("the inputs of a layer have no usable second moments: they hold NaN or infinity")
