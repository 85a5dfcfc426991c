# SPDX-License-Identifier: Apache-2.0
"""Norms and activations of few tokens, which let the next kernel begin at once: it asks for its weight meanwhile.

Bound: latency, of the launch and of one trip to the L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import launch_dependents, wait_for_kernel_ahead

__all__ = ["activate_and_multiply", "rms_norm"]


@triton.jit
def rms_norm(
    x,
    residual,
    weight,
    total,
    normed,
    eps,
    N,
    x_row,
    r_row,
    BN: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """`normed = norm(x + residual) * weight` of one row; every result is rounded where PyTorch rounds it.

    Args:
        x, residual: `[rows, N]`, the last dimension contiguous; residual may be None, and then total, too.
        total, normed: `[rows, N]`, contiguous.
        BN: a power of two, at least N.
        PLUS_ONE: multiply with `weight + 1` in float32, as Gemma does.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BN)
    inside = n < N
    D: tl.constexpr = normed.dtype.element_ty
    if PDL:
        wait_for_kernel_ahead()
        launch_dependents()
    w = tl.load(weight + n, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(x + row * x_row + n, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + row * r_row + n, mask=inside, other=0.0).to(tl.float32)
        rounded = v.to(D)
        tl.store(total + row * N + n, rounded, mask=inside)
        v = rounded.to(tl.float32)
    v *= tl.rsqrt(tl.sum(v * v, 0) / N + eps)
    if PLUS_ONE:
        v *= w + 1.0
    else:
        v = v.to(D).to(tl.float32) * w
    tl.store(normed + row * N + n, v.to(D), mask=inside)


@triton.jit
def activate_and_multiply(gate, up, out, N, g_row, u_row, KIND: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr):
    """`out = activation(gate) * up`, the activation in float32 and rounded, as PyTorch does it.

    Args:
        gate, up: `[rows, N]`, the last dimension contiguous.
        out: contiguous.
        KIND: "silu", "gelu" or "gelu_tanh".
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = n < N
    D: tl.constexpr = out.dtype.element_ty
    if PDL:
        wait_for_kernel_ahead()
        launch_dependents()
    g = tl.load(gate + row * g_row + n, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * u_row + n, mask=inside, other=0.0).to(tl.float32)
    if KIND == "silu":
        a = g / (1.0 + tl.exp(-g))
    elif KIND == "gelu":
        a = g * 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
    else:  # tanh(t) = 1 - 2 / (exp(2 t) + 1)
        t = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        a = g * (1.0 - 1.0 / (tl.exp(2.0 * t) + 1.0))
    tl.store(out + row * N + n, (a.to(D).to(tl.float32) * u).to(D), mask=inside)
