# SPDX-License-Identifier: Apache-2.0
"""`scaled_linear` of many tokens by cuBLAS (`torch._scaled_mm`), where tables say that it is faster than our kernel.

It wants the scales of the weight in float32; a small kernel widens them in each call, so that nothing is kept that
could grow old while a graph holds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime import dependent_launch, launch
from .trial import Trial

__all__ = ["TRIAL", "start", "takes"]

#: what is known of it.
TRIAL = Trial("products of float8 by cuBLAS")
_BLOCK = 1024


def takes(qtype: str, scale: Tensor, bias: Tensor | None, out: Tensor, then: str) -> bool:
    """Whether cuBLAS has such a product: float8 of one kind, bfloat16 results, nothing added."""
    plain = bias is None and not then and out.dtype == torch.bfloat16 and scale.dtype in (torch.bfloat16, torch.float32)
    return plain and qtype == "float8_e4m3fn" and out.shape[1] % 16 == 0


def start(x: Tensor, xs: Tensor, codes: Tensor, scale: Tensor, out: Tensor) -> None:
    """`out = (x @ codes.T) * xs * scale` of float8 tensors."""
    from ..kernels.encode import widen

    n = codes.shape[0]
    rows = scale.reshape(1, n)
    if scale.dtype != torch.float32:
        rows = torch.empty(1, n, dtype=torch.float32, device=x.device)
        pdl = dependent_launch(x.device)
        launch(
            widen, (-(-n // _BLOCK),), scale, rows, n, BLOCK=_BLOCK, PDL=pdl, num_warps=4,
            **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    torch._scaled_mm(
        x, codes.t(), scale_a=xs.reshape(-1, 1), scale_b=rows, out_dtype=out.dtype, use_fast_accum=True, out=out
    )
