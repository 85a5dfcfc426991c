# SPDX-License-Identifier: Apache-2.0
"""`scaled_linear`: int8 x int8, float8 x float8 and int4 x int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quanto.nonlinearity import check_nonlinearity
from quanto.qtypes import get_qtype

from ..runtime import dependent_launch, interpreted, launch, sm_count
from ..tables import Tile, nearest
from ..workspace import locks
from . import check
from . import product as products
from .encode import casts
from .weights import aligned, facts

__all__ = ["dissolves", "scaled_linear", "start"]

# Where float8 is multiplied as halves, which take twice the shared memory.
_HALVES_FEW, _HALVES_MANY = Tile(64, 16, stages=3), Tile(64, 64, 0, stages=3)
_FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def scaled_linear(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    x_qtype: str,
    qtype: str,
    block: list[int],
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
    *,
    traced: bool = False,
) -> Tensor:
    """The operator on canonical weights; any number of tokens."""
    check_nonlinearity(nonlinearity)
    device = x_codes.device
    check.same_device(
        device, x_scale=x_scale, codes=codes, scale=scale, zero_point=zero, bias=bias, out_scale=out_scale
    )
    storage = get_qtype(x_qtype).storage
    if x_codes.dtype != storage:
        raise TypeError(f"x_codes must be {storage} for {x_qtype}, got {x_codes.dtype}")
    size, n = x_codes.shape[-1], codes.shape[0]
    check.weight("x_codes", size, codes, scale, zero, bias, qtype, block, False)
    if shared is not None:
        raise ValueError(f"scaled_linear takes no global_scale; {qtype} was given one")
    x = x_codes.reshape(-1, size).contiguous()
    m = x.shape[0]
    token = x_scale.ndim > 0
    if token and x_scale.numel() != m:
        raise ValueError(f"x_scale has {x_scale.numel()} scales for {m} tokens")
    out = torch.empty(m, n, dtype=dtype if out_scale is None else storage, device=device)
    shape = (*x_codes.shape[:-1], n)
    if not out.numel():
        return out.reshape(shape)
    xs = x_scale.float().reshape(-1).contiguous()
    weight = (aligned(codes.contiguous()), scale.contiguous(), None if zero is None else zero.contiguous())
    tile = nearest("scaled", qtype, m, n, size, device)
    if out_scale is not None and x_qtype in _FLOAT8:
        tile = _HALVES_FEW if m <= 16 else _HALVES_MANY

    def run(to: Tensor) -> Tensor:
        start(aligned(x), xs, weight, bias, to, out_scale, x_qtype, qtype, block, token, tile, traced, nonlinearity)
        return to

    if not traced and _by_product(m, n, size, x_qtype, qtype, block, token, zero, out_scale, dtype, device):
        given = (aligned(x), xs, *weight[:2], bias, out, qtype, nonlinearity)
        if products.product(*given, lambda: run(torch.empty_like(out))):
            return out.reshape(shape)
    return run(out).reshape(shape)


def _by_product(
    m: int, n: int, size: int, x_qtype: str, qtype: str, block: list[int], token: bool, zero: Any, out_scale: Any,
    dtype: torch.dtype, device: torch.device,
) -> bool:  # fmt: skip
    """Whether the kernel in Gluon takes the problem."""
    known = products.takes(m, n, size, x_qtype, qtype, facts(qtype, block, size), token, dtype)
    return known and zero is None and out_scale is None and products.TRIAL.serves(device)


def start(
    x: Tensor, xs: Tensor, weight: tuple[Tensor, Tensor, Tensor | None], bias: Any, out: Tensor, out_scale: Any,
    x_qtype: str, qtype: str, block: list[int], token: bool, tile: Tile, traced: bool, then: str = "",
) -> None:  # fmt: skip
    """Starts the kernel that the tile is for, on contiguous tensors."""
    codes, scale, zero = weight
    if tile.elsewhere:  # than in the kernel for few tokens
        _many(x, xs, codes, scale, bias, out, out_scale, x_qtype, token, tile, traced, then)
    else:
        _few(x, xs, codes, scale, zero, bias, out, out_scale, x_qtype, qtype, block, token, tile, traced, then)


def dissolves(x_codes: Tensor, *rest: Any) -> bool:
    """Whether a traced call becomes a Triton kernel in the graph.

    Tensor descriptors are made outside of graphs, and Inductor knows no kernel in Gluon.
    """
    n, size = rest[1].shape[0], x_codes.shape[-1]
    m = x_codes.numel() // max(size, 1)
    x_scale, _, _, zero, _, _, x_qtype, qtype, block, out_scale, dtype = rest[:11]
    if _by_product(m, n, size, x_qtype, qtype, block, x_scale.ndim > 0, zero, out_scale, dtype, x_codes.device):
        return False
    return bool(m and n and size) and not nearest("scaled", qtype, m, n, size, x_codes.device).tma


def _typed(x: Tensor, qtype: str) -> Tensor:
    """Float8 codes as the float8 they are."""
    return x.view(_FLOAT8[qtype]) if qtype in _FLOAT8 else x


def _few(
    x: Tensor, xs: Tensor, w: Tensor, ws: Tensor, zero: Tensor | None, bias: Any, out: Tensor, out_scale: Any,
    x_qtype: str, qtype: str, block: list[int], token: bool, tile: Tile, traced: bool, then: str,
) -> None:  # fmt: skip
    from ..kernels.scaled import few

    m, size = x.shape
    n = w.shape[0]
    f = facts(qtype, block, size)
    nibbles = qtype == "int4"
    chunks = -(-size // tile.bk)
    splits = tile.splits(m, n, chunks)
    down, across = -(-m // tile.bm), -(-n // tile.bn)
    partial = counters = None
    if splits > 1:
        integers = x_qtype == "int8" and f.group == 0
        partial = torch.empty(splits, m, n, dtype=torch.int32 if integers else torch.float32, device=x.device)
        counters = torch.ops.quanto_cuda.locks(x, down * across) if traced else locks(x.device, down * across)
    pdl = dependent_launch(x.device) and not traced  # see `linear.start`
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    launch(
        few, (down, across, splits), _typed(x, x_qtype), xs, w if nibbles else _typed(w, qtype), ws, zero, bias, out,
        out_scale, partial, counters, m, n, size, chunks, ws.shape[-1] if ws.ndim else 1, splits,
        X=x_qtype, NIBBLES=nibbles, GROUP=f.group, TOKEN=token, EVEN=size % tile.bk == 0,
        TAIL=tile.kw > 1 and chunks % tile.kw > 0, CAST=casts(x.device), BN=tile.bn, BM=tile.bm, BK=tile.bk,
        KW=tile.kw, STAGES=tile.stages, SPLIT=splits > 1,
        AHEAD=tile.ahead if pdl and size % tile.bk == 0 else 0, PDL=pdl, FLOAT=interpreted() and x_qtype in _FLOAT8,
        THEN=then, num_warps=tile.warps, num_stages=tile.stages, traced=traced, **options,
    )  # fmt: skip


def _many(
    x: Tensor, xs: Tensor, w: Tensor, ws: Tensor, bias: Any, out: Tensor, out_scale: Any, x_qtype: str, token: bool,
    tile: Tile, traced: bool, then: str,
) -> None:  # fmt: skip
    from ..kernels.scaled import many

    m, size = x.shape
    n = w.shape[0]
    a, b = _typed(x, x_qtype), _typed(w, x_qtype)
    tma = tile.tma and not traced and size % 16 == 0 and sm_count(x.device) > 1
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        a, b = (TensorDescriptor.from_tensor(t, [rows, tile.bk]) for t, rows in ((a, tile.bm), (b, tile.bn)))
    launch(
        many, (-(-m // tile.bm) * -(-n // tile.bn),), a, xs, b, ws, bias, out, out_scale, m, n, size, X=x_qtype,
        TOKEN=token, EVEN=size % tile.bk == 0, CAST=casts(x.device), SWAP=tile.swap, TMA=tma, BM=tile.bm, BN=tile.bn,
        BK=tile.bk, STRIPE=8, STAGES=tile.stages, FLOAT=interpreted() and x_qtype in _FLOAT8, THEN=then,
        num_warps=tile.warps, num_stages=tile.stages, traced=traced,
    )  # fmt: skip
