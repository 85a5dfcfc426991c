# SPDX-License-Identifier: Apache-2.0
"""`linear` and `grouped_linear` on floating activations.

The fused kernel, and for many tokens decoding by parts and cuBLAS; on Hopper the kernel that reads the weight ahead for
few tokens, and the one with specialized warps for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quanto.kernels import Request

from ..runtime import assembly, dependent_launch, interpreted, launch, warpgroups
from ..tables import Tile, nearest
from ..workspace import locks
from . import check, specialized
from . import stream as streaming
from .dense import linear_by_parts
from .trial import gluon
from .weights import Facts, aligned, facts, raw_scale

__all__ = ["FUSED_TOKENS", "checks_itself", "fused", "grouped_linear", "linear", "start"]

# Above, decoding the weight and cuBLAS is faster (H100, int4, us fused and by parts: 14336 x 4096, 512 tokens 114 and
# 125, 1024 tokens 228 and 200; 8192 x 28672, 1024 tokens 785 and 680). Where `specialized` runs neither is used.
FUSED_TOKENS = 512
_HALVES = (torch.float16, torch.bfloat16)


def fused(x: Tensor, tokens: int, size: int, f: Facts, tiled: bool) -> bool:
    """Whether the fused kernel takes the problem."""
    if x.dtype not in _HALVES or not 0 < tokens <= FUSED_TOKENS:
        return False
    return f.by_tiles if tiled else f.by_words and size % 128 == 0


def linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    qtype: str,
    block: list[int],
    *,
    traced: bool = False,
    tiled: bool = False,
) -> Tensor:
    """The operator; any number of tokens."""
    check.activations("x", x)
    check.same_device(x.device, codes=codes, scale=scale, zero_point=zero, global_scale=shared, bias=bias)
    size = x.shape[-1]
    check.weight("x", size, codes, scale, zero, bias, qtype, block, tiled)
    rows = x.reshape(-1, size).contiguous()
    count = codes.shape[0]
    shape = (*x.shape[:-1], count)
    f = facts(qtype, block, size)
    if rows.shape[0] == 0 or count == 0:
        return x.new_empty(shape)
    weight = (codes.contiguous(), scale.contiguous(), None if zero is None else zero.contiguous(), shared)
    if tiled and not traced and _streams(rows, rows.shape[0], scale, zero, f):
        out = torch.empty(rows.shape[0], count, dtype=x.dtype, device=x.device)
        if streaming.stream(rows, weight, bias, f, out, qtype, block):
            return out.reshape(shape)
    if tiled and not traced and _specialized(rows, rows.shape[0], scale, zero, f):
        out = torch.empty(rows.shape[0], count, dtype=x.dtype, device=x.device)
        if specialized.specialized(aligned(rows), (aligned(weight[0]), *weight[1:]), bias, f, out, qtype, block):
            return out.reshape(shape)
    if not fused(rows, rows.shape[0], size, f, tiled):
        return linear_by_parts(rows, weight, bias, qtype, block, tiled).reshape(shape)
    weight = (aligned(weight[0]), *weight[1:])
    tile = nearest("linear", qtype, rows.shape[0], count, size, x.device)
    out = torch.empty(rows.shape[0], count, dtype=x.dtype, device=x.device)
    start(rows, weight, bias, None, out, f, tile, tiled, traced)
    return out.reshape(shape)


def _streams(x: Tensor, tokens: int, scale: Tensor, zero: Tensor | None, f: Facts) -> bool:
    """Whether the kernel that reads the weight ahead takes the problem."""
    known = tokens <= streaming.TOKENS and streaming.takes(f, x.shape[-1], x.dtype, zero, scale)
    return known and streaming.TRIAL.serves(x.device)


def _specialized(x: Tensor, tokens: int, scale: Tensor, zero: Tensor | None, f: Facts) -> bool:
    """Whether the kernel with specialized warps takes the problem."""
    known = tokens >= specialized.TOKENS and specialized.takes(f, x.shape[-1], x.dtype, zero, scale)
    return known and specialized.TRIAL.serves(x.device)


def checks_itself(request: Request) -> bool:
    """Whether kernels in Gluon, whose first results are compared, take such a weight at any number of tokens."""
    if interpreted() or not gluon() or not torch.cuda.is_available():
        return False
    if not all(warpgroups(torch.device("cuda", index)) for index in range(torch.cuda.device_count())):
        return False
    size = request.shape[-1]
    f = facts(request.qtype, request.block_size, size)
    scale = torch.empty(0, dtype=request.scale_dtype, device="meta")
    point = torch.int8 if request.zero_point == "int" else request.dtype
    zero = None if request.zero_point == "none" else torch.empty(0, dtype=point, device="meta")
    kernels = (streaming, specialized)
    return all(k.takes(f, size, request.dtype, zero, scale) and not k.TRIAL.refused for k in kernels)


def dissolves(x: Tensor, codes: Tensor, *rest: Any, tiled: bool = False) -> bool:
    """Whether a traced call becomes a Triton kernel in the graph; Inductor knows no kernel in Gluon."""
    size, qtype, block = x.shape[-1], rest[-2], rest[-1]
    f = facts(qtype, block, size)
    tokens = x.numel() // max(size, 1)
    if tiled and any(serves(x, tokens, rest[0], rest[1], f) for serves in (_streams, _specialized)):
        return False
    return bool(codes.shape[0]) and fused(x, tokens, size, f, tiled)


def grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    qtype: str,
    block: list[int],
    *,
    traced: bool = False,
) -> Tensor:
    """The operator: one launch for all experts, without asking the device how many tokens each has."""
    check.activations("x", x)
    given = {"codes": codes, "scale": scale, "zero_point": zero, "global_scale": shared, "bias": bias}
    check.same_device(x.device, **given, offsets=offsets)
    size = x.shape[-1]
    check.weight("x", size, codes, scale, zero, bias, qtype, block, False)
    if offsets.shape != codes.shape[:1] or offsets.dtype != torch.int32:
        raise ValueError(f"offsets must be int32 [{codes.shape[0]}], got {offsets.dtype} {tuple(offsets.shape)}")
    experts, count = codes.shape[:2]
    out = torch.zeros(x.shape[0], count, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    f = facts(qtype, block[1:], size)
    weight = [None if t is None else t.contiguous() for t in (codes, scale, zero)]
    if x.dtype in _HALVES and f.by_words and size % 128 == 0:
        tile = nearest("linear", qtype, max(x.shape[0] // experts, 1), count, size, x.device)
        weight[0] = aligned(weight[0])  # type: ignore[arg-type]
        start(x.contiguous(), (*weight, shared), bias, offsets, out, f, tile, False, traced)
        return out
    begin = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > begin:
            own = [None if t is None else t[expert] for t in weight]
            plus = None if bias is None else bias[expert]
            out[begin:end] = linear_by_parts(x[begin:end].contiguous(), (*own, shared), plus, qtype, block[1:], False)
        begin = max(begin, end)
    return out


def start(
    x: Tensor,
    weight: Sequence[Any],
    bias: Tensor | None,
    offsets: Tensor | None,
    out: Tensor,
    f: Facts,
    tile: Tile,
    tiled: bool,
    traced: bool,
) -> None:
    """Starts the fused kernel on contiguous tensors."""
    from ..kernels import linear as kernels

    codes, scale, zero, shared = weight
    raw, scale8 = raw_scale(scale)
    m, size = x.shape
    n = codes.shape[-2]
    chunks = -(-size // 128)
    experts = 1 if offsets is None else codes.shape[0]
    # tiles of experts: each may end with one that is not full
    down = -(-m // tile.bm) if offsets is None else min(m, -(-m // tile.bm) + experts)
    splits = tile.splits(m, n, chunks) if offsets is None else 1
    across = -(-n // tile.bn)
    partial = counters = None
    if splits > 1:
        partial = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
        if traced:
            counters = torch.ops.quanto_cuda.locks(x, down * across)
        else:
            counters = locks(x.device, down * across)
    pdl = dependent_launch(x.device) and not traced  # a graph knows no assembly that is not pure, and would copy all
    sync = not warpgroups(x.device) or tile.warps % 4 > 0
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    launch(
        kernels.linear, (down, across, splits), x, codes.view(torch.uint8), raw, zero, shared, bias, out, partial,
        counters, offsets, m, n, size, chunks, scale.shape[-1] if scale.ndim else 1, experts, splits,
        KIND=f.kind, TILED=tiled, STILED=tiled and f.rows == 1, GROUP=f.group, ROWS=f.rows, SCALE8=scale8,
        FLOAT_ZERO=zero is not None and zero.is_floating_point(), EVEN=size % 128 == 0,
        TAIL=tile.kw > 1 and chunks % tile.kw > 0, ON_WEIGHT=tile.on_weight and f.group > 0 and f.group % 128 == 0,
        BN=tile.bn, BM=tile.bm, KW=tile.kw, STAGES=tile.stages, SPLIT=splits > 1, ASM=assembly(x.device, f.kind),
        PDL=pdl, SYNC=sync, AHEAD=tile.ahead if pdl and tiled else 0, WIDE=interpreted() and x.dtype == torch.bfloat16,
        EXPERTS=1 << (experts - 1).bit_length(), num_warps=tile.warps, num_stages=tile.stages, traced=traced,
        **options,
    )  # fmt: skip
