# SPDX-License-Identifier: Apache-2.0
"""What follows a product of quantized operands: scales, bias, a function, and the codes for the next layer."""

from __future__ import annotations

import triton
import triton.language as tl

from .encode import float8, integer

__all__ = ["put", "rescaled", "through"]


@triton.jit
def rescaled(total, x_scale, w, bias, m, n, M, N, TOKEN: tl.constexpr, FLOAT: tl.constexpr, SWAPPED: tl.constexpr):
    """`total * x_scale * w + bias`; where both are integers and x has one scale, the bias joins as an integer.

    Args:
        total: sums [rows, tokens] (`SWAPPED`) or [tokens, rows].
        w: scales of the rows, or None where they are applied already.
    """
    if TOKEN:
        xs = tl.load(x_scale + m, mask=m < M, other=0.0)
        unit = xs[None, :] if SWAPPED else xs[:, None]
    else:
        unit = tl.load(x_scale)
    if w is not None:
        unit = unit * (w[:, None] if SWAPPED else w[None, :])
    if bias is None:
        y = total.to(tl.float32) * unit
    else:
        b = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
        b = b[:, None] if SWAPPED else b[None, :]
        if TOKEN or FLOAT:
            y = total.to(tl.float32) * unit + b
        else:
            ticks = b / unit
            fits = tl.abs(ticks) < 4194304.0
            whole = tl.where(fits, (ticks + 12582912.0) - 12582912.0, 0.0)
            y = (total + whole.to(tl.int32)).to(tl.float32) * unit + tl.where(fits, 0.0, b)
    return y


@triton.jit
def through(y, THEN: tl.constexpr):
    """`y` through a function of `quanto.nonlinearity`, by name."""
    if THEN == "relu":
        y = tl.where(y < 0, 0.0, y)  # NaN stays
    elif THEN == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    elif THEN == "gelu_tanh":
        y = y * tl.sigmoid(1.5957691216057308 * y * (1 + 0.044715 * y * y))
    elif THEN == "silu":
        y = y * tl.sigmoid(y)
    return y


@triton.jit
def put(y, out, out_scale, at, inside, KIND: tl.constexpr, CAST: tl.constexpr):
    """Stores floats, or codes of the scale that the next layer takes."""
    if out_scale is None:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
    else:
        y = tl.div_rn(y, tl.broadcast_to(tl.load(out_scale), y.shape))
        if KIND == "int8":
            code = integer(y, None, 8)
        else:
            code = float8(y, KIND == "float8_e4m3fn", CAST)
        tl.store(out + at, code.to(out.dtype.element_ty), mask=inside)
