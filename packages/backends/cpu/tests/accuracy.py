# SPDX-License-Identifier: Apache-2.0
"""What a result may differ by from float64, element by element."""

from __future__ import annotations

import torch
from torch import Tensor
from weights import Sample

from quanto import reference

__all__ = ["EXACT", "INTEGER", "activations", "expected", "half_steps", "roundings", "worst"]

# Of the unit sqrt(sum(x² w²)) + |bias|: float32 sums; int8 activations per block.
EXACT, INTEGER = 1e-5, 0.06


def expected(x: Tensor, w: Sample, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    y, unit = x.double() @ w.values.T, (x.double().square() @ w.values.square().T).sqrt()
    if bias is not None:
        y, unit = y + bias.double(), unit + bias.double().abs()
    return y, unit.clamp_min(1e-30)


def worst(y: Tensor, x: Tensor, w: Sample, bias: Tensor | None) -> float:
    want, unit = expected(x, w, bias)
    assert y.shape == want.shape
    return float(((y.double() - want).abs() / unit).max()) if y.numel() else 0.0


def half_steps(x: Tensor, w: Sample) -> Tensor:
    """The most that rounding activations to int8 can do to each output: half a step of each, times its weight.

    A step is the largest magnitude over 127, or the largest sum of two neighbours where kernels limit that; the bytes
    of nf4 are half a step of their own off.
    """
    bound = x.double().abs().amax(1, keepdim=True) / 127 * w.values.abs().sum(1)
    if w.qtype == "nf4":
        bound += x.double().abs().sum(1, keepdim=True) * w.canonical[1].double().abs().amax(1) * 0.5 / 127
    return bound


def roundings(x: Tensor, w: Sample) -> Tensor:
    """What rounding to float32 can do to each output where codes stand for values and an offset, taken off at the end.

    Of few features they may add up to little: so it is a share of the largest values that codes have, not of theirs.
    """
    codes, *others = w.canonical
    reach = torch.zeros_like(w.values)
    for byte in (0x00, 0x77, 0x80, 0x88, 0xAA, 0xFF):
        full = torch.full_like(codes.view(torch.uint8), byte).view(codes.dtype)
        values = reference.dequantize(full, *others, w.qtype, w.blocks, w.shape[1], torch.float64)
        reach = reach.maximum(values.abs().nan_to_num())
    return 1e-6 * x.double().abs() @ reach.T


def activations(tokens: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))
