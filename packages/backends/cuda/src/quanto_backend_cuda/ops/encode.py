# SPDX-License-Identifier: Apache-2.0
"""`quantize`, `dynamic_quantize`, `pack`, `unpack`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quanto import packing, reference
from quanto.qtypes import get_qtype

from ..runtime import dependent_launch, interpreted, launch
from . import check
from .weights import facts, raw_scale

__all__ = ["casts", "dynamic_quantize", "pack", "quantize", "unpack"]


# Tokens up to which the quantizer begins before the kernel ahead has ended, and lets the next one do so. Between eight
# and 129, and where its blocks do not fit at once, the product after it would find room on some multiprocessors only
# (int8, 256 tokens, us so and one after the other: 14336 x 4096 33.9 and 36.4, 8192 x 28672 128 and 110).
_FEW, _MANY, _MANY_SIZE = 8, (129, 256), 8192
# Bytes of a row that 256 threads keep.
_KEPT = 1 << 16


def casts(device: torch.device) -> bool:
    """Whether the device converts to float8 itself."""
    if device.type != "cuda" or interpreted() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: list[int],
    *,
    traced: bool = False,
) -> Tensor:
    """The operator, for weights whose leading dimensions do not share scales, and one scale for everything."""
    from ..kernels.encode import encode_rows

    check.activations("x", x)
    check.same_device(x.device, scale=scale, zero_point=zero, global_scale=shared)
    q = get_qtype(qtype)
    size = x.shape[-1] if x.ndim else 1
    width = packing.packed_size(size, q.bits)
    out = torch.empty(*x.shape[:-1], width, dtype=q.storage, device=x.device)
    if not out.numel():
        return out
    f = facts(qtype, [1, *block][-2:] if block else block, size)
    rows = x.reshape(-1, size).contiguous()
    raw, scale8 = raw_scale(scale.contiguous())
    flat_zero = None if zero is None else zero.contiguous()
    n = rows.shape[0]
    bn, bk = (16, 256) if n >= 16 else (1, 1024)
    groups = scale.shape[-1] if scale.ndim else 1
    launch(
        encode_rows, (-(-n // bn), -(-size // bk)), rows, raw, flat_zero, shared, out, n, size, groups, width,
        KIND=f.kind, BITS=f.bits, GROUP=f.group, ROWS=f.rows, SCALE8=scale8,
        FLOAT_ZERO=zero is not None and zero.is_floating_point(), CAST=casts(x.device), BN=bn, BK=bk, num_warps=8,
    )  # fmt: skip
    return out


def dynamic_quantize(x: Tensor, qtype: str, scale_dtype: torch.dtype, *, traced: bool = False) -> tuple[Tensor, Tensor]:
    """The operator: one pass over x, and one scale per token."""
    from ..kernels.encode import encode_tokens

    check.activations("x", x)
    if scale_dtype != torch.float32:
        codes, scale = reference.dynamic_quantize(x, qtype, scale_dtype)
        return codes.contiguous(), scale.contiguous()
    q = get_qtype(qtype)
    size = x.shape[-1]
    codes = torch.empty(x.shape, dtype=q.storage, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    if not size:
        scale.fill_(1.0)
    if not codes.numel():
        return codes, scale
    rows = x.reshape(-1, size)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    block = max(1 << (size - 1).bit_length(), 16)
    whole = block * x.element_size() <= _KEPT
    kind = facts(qtype, (), size).kind
    pdl = _early(rows.shape[0], size) and dependent_launch(x.device) and not traced
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    launch(
        encode_tokens, (rows.shape[0],), rows, codes, scale, size, rows.stride(0), KIND=kind, CAST=casts(x.device),
        BK=block if whole else 4096, WHOLE=whole, PDL=pdl, num_warps=8 if block > 1024 else 4, traced=traced, **options,
    )  # fmt: skip
    return codes, scale


def _early(tokens: int, size: int) -> bool:
    return tokens <= _FEW or (_MANY[0] <= tokens <= _MANY[1] and size <= _MANY_SIZE)


def pack(codes: Tensor, bits: int, *, traced: bool = False) -> Tensor:
    """The operator."""
    from ..kernels.bits import pack_rows

    size = codes.shape[-1]
    width = packing.packed_size(size, bits)
    out = torch.empty(*codes.shape[:-1], width, dtype=torch.uint8, device=codes.device)
    if out.numel():
        rows = codes.reshape(-1, size).contiguous()
        n = rows.shape[0]
        launch(pack_rows, (-(-n // 8), -(-size // 256)), rows, out, n, size, width, BITS=bits, BN=8, BK=256)
    return out


def unpack(packed: Tensor, bits: int, size: int, *, traced: bool = False) -> Tensor:
    """The operator."""
    from ..kernels.bits import unpack_rows

    width = packing.packed_size(size, bits)
    if packed.shape[-1] < width:
        raise ValueError(f"packed has {packed.shape[-1]} bytes a row, {size} codes of {bits} bits need {width}")
    out = torch.empty(*packed.shape[:-1], size, dtype=torch.uint8, device=packed.device)
    if out.numel():
        rows = packed.reshape(-1, packed.shape[-1]).contiguous()
        n = rows.shape[0]
        launch(unpack_rows, (-(-n // 8), -(-size // 256)), rows, out, n, size, rows.shape[-1], BITS=bits, BN=8, BK=256)
    return out
