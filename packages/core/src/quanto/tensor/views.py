# SPDX-License-Identifier: Apache-2.0
"""Rearranging quantized tensors without touching a value: view, permute, slice, cat.

Every function returns None where the result could not stay quantized; the caller then dequantizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .qtensor import QTensor, is_small_float, same

__all__ = ["cat", "permute", "swap", "swapped", "take", "view"]


def view(q: QTensor, shape: Sequence[int]) -> QTensor | None:
    """A new shape over the same values. A row-major view is always possible, if need be over unsettled codes."""
    if q.transposed:
        return q.rewrap(_same) if tuple(shape) == tuple(q.shape) else None
    new = _resolve(shape, q.numel())
    if new is None:
        return None
    if q.settled:
        settled = _settle(q, new)
        if settled is not None:
            return settled
    if not q.codes.is_contiguous():
        q = q.rewrap(torch.Tensor.contiguous)
    return q.rewrap(_same, shape=new)


def _same(t: Tensor) -> Tensor:
    return t


def _resolve(shape: Sequence[int], numel: int) -> tuple[int, ...] | None:
    """The shape with -1 filled in; None where it holds another number of elements."""
    known = math.prod(n for n in shape if n != -1)
    new = tuple(numel // max(known, 1) if n == -1 else n for n in shape)
    return new if math.prod(new) == numel and (known or -1 not in shape) else None


def _settle(q: QTensor, new: tuple[int, ...]) -> QTensor | None:
    """Moves the codes along with the shape where blocks allow it."""
    old, blocks = tuple(q.shape), q.block_size
    if not blocks:
        if q.qtype.bits != 8 and (not new or new[-1] != old[-1]):
            return None
        codes = q.codes.reshape(new if q.qtype.bits == 8 else (*new[:-1], q.codes.shape[-1]))
        return _with(q, codes, q.scale, q.zero_point, (), new)
    if not new or not old:
        return None
    if new[-1] == old[-1] and all(b == 1 for b in blocks[:-1]):
        lead = new[:-1]
        codes = q.codes.reshape(*lead, q.codes.shape[-1])
        scale, zero = (None if t is None else t.reshape(*lead, t.shape[-1]) for t in (q.scale, q.zero_point))
        assert scale is not None
        return _with(q, codes, scale, zero, (*(1,) * len(lead), blocks[-1]), new)
    # One scale per leading index, the rest of the dimensions whole: any regrouping of the rest, and of the lead.
    kept = next((i for i, b in enumerate(blocks) if b != 1), len(blocks))
    if q.qtype.bits == 8 and q.numel() and all(b >= n for b, n in zip(blocks[kept:], old[kept:], strict=True)):
        rows, count, at = math.prod(old[:kept]), 1, 0
        while at < len(new) and count < rows:
            count *= new[at]
            at += 1
        if count == rows:
            sizes = (*new[:at], *(1,) * (len(new) - at))
            scale, zero = (None if t is None else t.reshape(sizes) for t in (q.scale, q.zero_point))
            assert scale is not None
            return _with(q, q.codes.reshape(new), scale, zero, (*(1,) * at, *new[at:]), new)
    return None


def _with(
    q: QTensor, codes: Tensor, scale: Tensor, zero: Tensor | None, blocks: tuple[int, ...], shape: tuple[int, ...]
) -> QTensor:
    return QTensor(
        codes,
        scale,
        zero,
        q.global_scale,
        qtype=q.qtype,
        block_size=blocks,
        columns=shape[-1] if shape else 1,
        dtype=q.dtype,
        shape=shape,
    )


def swap(q: QTensor) -> QTensor:
    """The last two dimensions swapped, by the flag alone."""
    shape = (*q.shape[:-2], q.shape[-1], q.shape[-2])
    return q.rewrap(_same, shape=shape, transposed=not q.transposed)


def swapped(dim: int, ndim: int) -> int:
    """Where a dimension is before the last two are swapped."""
    return {ndim - 1: ndim - 2, ndim - 2: ndim - 1}.get(dim, dim)


def permute(q: QTensor, dims: Sequence[int]) -> QTensor | None:
    """Reordered dimensions. Byte-wide codes are permuted as a view; of packed ones only the last two may be swapped."""
    n = q.ndim
    if any(not -n <= d < n for d in dims):
        return None
    order = [d % n for d in dims]
    if order == list(range(n)):
        return q.rewrap(_same)
    if order == [*range(n - 2), n - 1, n - 2] and (
        q.transposed or (q.qtype.bits != 8 and tuple(q.shape) == q.inner_shape)
    ):
        return swap(q)
    if not q.settled or (q.qtype.bits != 8 and order[-1] != n - 1):
        return None
    blocks = tuple(q.block_size[d] for d in order) if q.block_size else ()
    scale, zero = (t if t is None or not blocks else t.permute(order) for t in (q.scale, q.zero_point))
    assert scale is not None
    return _with(q, q.codes.permute(order), scale, zero, blocks, tuple(q.shape[d] for d in order))


def take(q: QTensor, dim: int, start: int, end: int, step: int = 1) -> QTensor | None:
    """`q[..., start:end:step, ...]` along `dim`, on whole groups and whole bytes."""
    dim %= q.ndim
    if q.transposed:
        part = take(swap(q), swapped(dim, q.ndim), start, end, step)
        return None if part is None else swap(part)
    if not q.settled:
        return None
    size, last, bits = q.shape[dim], q.ndim - 1, q.qtype.bits
    start, end = max(0, min(start, size)), max(0, min(end, size))
    length = max(0, -(-(end - start) // step))
    codes_at = slice(start, max(end, start), step)
    if dim == last and bits != 8:
        if step != 1 or start * bits % 8 or (end * bits % 8 and end != size):
            return None
        codes_at = slice(start * bits // 8, -(-max(end, start) * bits // 8))
    shape = list(q.shape)
    shape[dim] = length
    blocks, scale, zero = list(q.block_size), q.scale, q.zero_point
    if blocks:
        b = blocks[dim]
        if length == 0:
            scale, zero = (None if t is None else t.narrow(dim, 0, 0) for t in (scale, zero))  # type: ignore[assignment]
            blocks[dim] = 1
        elif b >= size and size > 1:
            blocks[dim] = length
        elif b > 1:
            if step != 1 or start % b:
                return None
            scale, zero = (None if t is None else t.narrow(dim, start // b, -(-length // b)) for t in (scale, zero))  # type: ignore[assignment]
            blocks[dim] = min(b, length)
        else:
            index = (slice(None),) * dim + (slice(start, max(end, start), step),)
            scale, zero = (None if t is None else t[index] for t in (scale, zero))  # type: ignore[assignment]
    index = (slice(None),) * dim + (codes_at,)
    return _with(q, q.codes[index], scale, zero, tuple(blocks), tuple(shape))


def cat(parts: Sequence[Tensor], dim: int) -> QTensor | None:
    """Joins tensors of one format whose scales can be joined too, or are equal."""
    first = parts[0]
    if not isinstance(first, QTensor) or not -first.ndim <= dim < first.ndim:
        return None
    dim %= first.ndim
    quantized: list[QTensor] = []
    for p in parts:
        if not isinstance(p, QTensor) or not p.settled or p.qtype != first.qtype or p.dtype != first.dtype:
            return None
        if p.ndim != first.ndim or (p.zero_point is None) != (first.zero_point is None):
            return None
        if len(p.block_size) != len(first.block_size):
            return None
        scales = {p.scale.dtype, first.scale.dtype}
        if len(scales) > 1 and any(is_small_float(d) for d in scales):  # torch promotes no one-byte float
            return None
        if (p.global_scale is None) != (first.global_scale is None):
            return None
        if p.global_scale is not None and not torch.equal(p.global_scale, first.global_scale):  # type: ignore[arg-type]
            return None
        quantized.append(p)
    bits = first.qtype.bits
    if dim == first.ndim - 1 and any(p.shape[dim] * bits % 8 for p in quantized[:-1]):
        return None
    shape = list(first.shape)
    shape[dim] = sum(p.shape[dim] for p in quantized)
    joined = _cat_scales(quantized, dim)
    if joined is None:
        return None
    scale, zero, blocks = joined
    return _with(first, torch.cat([p.codes for p in quantized], dim), scale, zero, blocks, tuple(shape))


def _cat_scales(parts: list[QTensor], dim: int) -> tuple[Tensor, Tensor | None, tuple[int, ...]] | None:
    first = parts[0]
    blocks = list(first.block_size)
    others = [b for i, b in enumerate(blocks) if i != dim]
    if any([b for i, b in enumerate(p.block_size) if i != dim] != others for p in parts):
        return None
    whole = not blocks or all(p.block_size[dim] >= p.shape[dim] > 1 for p in parts)
    zeros = [p.zero_point for p in parts]
    if whole:  # one scale over all of the dimension: equal ones keep it so, others become one of several groups
        if _same_scales(parts):
            if blocks:
                blocks[dim] = sum(p.shape[dim] for p in parts)
            return first.scale, first.zero_point, tuple(blocks)
        if not blocks:
            return None
    size = max(p.block_size[dim] for p in parts)
    if any(p.shape[dim] % size for p in parts[:-1]) or parts[-1].block_size[dim] not in (size, parts[-1].shape[dim]):
        return None
    if any(p.block_size[dim] != size for p in parts[:-1]):
        return None
    blocks[dim] = size
    zero = None if first.zero_point is None else torch.cat([z for z in zeros if z is not None], dim)
    return torch.cat([p.scale for p in parts], dim), zero, tuple(blocks)


def _same_scales(parts: list[QTensor]) -> bool:
    first = parts[0]
    zeros = [p.zero_point for p in parts]
    if any(not same(p.scale, first.scale) for p in parts[1:]):
        return False
    return first.zero_point is None or all(torch.equal(z, first.zero_point) for z in zeros[1:])  # type: ignore[arg-type]
