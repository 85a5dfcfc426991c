# SPDX-License-Identifier: Apache-2.0
"""Random problems for kernels, and the elementwise comparison with the reference.

Used by the self check at first use and by the conformance suite (`quanto.testing`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import packing, reference
from ..blocks import scale_shape
from ..qtypes import get_qtype
from .codes import compare_codes
from .layout import Tensors
from .spec import Request

__all__ = ["arguments", "compare", "compare_result", "default_tolerance", "random_weight"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_FEATURES = 192  # of operators whose requests do not say: they have no weight


def default_tolerance(dtype: torch.dtype) -> float:
    """Largest elementwise error, in units of the output's typical magnitude (root mean square of its row)."""
    return _TOLERANCE[dtype]


def random_weight(request: Request, generator: torch.Generator) -> Tensors:
    """Random canonical tensors of the requested weight, on the CPU: every code equally likely, scales of both sizes."""
    q = get_qtype(request.qtype)
    shape, blocks = request.shape or (1,), request.block_size
    packed = (*shape[:-1], packing.packed_size(shape[-1], q.bits))
    if q.is_float8:  # a cast of normal values: no NaN or infinity patterns
        codes = reference.encode(torch.randn(shape, generator=generator) * q.amax / 8, q)
    else:
        codes = torch.randint(0, 256, packed, generator=generator, dtype=torch.uint8)
        if used := shape[-1] * q.bits % 8:
            codes[..., -1:] &= (1 << used) - 1  # what pads a row is zero
        codes = codes.view(q.storage)
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


def arguments(
    request: Request, weight: Tensors, tokens: int, generator: torch.Generator
) -> tuple[list[Any], int | None]:
    """Random arguments of the requested operator on its device.

    Args:
        request: the operator and the weight.
        weight: canonical or arranged tensors; placed as they are.
        tokens: rows of the activations.
        generator: of the CPU.

    Returns:
        The arguments and the index at which the four weight tensors stand, None where the operator takes no weight.

    Raises:
        ValueError: if nothing is known about the operator.
    """
    size = request.shape[-1] if request.shape else _FEATURES
    rows = request.shape[-2] if len(request.shape) > 1 else 1
    weight_args: list[Any] = [*weight]
    blocks = list(request.block_size)
    bits = get_qtype(request.qtype).bits

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(request.device, request.dtype)

    def integers(high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.randint(0, high, shape, generator=generator).to(request.device, dtype)

    if request.op == "linear":
        return [floats(tokens, size), *weight_args, floats(rows), request.qtype, blocks], 1
    if request.op == "linear_input_grad":
        return [floats(tokens, rows), *weight_args, request.qtype, blocks, size], 1
    if request.op == "grouped_linear":
        experts = request.shape[0]
        cuts = integers(tokens + 1, experts, dtype=torch.int32).sort().values
        return [floats(tokens, size), *weight_args, floats(experts, rows), cuts, request.qtype, blocks], 1
    if request.op == "scaled_linear":
        codes, scale = reference.dynamic_quantize(floats(tokens, size), request.activations, torch.float32)
        tail = [floats(rows), request.activations, request.qtype, blocks, None, request.dtype, ""]
        return [codes, scale, *weight_args, *tail], 2
    if request.op == "embedding":
        indices = integers(rows, tokens, dtype=torch.int64)
        return [indices, *weight_args, request.qtype, blocks, size, request.dtype], 1
    if request.op == "dequantize":
        return [*weight_args, request.qtype, blocks, size, request.dtype], 0
    if request.op == "quantize":
        return [floats(*request.shape), *weight_args[1:], request.qtype, blocks], None
    if request.op == "dynamic_quantize":
        return [floats(tokens, size), request.qtype, request.scale_dtype], None
    if request.op == "pack":
        return [integers(2**bits, rows, size), bits], None
    if request.op == "unpack":
        return [integers(256, rows, packing.packed_size(size, bits)), bits, size], None
    raise ValueError(f"no problem is known for the operator {request.op!r}")


def compare_result(request: Request, args: list[Any], got: Any, want: Any, tolerance: float) -> str | None:
    """Compares what a kernel returned for `args` with the reference's result, codes as codes and floats as floats."""
    q = get_qtype(request.qtype)
    if request.op in ("pack", "unpack"):
        same = got.dtype == want.dtype and torch.equal(got.cpu(), want.cpu())
        return None if same else "returned other bytes than the reference"
    if request.op == "quantize":
        return compare_codes(got, want, q, args[0].shape[-1])
    if request.op == "dynamic_quantize":
        x, scale = args[0], got[1]
        sentence = compare(scale, want[1], 2 * torch.finfo(scale.dtype).eps)
        if sentence is not None:
            return f"scale: {sentence}"
        # codes are judged by the kernel's own scale: its last bit may move a code
        blocks = [*(1,) * (x.ndim - 1), max(x.shape[-1], 1)]
        nearest = reference.quantize(x.cpu(), scale.cpu(), None, None, q.name, blocks)
        return compare_codes(got[0], nearest, q, x.shape[-1])
    if not want.is_floating_point():  # scaled_linear with out_scale
        return compare_codes(got, want, get_qtype(request.activations), want.shape[-1])
    return compare(got, want, tolerance)


def compare(got: Tensor, want: Tensor, tolerance: float, unit: Tensor | None = None) -> str | None:
    """Compares elementwise; returns a sentence about the worst element, or None if all are within tolerance.

    NaN must stand exactly where the reference has NaN.

    Args:
        got: what a kernel returned, floating.
        want: what the reference returned; of a wider dtype if `unit` is given.
        tolerance: largest error, in units.
        unit: of each element; by default the root mean square of its row.
    """
    if tuple(got.shape) != tuple(want.shape) or (unit is None and got.dtype != want.dtype):
        return f"returned {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}"
    g, w = got.detach().cpu().double(), want.detach().cpu().double()
    if not torch.equal(g.isnan(), w.isnan()):
        return "has NaN where the reference has none, or the other way round"
    g, w = g.nan_to_num(), w.nan_to_num()
    if not w.numel():
        return None
    if unit is None:
        unit = w.square().mean(dim=-1, keepdim=True).sqrt() if w.ndim else w.abs()
    difference = (g - w).abs()
    error = torch.where(difference == 0, 0.0, difference / unit.nan_to_num().clamp_min(1e-30))
    worst = float(error.max())
    if worst <= tolerance and math.isfinite(worst):
        return None
    flat = int(error.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape)] if error.ndim else []
    found, expected = g.flatten()[flat], w.flatten()[flat]
    return f"element {index} is {found:.6g}, the reference has {expected:.6g} (tolerance {tolerance:g})"
