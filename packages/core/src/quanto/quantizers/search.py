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

#: what to take for outliers: residuals in steps of the grid (to be edited in place) to the part that is ignored
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
        robust: given residuals in steps of the grid, the part of each that is an outlier, which the next least squares
            leaves out; errors are then compared by their absolute values instead of squares.
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
    step = _symmetric if target.symmetric else _affine
    return _Best(step(x, w, scale, zero, target, robust, last=True)[0], scale, zero)


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
    step = _symmetric if target.symmetric else _affine
    for part in starts:
        scale, zero = _start(x, target, part)
        for left in range(steps, -1, -1):
            scale, zero = _stored(scale, zero, target, shared)
            error, scale_next, zero_next = step(x, w, scale, zero, target, robust, last=not left)
            best = _Best(error, scale, zero) if best is None else best.update(error, scale, zero)
            scale, zero = scale_next, zero_next
    assert best is not None
    return best


def _start(x: Tensor, target: Target, part: float) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point that cover a part of each block's range."""
    q = target.qtype
    if target.symmetric:
        return _positive(x.abs().amax(-1, keepdim=True) * (part / q.amax)), None
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    held = (low == high) | (target.zero_dtype == torch.int8)  # ranges that hold zero
    low, high = torch.where(held, low.clamp(max=0), low), torch.where(held, high.clamp(min=0), high)
    scale = _positive((high / 2 - low / 2) * (part / ((q.qmax - q.qmin) / 2)))  # high - low may overflow
    zero = (q.qmin + q.qmax) / 2 - (high / 2 + low / 2) / scale
    return scale, torch.where(held, zero.round(), zero)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _stored(scale: Tensor, zero: Tensor | None, target: Target, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The parameters as they come back from storage."""
    if shared is None:
        scale = round_scale(scale, target.scale_dtype)
    else:
        scale = round_scale(scale / shared, target.scale_dtype) * shared
    return scale, None if zero is None else round_zero(zero, target.qtype, target.zero_dtype)


def _symmetric(
    x: Tensor,
    w: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    target: Target,
    robust: Robust | None,
    last: bool = False,
) -> tuple[Tensor, Tensor, None]:
    """The error of parameters, and unless `last` the least-squares scale for the codes they lead to."""
    steps = x / scale
    codes = nearest(steps.clone() if robust else steps, target.qtype)
    error, wanted = _judge(x, w, codes, steps, scale, robust, last)
    if last:
        return error, scale, None
    return error, _slope(codes, wanted, w, scale)[0], None


def _affine(
    x: Tensor,
    w: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
    target: Target,
    robust: Robust | None,
    last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a zero point: the line through codes and values, `x = scale * (code - zero)`."""
    assert zero is not None
    steps = (x / scale).add_(zero)
    codes = nearest(steps.clone() if robust else steps, target.qtype)
    error, wanted = _judge(x, w, codes, steps, scale, robust, last, zero)
    if last:
        return error, scale, zero
    count = float(x.shape[-1]) if w is None else w.sum(-1, keepdim=True)
    mean_code, mean = _sum(codes, w) / count, _sum(wanted, w) / count
    fitted, usable = _slope(codes - mean_code, wanted, w, scale)
    shifted = torch.where(usable, mean_code - mean / fitted, zero)
    if target.zero_dtype != torch.int8:
        return error, fitted, shifted
    shifted = round_zero(shifted, target.qtype, torch.int8)
    return error, _slope(codes.sub_(shifted), wanted, w, scale)[0], shifted


def _judge(
    x: Tensor,
    w: Tensor | None,
    codes: Tensor,
    steps: Tensor,
    scale: Tensor,
    robust: Robust | None,
    last: bool,
    zero: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The error of each block, and the values that the next least squares are to meet."""
    if robust is None:
        return _sum(((codes - zero) * scale).sub_(x).square_(), w), x
    residual = steps.sub_(codes)
    error = _sum(residual.abs(), w) * scale
    return error, x if last else x - robust(residual).mul_(scale)


def _slope(codes: Tensor, x: Tensor, w: Tensor | None, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """`sum(w c x) / sum(w c c)`, and where that is a positive number; `otherwise` elsewhere."""
    weighted = codes if w is None else codes * w
    slope = (weighted * x).sum(-1, keepdim=True) / (weighted * codes).sum(-1, keepdim=True)
    usable = (slope > 0) & slope.isfinite()
    return torch.where(usable, slope, otherwise), usable


def _sum(values: Tensor, w: Tensor | None) -> Tensor:
    return (values if w is None else values * w).sum(-1, keepdim=True)
