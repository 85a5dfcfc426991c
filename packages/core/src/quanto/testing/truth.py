# SPDX-License-Identifier: Apache-2.0
"""What is right: the reference in float64, and how far a kernel may be from it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..blocks import merge, split
from ..kernels import KernelSpec
from ..kernels.codes import compare_codes
from ..kernels.problems import compare, compare_result, default_tolerance
from ..qtypes import get_qtype
from .problem import WEIGHT, Problem

__all__ = ["judge", "tolerance", "truth"]

_FLOATS = ("x", "grad", "bias")


def tolerance(spec: KernelSpec, problem: Problem) -> float:
    """Largest error of an element, in its unit."""
    return spec.tolerance if spec.tolerance is not None else default_tolerance(problem.request.dtype)


def truth(problem: Problem) -> Tensor:
    """The result in float64, from the same activations, codes and scales."""
    wide = problem.mapped(lambda t: t.double(), *_FLOATS)
    if "dtype" in wide.given:
        wide = wide.having(dtype=torch.float64)
    return getattr(reference, problem.request.op)(*wide.given.values())  # type: ignore[no-any-return]


def judge(spec: KernelSpec, problem: Problem, got: object, coherent: bool = False) -> str | None:
    """Compares what a kernel returned with the truth; returns a sentence about the worst element, or None.

    The unit of an element of a product is the larger of itself and the magnitude that a sum of such terms typically
    has, `sqrt(sum(x**2 * w**2)) + |bias|`; of a decoded weight, the larger of itself and the root mean square of its
    block. So an error is seen however unlike the scales of a weight are, and rounding the result to its dtype is
    always within the tolerance.

    Args:
        spec: the kernel.
        problem: what it was asked.
        got: what it returned.
        coherent: the terms of a sum are alike, and so are their rounding errors: the unit is `sum(|x| * |w|)`, with
            codes and zero points counted apart, since a kernel may subtract the products of the latter afterwards.
    """
    op, given = problem.request.op, problem.given
    if op in ("quantize", "dynamic_quantize", "pack", "unpack"):
        want = getattr(torch.ops.quanto_core, op)(*given.values())
        return compare_result(problem.request, list(given.values()), got, want, tolerance(spec, problem))
    if not isinstance(got, Tensor):
        return f"returned {type(got).__name__}, not a tensor"
    if op == "scaled_linear" and given["out_scale"] is not None:
        plain = reference.scaled_linear(*given.values())
        return compare_codes(got, plain, get_qtype(given["x_qtype"]), got.shape[-1])
    if got.dtype != problem.request.dtype:
        return f"returned {got.dtype}, not {problem.request.dtype}"
    want = truth(problem)
    if got.shape != want.shape:
        return f"returned {tuple(got.shape)}, not {tuple(want.shape)}"
    unit = _unit(problem, want, coherent).clamp_min(torch.finfo(problem.request.dtype).tiny)
    return compare(got, want, tolerance(spec, problem), unit)


def _decoded(problem: Problem) -> Tensor:
    """The weight in float64, in its own shape."""
    given, r = problem.given, problem.request
    codes, *scales = (given[n] for n in WEIGHT)
    return reference.dequantize(codes, *scales, r.qtype, r.block_size, r.shape[-1], torch.float64)  # type: ignore[call-arg]


def _unit(problem: Problem, want: Tensor, coherent: bool) -> Tensor:
    given, op, blocks = problem.given, problem.request.op, problem.request.block_size
    if op == "dequantize":
        return _block_rms(want, blocks)
    weight = _decoded(problem)
    if op == "embedding":
        return _block_rms(weight, blocks)[given["indices"]]
    if op == "scaled_linear":
        x = reference.decode(given["x_codes"], get_qtype(given["x_qtype"]), torch.float64) * given["x_scale"].double()
    else:
        x = given["grad" if op == "linear_input_grad" else "x"].double()
    if coherent:
        plain = _decoded(problem.having(zero_point=None))
        x, weight = x.abs(), plain.abs() + (weight - plain).abs()
    else:
        x, weight = x.square(), weight.square()
    if op == "linear_input_grad":
        magnitude = x @ weight
    elif op == "grouped_linear":
        magnitude = _grouped(x, weight, given["offsets"])
    else:
        magnitude = x @ weight.T
    unit = torch.maximum(magnitude if coherent else magnitude.sqrt(), want.abs())
    bias = _bias(problem)
    return unit if bias is None else unit + bias


def _block_rms(values: Tensor, block_size: tuple[int, ...]) -> Tensor:
    """For each element the larger of itself and the root mean square of its block; short blocks by what they hold."""
    if not block_size or not values.numel():
        return values.square().mean().sqrt().expand_as(values) if values.numel() else values
    blocks = split(values, block_size)
    dims = tuple(range(1, blocks.ndim, 2))
    count = split(torch.ones_like(values), block_size).sum(dims, keepdim=True)
    rms = (blocks.square().sum(dims, keepdim=True) / count).sqrt()
    return torch.maximum(merge(rms.expand_as(blocks), values.shape), values.abs())


def _grouped(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    y, start = x.new_zeros(x.shape[0], weight.shape[1]), 0
    for expert, end in enumerate(offsets.tolist()):
        y[start:end] = x[start:end] @ weight[expert].T
        start = max(start, end)
    return y


def _bias(problem: Problem) -> Tensor | None:
    bias = problem.given.get("bias")
    if bias is None or problem.request.op != "grouped_linear":
        return None if bias is None else bias.double().abs()
    ones = torch.ones(problem.given["x"].shape[0], 1, dtype=torch.float64)
    return _grouped(ones, bias.double().abs().unsqueeze(-1), problem.given["offsets"])
