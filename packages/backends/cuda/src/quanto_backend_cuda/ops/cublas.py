# SPDX-License-Identifier: Apache-2.0
"""`scaled_linear` of many tokens by cuBLAS (`torch._scaled_mm`), where tables say that it is faster than our kernel.

It wants the scales of the weight in float32; a small kernel widens them in each call, so that nothing is kept that
could grow old while a graph holds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import dependent_launch, launch
from .trial import Trial

__all__ = ["TRIAL", "start", "takes", "widened"]

#: what is known of it.
TRIAL = Trial("products of float8 by cuBLAS")
_BLOCK = 1024


def takes(qtype: str, scale: Tensor, bias: Tensor | None, out: Tensor, then: str) -> bool:
    """Whether cuBLAS has such a product: float8 of one kind, bfloat16 results, nothing added."""
    plain = bias is None and not then and out.dtype == torch.bfloat16 and scale.dtype in (torch.bfloat16, torch.float32)
    return plain and qtype == "float8_e4m3fn" and out.shape[1] % 16 == 0


def start(x: Tensor, xs: Tensor, codes: Tensor, scale: Tensor, out: Tensor) -> None:
    """`out = (x @ codes.T) * xs * scale` of float8 tensors."""
    torch._scaled_mm(
        x, codes.t(), scale_a=xs.reshape(-1, 1), scale_b=widened(scale), out_dtype=out.dtype, use_fast_accum=True,
        out=out,
    )  # fmt: skip


def widened(scale: Tensor) -> Tensor:
    """Scales of rows as float32 `[1, N]`."""
    from ..kernels.encode import widen

    n = scale.numel()
    if scale.dtype == torch.float32:
        return scale.reshape(1, n)
    rows = torch.empty(1, n, dtype=torch.float32, device=scale.device)
    pdl = dependent_launch(scale.device)
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    launch(widen, (-(-n // _BLOCK),), scale, rows, n, BLOCK=_BLOCK, PDL=pdl, num_warps=4, **options)
    return rows
