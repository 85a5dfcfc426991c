# SPDX-License-Identifier: Apache-2.0
"""`scaled_linear` for many tokens on Hopper: the kernel whose tiles all come by TMA, where Triton has Gluon for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..runtime import launch
from ..tables import Tile, nearest
from ..workspace import locks
from . import cublas
from .specialized import dealt
from .stream import settle
from .trial import Trial
from .weights import Facts

__all__ = ["KERNEL", "TOKENS", "TRIAL", "product", "start", "takes", "typed"]

#: its tables.
KERNEL = "product"
#: from which on it is the fastest.
TOKENS = 129
#: what is known of the kernel.
TRIAL = Trial("products of quantized activations")
_OUTPUTS = (torch.float16, torch.bfloat16)
_TYPES = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def takes(m: int, n: int, size: int, x_qtype: str, qtype: str, f: Facts, token: bool, dtype: torch.dtype) -> bool:
    """Whether the kernel knows such operands: one scale per token and per row, and rows of whole 16 bytes."""
    scales = token and f.group == 0 and f.rows == 1
    known = x_qtype == qtype and qtype in _TYPES and dtype in _OUTPUTS
    return scales and known and m >= TOKENS and size > 0 and size % 16 == 0 and n > 0 and n % 8 == 0


def typed(codes: Tensor, qtype: str) -> Tensor:
    """Codes as what they are."""
    return codes.view(_TYPES[qtype])


def product(
    x: Tensor, xs: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, qtype: str, then: str,
    reference: Callable[[], Tensor],
) -> bool:  # fmt: skip
    """Runs the kernel on contiguous tensors; False if it can't be used.

    Args:
        reference: computes the same with another kernel.
    """
    (m, size), n = x.shape, codes.shape[0]
    tile = nearest(KERNEL, qtype, m, n, size, x.device)
    settle(out, codes, scale)
    given = (typed(x, qtype), xs, typed(codes, qtype), scale, bias, out)
    ragged = (m % tile.bm > 0, n % tile.bn > 0, size % 128 > 0)
    if tile.elsewhere and cublas.takes(qtype, scale, bias, out, then) and cublas.TRIAL.serves(x.device):
        four = (*given[:4], out)
        if cublas.TRIAL.run(
            (scale.dtype, x.device.index), lambda: cublas.start(*four), x, (codes,), None, out, qtype, (),
            reference=reference,
        ):  # fmt: skip
            return True
    parts = (None if bias is None else bias.dtype, scale.dtype, out.dtype, then)
    kind = (qtype, tile, ragged, dealt(m, n, size, tile, x.device).rest > 0, parts, x.device.index)
    return TRIAL.run(
        kind, lambda: start(*given, tile, then), x, (codes,), bias, out, qtype, (),
        reference=reference,
    )  # fmt: skip


_NAMES = {
    torch.int8: "int8",
    torch.float8_e4m3fn: "float8e4nv",
    torch.float8_e5m2: "float8e5",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


@functools.lru_cache(maxsize=64)
def _layout(rows: int, columns: int, dtype: torch.dtype) -> Any:
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout.get_default_for([rows, columns], getattr(gl, _NAMES[dtype]))


def start(
    x: Tensor, xs: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, tile: Tile, then: str = ""
) -> None:
    """Starts the kernel, on contiguous tensors."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from ..kernels.product import product as kernel

    m, n = x.shape[0], codes.shape[0]
    down, across, chunks, whole, rest, sharers, blocks, _ = dealt(m, n, x.shape[1], tile, x.device)
    partial = counters = None
    if rest:
        sums = torch.int32 if x.dtype == torch.int8 else torch.float32
        partial = torch.empty(2 * sharers * tile.bn * tile.bm, dtype=sums, device=x.device)
        counters = locks(x.device, 2 * rest)
    half, columns = tile.bm // 2, min(tile.bn, 16384 // tile.bm)
    views = [(x, half, 128), (codes, tile.bn, 128), (out, half, columns)]
    a, b, c = (TensorDescriptor.from_tensor(t, [r, k], _layout(r, k, t.dtype)) for t, r, k in views)
    launch(
        kernel, (blocks,), a, xs, b, scale, bias, c, partial, counters, m, n, down, across, chunks, whole, rest,
        sharers, STAGES=tile.stages, STRIPE=tile.stripe, THEN=then, num_warps=4, launch_pdl=True,
    )  # fmt: skip
