# SPDX-License-Identifier: Apache-2.0
"""torch's own: float layers, the packed weight-only kernels, dynamically quantized Linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..candidate import Built, Candidate, TorchBuilt, clones, count
from ..problem import Problem

__all__ = ["candidates", "floats"]

F32, BF16 = torch.float32, torch.bfloat16
GROUP = 128


def floats() -> Iterator[Candidate]:
    """The float layers, to compare with."""
    for dtype in (F32, BF16):
        yield Candidate("torch", "F.linear", "float", "float", dtype, _float(dtype), everywhere=True)


def candidates() -> Iterator[Candidate]:
    """The quantized ones."""
    for dtype in (BF16, F32):
        yield Candidate("torch", "_weight_int8pack_mm", "int8", "exact", dtype, _int8pack(dtype), dtype == BF16)
        name = "_weight_int4pack_mm_for_cpu"
        yield Candidate("torch", name, f"int4 g{GROUP}", "exact", dtype, _int4pack(dtype), dtype == BF16)
    for engine in ("fbgemm", "onednn"):
        if engine in torch.backends.quantized.supported_engines:
            name = f"dynamic quantized Linear, {engine}"
            yield Candidate("torch", name, "int8", "integer", F32, _dynamic(engine), engine == "fbgemm")


def _float(dtype: torch.dtype) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        copies, nbytes = clones((problem.values.to(dtype),), megabytes)
        return TorchBuilt(F.linear, copies, nbytes, lambda: problem.values.to(dtype))

    return build


def _int8pack(dtype: torch.dtype) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        codes, scale = problem.int8()
        scale = scale.to(dtype)
        copies, nbytes = clones((codes, scale), megabytes)
        return TorchBuilt(torch._weight_int8pack_mm, copies, nbytes, lambda: codes.double() * scale.double()[:, None])

    return build


def _int4pack(dtype: torch.dtype) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        codes, scale = problem.int4(GROUP)
        scale = scale.to(dtype)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 2)
        pairs = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1).contiguous()  # [k / group, n, 2]
        copies, nbytes = clones((packed, pairs), megabytes)

        def function(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, scales)

        values = (codes.double() - 8) * scale.double().repeat_interleave(GROUP, 1)
        return TorchBuilt(function, copies, nbytes, lambda: values)

    return build


def _dynamic(engine: str) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        codes, scale = problem.int8()
        zeros = torch.zeros_like(scale, dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(codes, scale, zeros, 0)
        torch.backends.quantized.engine = engine  # packs for it; a packed weight remembers
        nbytes = codes.nbytes + scale.nbytes
        copies = [(torch.ops.quantized.linear_prepack(weight, None),) for _ in count(nbytes, megabytes)]
        reduce = engine == "fbgemm"  # 7 bits of activation, as torch.ao's Linear does: without VNNI 8 would saturate

        def function(x: Tensor, packed: object) -> Tensor:
            return torch.ops.quantized.linear_dynamic(x, packed, reduce)

        return TorchBuilt(function, copies, nbytes, lambda: codes.double() * scale.double()[:, None])

    return build
