# SPDX-License-Identifier: Apache-2.0
"""Random problems for kernels, and the elementwise comparison with the reference.

Used by the self check at first use and by the conformance suite (`quanto.testing`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..blocks import scale_shape
from ..qtypes import get_qtype
from .layout import Tensors
from .spec import Request

__all__ = ["arguments", "compare", "default_tolerance", "random_weight"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def default_tolerance(dtype: torch.dtype) -> float:
    """Largest elementwise error, in units of the output's typical magnitude (root mean square of its row)."""
    return _TOLERANCE[dtype]


def random_weight(request: Request, generator: torch.Generator) -> Tensors:
    """Random canonical tensors of the requested weight, on the CPU, every code equally likely."""
    q = get_qtype(request.qtype)
    shape, blocks = request.shape, request.block_size
    packed = (*shape[:-1], (shape[-1] * q.bits + 7) // 8)
    if q.is_float8:  # a cast of normal values: no NaN or infinity patterns
        codes = reference.encode(torch.randn(shape, generator=generator) * q.amax / 8, q)
    else:
        codes = torch.randint(0, 256, packed, generator=generator, dtype=torch.uint8).view(q.storage)
    sizes = scale_shape(shape, blocks)
    spread = torch.rand(sizes, generator=generator) + 0.5
    scale = reference.round_up_to(spread / q.amax, request.scale_dtype)
    zero: Tensor | None = None
    if request.zero_point == "int":
        zero = torch.randint(q.qmin, q.qmax + 1, sizes, generator=generator).to(torch.int8)
    elif request.zero_point == "float":
        zero = torch.randn(sizes, generator=generator).to(request.dtype)
    shared = torch.tensor(0.75) if q.two_level else None
    return codes, scale, zero, shared


def arguments(request: Request, weight: Tensors, tokens: int, generator: torch.Generator) -> tuple[list[Any], int]:
    """Random arguments of the requested operator on its device.

    Args:
        request: the operator and the weight.
        weight: canonical or arranged tensors; placed as they are.
        tokens: rows of the activations.
        generator: of the CPU.

    Returns:
        The arguments and the index at which the four weight tensors stand.
    """
    rows, size = (request.shape[-2], request.shape[-1]) if len(request.shape) > 1 else (1, request.shape[-1])
    weight_args: list[Any] = [*weight]
    blocks = list(request.block_size)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(request.device, request.dtype)

    if request.op == "linear":
        return [floats(tokens, size), *weight_args, floats(rows), request.qtype, blocks], 1
    if request.op == "linear_input_grad":
        return [floats(tokens, rows), *weight_args, request.qtype, blocks, size], 1
    if request.op == "grouped_linear":
        experts = request.shape[0]
        cuts = torch.randint(0, tokens + 1, (experts,), generator=generator).sort().values.to(torch.int32)
        bias = floats(experts, rows)
        return [floats(tokens, size), *weight_args, bias, cuts.to(request.device), request.qtype, blocks], 1
    if request.op == "scaled_linear":
        codes, scale = reference.dynamic_quantize(floats(tokens, size), request.activations, torch.float32)
        tail = [floats(rows), request.activations, request.qtype, blocks, None, request.dtype]
        return [codes, scale, *weight_args, *tail], 2
    if request.op == "embedding":
        indices = torch.randint(0, rows, (tokens,), generator=generator).to(request.device)
        return [indices, *weight_args, request.qtype, blocks, size, request.dtype], 1
    if request.op == "dequantize":
        return [*weight_args, request.qtype, blocks, size, request.dtype], 0
    if request.op == "quantize":
        return [floats(*request.shape), *weight_args[1:], request.qtype, blocks], 0
    if request.op == "dynamic_quantize":
        return [floats(tokens, size), request.qtype, request.scale_dtype], 0
    raise ValueError(f"no problem is known for the operator {request.op!r}")


def compare(got: Any, want: Any, tolerance: float) -> str | None:
    """Compares elementwise; returns a sentence about the worst element, or None if all are within tolerance.

    The error of each element is measured in units of its row's root mean square. NaN must stand exactly where the
    reference has NaN. Codes (integers) may differ by one step in a rounding tie.
    """
    if isinstance(want, tuple):
        parts = [compare(g, w, tolerance) for g, w in zip(got, want, strict=True)]
        return next((p for p in parts if p), None)
    if tuple(got.shape) != tuple(want.shape) or got.dtype != want.dtype:
        return f"returned {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}"
    g, w = got.detach().cpu().double(), want.detach().cpu().double()
    if not torch.equal(g.isnan(), w.isnan()):
        return "has NaN where the reference has none, or the other way round"
    g, w = g.nan_to_num(), w.nan_to_num()
    if not w.numel():
        return None
    rms = w.square().mean(dim=-1, keepdim=True).sqrt() if w.ndim else w.abs()
    error = (g - w).abs() / rms.clamp_min(1e-30)
    exact = (g - w).abs() == 0
    error = torch.where(exact, 0.0, error)
    worst = float(error.max())
    if worst <= tolerance and math.isfinite(worst):
        return None
    flat = int(error.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape)] if error.ndim else []
    values = f"{g.flatten()[flat]:.6g}, the reference has {w.flatten()[flat]:.6g}"
    return f"element {index} is {values} (tolerance {tolerance:g})"
