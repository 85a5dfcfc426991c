# SPDX-License-Identifier: Apache-2.0
"""The meaning of every operator, in plain torch, on any device.

Each function is the ground truth for one operator of `quanto.ops`; kernels are compared with it elementwise. The
arithmetic is float32 (float64 for float64 inputs), rounded once to the output's dtype.

Weights arrive as four tensors: `codes` (packed along the last dimension), `scale`, `zero_point` (int8 or floating, or
None) and `global_scale` (one float32, or None). A value is `(element - zero_point) * scale * global_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import packing
from .blocks import merge, split, spread
from .nonlinearity import apply
from .qtypes import QType, get_qtype

__all__ = [
    "decode",
    "dequantize",
    "dynamic_quantize",
    "embedding",
    "encode",
    "grouped_linear",
    "linear",
    "linear_input_grad",
    "quantize",
    "rescale",
    "round_up_to",
    "scaled_linear",
]

# Products of two int8 values fit 2**14, so 1024 of them sum exactly in float32 (2**24): an exact int32 accumulation at
# the speed of a float matrix product, where torch._int_mm is missing or slow.
_EXACT_CHUNK = 1024


def encode(values: Tensor, qtype: QType) -> Tensor:
    """Rounds scaled values (float) to unpacked codes of `qtype.storage` dtype.

    NaN becomes the code of zero (integers and tables) or NaN (float8). Ties go to the even integer, and to the even
    code of a table.
    """
    if qtype.is_integer:
        codes = torch.nan_to_num(values, nan=0.0).round().clamp(qtype.qmin, qtype.qmax)
        return codes.to(torch.int8) if qtype.bits == 8 else (codes - qtype.qmin).to(torch.uint8)
    if qtype.element is not None:
        # The cast overflows to NaN or infinity; saturate instead.
        return values.clamp(-qtype.amax, qtype.amax).to(qtype.element).view(torch.uint8)
    return _nearest(values, qtype)


def _nearest(values: Tensor, qtype: QType) -> Tensor:
    assert qtype.table is not None
    table, order = torch.tensor(qtype.table, dtype=values.dtype).sort()
    middles = (table[1:] + table[:-1]) / 2
    # bucketize puts a value on a boundary below it: where the code below is odd, the boundary moves down by one step.
    down = torch.nextafter(middles, torch.full_like(middles, -torch.inf))
    middles = torch.where(order[:-1] % 2 == 0, middles, down).to(values.device)
    rank = torch.bucketize(values.contiguous(), middles, out_int32=True)  # it warns of anything else
    codes = order.to(values.device, torch.uint8)[rank]
    return torch.where(values.isnan(), qtype.table.index(0.0), codes)


def decode(codes: Tensor, qtype: QType, dtype: torch.dtype = torch.float32) -> Tensor:
    """The element value of each unpacked code."""
    if qtype.is_integer:
        return codes.to(dtype) if qtype.bits == 8 else codes.to(dtype) + qtype.qmin
    if qtype.element is not None:
        return codes.view(qtype.element).to(dtype)
    return torch.tensor(qtype.table, dtype=dtype, device=codes.device)[codes.int()]


def round_up_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts non-negative `x` to the nearest value of `dtype` that is not smaller.

    Dividing by it then never exceeds the range the scale was made for. Zero and what underflows become the smallest
    positive value, what is beyond the largest finite value becomes that; infinity and NaN stay what they are.
    """
    if dtype == torch.float8_e8m0fnu:
        mantissa, exponent = torch.frexp(x)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
        exponent = torch.where(x == 0, -127, exponent)
        return torch.where(x.isfinite(), (exponent + 127).clamp(0, 254), 255).to(torch.uint8).view(dtype)
    if dtype == x.dtype:
        return x.clamp_min(torch.finfo(dtype).tiny)
    low = torch.where(x.isinf(), x, x.clamp(max=torch.finfo(dtype).max)).to(dtype)
    bits = {1: torch.uint8, 2: torch.int16}[dtype.itemsize] if dtype.itemsize < 4 else torch.int32
    nearest = low.to(x.dtype)
    step = ((nearest < x) & (nearest < torch.finfo(dtype).max)) | (nearest == 0)
    return (low.view(bits) + step.to(bits)).view(dtype)


def _multiplier(scale: Tensor, global_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    scale = scale.to(dtype)
    return scale if global_scale is None else scale * global_scale.to(dtype)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    qtype: str,
    block_size: Sequence[int],
) -> Tensor:
    """Codes of `x`, packed along the last dimension: `round(x / scale) + zero_point`."""
    q = get_qtype(qtype)
    compute = _compute_dtype(x.dtype)
    factor = _multiplier(scale, global_scale, compute)
    values = x.to(compute)
    if block_size:
        values = split(values, block_size) / spread(factor)
        if zero_point is not None:
            values = _shift(values, spread(zero_point))
        codes = merge(encode(values, q), x.shape)
    else:
        values = values / factor
        codes = encode(values if zero_point is None else _shift(values, zero_point), q)
    return packing.pack(codes.contiguous(), q.bits)


def _shift(values: Tensor, zero_point: Tensor) -> Tensor:
    """Integer zero points are added after rounding, so that zero stays exact."""
    if zero_point.is_floating_point():
        return values + zero_point.to(values.dtype)
    return values.round() + zero_point.to(values.dtype)


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    qtype: str,
    block_size: Sequence[int],
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The values, `[..., size]` of `dtype`."""
    q = get_qtype(qtype)
    compute = _compute_dtype(dtype)
    factor = _multiplier(scale, global_scale, compute)
    values = decode(packing.unpack(codes, q.bits, size), q, compute)
    if not block_size:
        if zero_point is not None:
            values = values - zero_point.to(compute)
        return (values * factor).to(dtype)
    shape = values.shape
    values = split(values, block_size)
    if zero_point is not None:
        values = values - spread(zero_point).to(compute)
    return merge((values * spread(factor)).to(dtype), shape)


def linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    bias: Tensor | None,
    qtype: str,
    block_size: Sequence[int],
) -> Tensor:
    """`x @ dequantize(weight).T + bias` in x's dtype."""
    weight = dequantize(codes, scale, zero_point, global_scale, qtype, block_size, x.shape[-1], x.dtype)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def linear_input_grad(
    grad: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    qtype: str,
    block_size: Sequence[int],
    size: int,
) -> Tensor:
    """`grad @ dequantize(weight)`: the gradient of `linear` with respect to its input."""
    return grad @ dequantize(codes, scale, zero_point, global_scale, qtype, block_size, size, grad.dtype)


def dynamic_quantize(x: Tensor, qtype: str, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One symmetric scale per row of the last dimension (per token): codes `[..., K]` and scale `[..., 1]`."""
    q = get_qtype(qtype)
    compute = _compute_dtype(x.dtype)
    peak = x.to(compute).abs().amax(dim=-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1).to(compute)
    scale = round_up_to(torch.where(peak == 0, 1.0, peak / q.amax), scale_dtype)
    return packing.pack(encode(x.to(compute) / scale.to(compute), q), q.bits), scale


def _matmul(a: Tensor, b: Tensor, exact: bool) -> Tensor:
    """`a @ b.T` of integer-valued float32 matrices; exact integers in int64 if `exact`."""
    if not exact:
        return a @ b.T
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int64, device=a.device)
    for x, w in zip(a.split(_EXACT_CHUNK, 1), b.split(_EXACT_CHUNK, 1), strict=True):
        total += (x @ w.T).to(torch.int64)
    return total


def scaled_linear(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    bias: Tensor | None,
    x_qtype: str,
    qtype: str,
    block_size: Sequence[int],
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> Tensor:
    """Linear layer on quantized activations.

    int8 codes times integer weights with one scale per channel accumulate in int32; with one input scale per tensor
    the bias is added as int32 too, in units of `x_scale * scale`. Everything else multiplies in float32.

    Args:
        x_codes: unpacked codes `[..., K]`.
        x_scale: `[]` (static, per tensor) or `[..., 1]` (dynamic, per token).
        out_scale: if given, the result is rescaled to it and returned as codes of `x_qtype`.
        dtype: of the result where `out_scale` is None.
        nonlinearity: what the sum goes through before it is rounded; see `quanto.nonlinearity`.
    """
    xq, wq = get_qtype(x_qtype), get_qtype(qtype)
    size = x_codes.shape[-1]
    lead = x_codes.shape[:-1]
    x = decode(x_codes, xq).reshape(-1, size)
    xs = x_scale.float().reshape(-1, 1) if x_scale.ndim else x_scale.float()
    per_channel = len(block_size) == 2 and block_size[0] == 1 and block_size[1] >= size
    whole = not (zero_point is not None and zero_point.is_floating_point())
    if xq.is_integer and wq.is_integer and per_channel and whole:
        weight = decode(packing.unpack(codes, wq.bits, size), wq)
        if zero_point is not None:
            weight = weight - zero_point.float()
        # an affine int8 weight may reach +-255: half the exact chunk of products with int8 still holds 2**24
        total = _matmul(x, weight, exact=True) if zero_point is None or wq.bits < 8 else _wide(x, weight)
        y = rescale(total, xs, _multiplier(scale, global_scale, torch.float32).reshape(1, -1), bias)
    else:
        weight = dequantize(codes, scale, zero_point, global_scale, qtype, block_size, size, torch.float32)
        y = (x @ weight.T) * xs
        if bias is not None:
            y = y + bias.float()
    y = apply(y, nonlinearity).reshape(*lead, y.shape[-1])
    if out_scale is None:
        return y.to(dtype)
    return encode(y / out_scale.float(), xq)


def _wide(x: Tensor, weight: Tensor) -> Tensor:
    low = torch.div(weight, 2, rounding_mode="floor")
    return 2 * _matmul(x, low, True) + _matmul(x, weight - 2 * low, True)


def rescale(total: Tensor, x_scale: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """float32 values of integer sums `[T, N]`, bias added.

    With one input scale per tensor the bias joins as an int32 in units of `x_scale * scale`; where it would not fit
    (channels with a tiny scale), and with a scale per token, it is added as a float.
    """
    unit = x_scale * scale
    if bias is None:
        return total.float() * unit
    if x_scale.ndim:
        return total.float() * unit + bias.float()
    ticks = (bias.float() / unit).round()
    fits = ticks.abs() < 2**30
    y = (total + torch.where(fits, ticks, 0.0).to(torch.int64)).float() * unit
    return y + torch.where(fits, 0.0, bias.float())


def grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    qtype: str,
    block_size: Sequence[int],
) -> Tensor:
    """Mixture-of-experts linear: rows `offsets[e-1]:offsets[e]` of x meet expert e.

    Args:
        x: `[T, K]`, sorted by expert.
        codes: `[E, N, packed K]`; scale `[E, N, groups]`; bias `[E, N]` or None.
        offsets: int32 `[E]`, the end of each expert's rows; rows past the last one give zeros.
        block_size: of the 3-D weight, `(1, 1, g)` for groups.
    """
    y = x.new_zeros(x.shape[0], codes.shape[1])
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > start:
            block = expert // block_size[0] if block_size else ...
            zero = None if zero_point is None else zero_point[block]
            own = None if bias is None else bias[expert]
            rows = x[start:end]
            y[start:end] = linear(rows, codes[expert], scale[block], zero, global_scale, own, qtype, block_size[1:])
        start = max(start, end)
    return y


def embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    qtype: str,
    block_size: Sequence[int],
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows of a quantized table, decoded: `[*indices.shape, size]` of `dtype`."""
    rows = indices.reshape(-1)
    own = codes.index_select(0, rows)  # unlike codes[rows] it refuses negative indices, as torch's embedding does
    if not block_size:
        values = dequantize(own, scale, zero_point, global_scale, qtype, (), size, dtype)
    else:
        blocks = rows if block_size[0] == 1 else torch.div(rows, block_size[0], rounding_mode="floor")
        zero = None if zero_point is None else zero_point[blocks]
        values = dequantize(own, scale[blocks], zero, global_scale, qtype, (1, block_size[1]), size, dtype)
    return values.reshape(*indices.shape, size)
