# SPDX-License-Identifier: Apache-2.0
"""The search that several quantizers share: codes and parameters improved in turn, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks import scale_shape
from .absmax import AbsmaxQuantizer
from .base import Parameters, Target
from .grid import as_rows, nearest, round_scale, round_zero, valid_elements
from .minmax import MinMaxQuantizer

__all__ = ["Robust", "fit"]

_CHUNK = 1 << 18  # elements searched at a time: a few of them stay in a core's cache

#: what is kept of residuals in steps of the grid (to be edited in place), the rest being taken for outliers
Robust = Callable[[Tensor], Tensor]


class _Best(NamedTuple):
    """The best parameters so far, per block: `[blocks, 1]`."""

    error: Tensor
    scale: Tensor
    zero: Tensor | None

    def update(self, error: Tensor, scale: Tensor, zero: Tensor | None) -> _Best:
        better = error < self.error
        return _Best(
            torch.where(better, error, self.error),
            torch.where(better, scale, self.scale),
            None if zero is None or self.zero is None else torch.where(better, zero, self.zero),
        )


def fit(
    x: Tensor,
    target: Target,
    importance: Tensor | None = None,
    *,
    starts: Sequence[float] = (1.0, 0.9, 0.8, 0.7),
    steps: int = 4,
    robust: Robust | None = None,
    plain: bool = True,
) -> Parameters:
    """The parameters of least (weighted) error, found by alternation.

    Nearest codes for the parameters, then the least-squares scale and zero point for the codes, which have a closed
    form, and so on. Parameters are rounded to the dtype that is stored before they are compared.

    Args:
        x: floating, any shape.
        target: what x is to become.
        importance: weights of the errors, of a shape that broadcasts to x's, not negative; for example the mean square
            of each input, `[in]`.
        starts: where the search starts: parts of the range that min/max would cover.
        steps: of least squares from each start.
        robust: given residuals in steps of the grid, the part of each that is no outlier, which the next least squares
            are to meet; errors are then compared by their absolute values instead of squares.
        plain: whether what absmax or min/max would choose is among the candidates, so that nothing is worse than that.

    Returns:
        Parameters in the dtypes that are stored.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    rows = as_rows(x, target.block_size)
    weights = None if importance is None else as_rows(importance.to(compute).expand(x.shape), target.block_size)
    valid = valid_elements(x.shape, target.block_size, x.device)
    if valid is not None:
        weights = valid.to(compute) if weights is None else weights * valid
    first = _plain(x, target) if plain or target.qtype.two_level else None
    shared = None if first is None else first.global_scale
    found = []
    for part in _chunks(rows.shape, x.device.type == "cpu"):
        values, w = rows[part].to(compute), None if weights is None else weights[part]
        best = None
        if first is not None and plain:
            best = _first(values, w, target, first, part, robust)
        found.append(_search(values, w, target, shared, starts, steps, robust, best))
    sizes = scale_shape(x.shape, target.block_size)
    scale = torch.cat([f.scale for f in found]).reshape(sizes)
    zero = None if target.symmetric else torch.cat([f.zero for f in found if f.zero is not None]).reshape(sizes)
    if shared is not None:
        scale = scale / shared.to(compute)
    return Parameters(
        scale.to(target.scale_dtype), None if zero is None else torch.nan_to_num(zero).to(target.zero_dtype), shared
    )


def _first(x: Tensor, w: Tensor | None, target: Target, p: Parameters, part: slice, robust: Robust | None) -> _Best:
    """What given parameters lead to, on some of the blocks."""
    scale = p.scale.reshape(-1, 1)[part].to(x.dtype)
    scale = scale if p.global_scale is None else scale * p.global_scale.to(x.dtype)
    zero = None if p.zero_point is None else p.zero_point.reshape(-1, 1)[part].to(x.dtype)
    return _Best(_step(x, w, scale, zero, target, robust, last=True)[0], scale, zero)


def _plain(x: Tensor, target: Target) -> Parameters:
    quantizer = AbsmaxQuantizer() if target.symmetric else MinMaxQuantizer()
    return quantizer.parameters(x, replace(target, zero_dtype=torch.int8))


def _chunks(shape: torch.Size, on_cpu: bool) -> Iterator[slice]:
    rows = max(1, (_CHUNK if on_cpu else 64 * _CHUNK) // max(shape[1], 1))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def _search(
    x: Tensor,
    w: Tensor | None,
    target: Target,
    shared: Tensor | None,
    starts: Sequence[float],
    steps: int,
    robust: Robust | None,
    best: _Best | None,
) -> _Best:
    for part in starts:
        scale, zero = _start(x, target, part)
        for left in range(steps, -1, -1):
            scale, zero = _stored(scale, zero, target, shared)
            error, scale_next, zero_next = _step(x, w, scale, zero, target, robust, last=not left)
            best = _Best(error, scale, zero) if best is None else best.update(error, scale, zero)
            scale, zero = scale_next, zero_next
    assert best is not None
    return best


def _start(x: Tensor, target: Target, part: float) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point that cover a part of each block's range."""
    q = target.qtype
    if target.symmetric:
        size = x.abs()
        peak = size.amax(-1, keepdim=True)
        return _positive(peak * _part(part, peak == size.amin(-1, keepdim=True)) / q.amax), None
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    alike = low == high
    held = alike | (target.zero_dtype == torch.int8)  # ranges that hold zero
    low, high = torch.where(held, low.clamp(max=0), low), torch.where(held, high.clamp(min=0), high)
    scale = _positive((high / 2 - low / 2) * _part(part, alike) / ((q.qmax - q.qmin) / 2))  # high - low may overflow
    zero = (q.qmin + q.qmax) / 2 - (high / 2 + low / 2) / scale
    return scale, torch.where(held, zero.round(), zero)


def _part(part: float, alike: Tensor) -> Tensor | float:
    """Of blocks whose values are all as large nothing is cut off: they have no outliers, and no line through codes."""
    return part if part == 1 else torch.where(alike, 1.0, part)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _stored(scale: Tensor, zero: Tensor | None, target: Target, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The parameters as they come back from storage."""
    if shared is None:
        scale = round_scale(scale, target.scale_dtype)
    else:
        scale = round_scale(scale / shared, target.scale_dtype) * shared
    return scale, None if zero is None else round_zero(zero, target.qtype, target.zero_dtype)


def _step(
    x: Tensor,
    w: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    target: Target,
    robust: Robust | None,
    last: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The error of parameters, and unless `last` the least squares for the codes they lead to.

    In steps of the grid a value is its code, less the zero point, plus a residual. So the line through codes and values
    has the slope `scale * (1 + cov(code, residual) / var(code))`, and sums over codes and residuals are all it takes.
    """
    steps = x / scale
    if zero is not None:
        steps.add_(zero)
    codes = nearest(steps, target.qtype)
    residual = steps.sub_(codes)
    if robust is None:
        error = _dot(residual, residual, w) * scale.square()
    else:
        error = _sum(residual.abs(), w) * scale
    if last:
        return error, scale, zero
    kept = residual if robust is None else robust(residual)
    squares, products = _dot(codes, codes, w), _dot(codes, kept, w)
    if zero is None:
        return error, _slope(products, squares, squares, scale)[0], None
    count = float(x.shape[-1]) if w is None else w.sum(-1, keepdim=True)
    code, rest = _sum(codes, w) / count, _sum(kept, w) / count  # means
    fitted, usable = _slope(products - count * code * rest, squares - count * code.square(), squares, scale)
    shifted = torch.where(usable, code - (code + rest - zero) * (scale / fitted), zero)
    if target.zero_dtype != torch.int8:
        return error, fitted, shifted
    shifted = round_zero(shifted, target.qtype, torch.int8)
    # the same for a line through a zero point that is whole: sums of (code - shifted) * (code - zero + kept)
    whole = squares - 2 * count * code * shifted + count * shifted.square()
    found = products - count * rest * shifted + (shifted - zero) * count * (code - shifted)
    return error, _slope(found, whole, squares, scale)[0], shifted


def _slope(products: Tensor, squares: Tensor, size: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """`scale * (1 + products / squares)`, and where that is a positive number; the scale elsewhere.

    Squares that are nothing beside `size`, those that they were the difference of, are what rounding left of zero.
    """
    slope = scale * (1 + products / squares)
    usable = (slope > 0) & slope.isfinite() & (squares > 1e-5 * size)
    return torch.where(usable, slope, scale), usable


def _sum(values: Tensor, w: Tensor | None) -> Tensor:
    return (values if w is None else values * w).sum(-1, keepdim=True)


def _dot(a: Tensor, b: Tensor, w: Tensor | None) -> Tensor:
    return _sum(a * b, w)
