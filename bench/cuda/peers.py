# SPDX-License-Identifier: Apache-2.0
"""What others have: PyTorch's own kernels, and libraries where they are installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .candidate import Built, Candidate, Missing, clones, size_of

__all__ = ["candidates"]

_GROUP = 128


def candidates() -> list[Candidate]:
    """Every peer; building one that is not installed raises `Missing`."""
    return [
        Candidate("cuBLAS", "bf16", _bf16),
        Candidate("PyTorch", "tinygemm int4 g128 zeros", _tinygemm, tokens=(1, 64)),
        Candidate("PyTorch", "_scaled_mm float8, GEMM alone", _scaled_mm, tokens=(16, 1 << 30)),
        Candidate("PyTorch", "_int_mm int8, GEMM alone", _int_mm, tokens=(32, 1 << 30)),
        Candidate("bitsandbytes", "nf4 g64", _bitsandbytes),
    ]


def _bf16(weight: Tensor, cold: int) -> Built:
    copies = clones((weight,), cold)

    def calls(x: Tensor) -> list[Any]:
        return [lambda c=c: torch.nn.functional.linear(x, c[0]) for c in copies]

    return Built(size_of((weight,)), calls, weight.double)


def _tinygemm(weight: Tensor, cold: int) -> Built:
    n, k = weight.shape
    groups = weight.float().reshape(n, -1, _GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-6).to(weight.dtype)
    zero = (low + scale.float() * 8).to(weight.dtype)
    codes = ((groups - zero.float()) / scale.float() + 8).round().clamp(0, 15)
    values = ((codes - 8) * scale.float() + zero.float()).reshape(n, k)
    flat = codes.to(torch.int32).reshape(n, k)
    packed = torch.ops.aten._convert_weight_to_int4pack((flat[:, ::2] << 4 | flat[:, 1::2]).to(torch.uint8), 8)
    both = torch.cat([scale, zero], -1).transpose(0, 1).contiguous()  # [groups, n, 2]
    copies = clones((packed, both), cold)

    def calls(x: Tensor) -> list[Any]:
        return [lambda c=c: torch.ops.aten._weight_int4pack_mm(x, c[0], _GROUP, c[1]) for c in copies]

    return Built(size_of((packed, both)), calls, values.double)


def _scaled_mm(weight: Tensor, cold: int) -> Built:
    scale = (weight.float().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-12)
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    copies = clones((codes, scale.t().contiguous()), cold)

    def calls(x: Tensor) -> list[Any]:
        token = (x.float().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-12)
        a = (x.float() / token).to(torch.float8_e4m3fn)
        return [
            lambda c=c: torch._scaled_mm(
                a, c[0].t(), scale_a=token, scale_b=c[1], out_dtype=x.dtype, use_fast_accum=True
            )
            for c in copies
        ]

    return Built(size_of((codes, scale)), calls, lambda: codes.double() * scale.double())


def _int_mm(weight: Tensor, cold: int) -> Built:
    scale = (weight.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
    codes = (weight.float() / scale).round().to(torch.int8)
    copies = clones((codes,), cold)

    def calls(x: Tensor) -> list[Any]:
        token = (x.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
        a = (x.float() / token).round().to(torch.int8)
        return [lambda c=c: torch._int_mm(a, c[0].t()) for c in copies]

    return Built(size_of((codes,)), calls, lambda: codes.double())


def _bitsandbytes(weight: Tensor, cold: int) -> Built:
    try:
        from bitsandbytes import functional, matmul_4bit
    except Exception as error:  # its library looks for CUDA when it is imported
        raise Missing(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    copies = clones((codes,), cold)

    def calls(x: Tensor) -> list[Any]:
        return [lambda c=c: matmul_4bit(x, c[0].t(), quant_state=state) for c in copies]

    return Built(size_of((codes, state.absmax)), calls, lambda: functional.dequantize_4bit(codes, state).double())
