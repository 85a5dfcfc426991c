# SPDX-License-Identifier: Apache-2.0
"""The kernels of quanto-backend-cpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quanto.kernels import kernels
from quanto.plugins import plugins

from .candidate import Built, Candidate, TorchBuilt, count
from .problem import Problem

__all__ = ["candidates", "odd", "panels"]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
BAR = {("int8", None), ("int4", 128), ("int2", 128)}
# What each format takes: symmetric first; None is one scale for each row.
FORMATS: list[tuple[str, int | None]] = [
    ("int8", None),
    ("int4", 128),
    ("int4", 32),
    ("int3", 128),
    ("int2", 128),
    ("nf4", 64),
    ("fp4", 64),
    ("float8_e4m3fn", None),
]


def panels(problem: Problem, qtype: str, group: int | None = None, symmetric: bool = True) -> tuple[Any, ...]:
    """Codes, scale, zero point, global scale as the kernels lay them, with the constants that follow."""
    plugins.load()
    w = problem.quantized(qtype, group, symmetric).weight()
    tensors = kernels.layouts["cpu.panels"].pack(w[:4], w.qtype, w.block_size, w.size)
    return tensors, w.qtype, list(w.block_size)


def candidates() -> Iterator[Candidate]:
    """Every format in both precisions under float32; bfloat16 and float16 on the common ones; int8 activations."""
    for qtype, group in FORMATS:
        bar = (qtype, group) in BAR
        yield _linear(qtype, group, "exact", F32, everywhere=bar)
        if not qtype.startswith("float8"):
            yield _linear(qtype, group, "integer", F32, everywhere=bar)
    for dtype in (BF16, F16):
        for compute in ("exact", "integer"):
            yield _linear("int8", None, compute, dtype)
            yield _linear("int4", 128, compute, dtype)
        yield _linear("float8_e4m3fn", None, "exact", dtype)
    for compute in ("exact", "integer"):
        yield _linear("int4", 128, compute, F32, symmetric=False)
        yield _linear("mxfp4", None, compute, F32)
    yield Candidate("quanto", "scaled_linear, dynamic", "int8", "integer", F32, _scaled("int8", None), True)
    yield Candidate("quanto", "scaled_linear, dynamic", "int4 g128", "integer", F32, _scaled("int4", 128))


def odd() -> Iterator[Candidate]:
    """Those of the comparison between sizes that divide and sizes that don't."""
    yield _linear("int8", None, "exact", F32)
    yield _linear("int8", None, "integer", F32)
    yield _linear("int4", 128, "exact", F32)
    yield _linear("int4", 128, "integer", F32)


def _linear(
    qtype: str,
    group: int | None,
    compute: str,
    dtype: torch.dtype,
    everywhere: bool = False,
    symmetric: bool = True,
) -> Candidate:
    weights = qtype if group is None else f"{qtype} g{group}"
    operator = "linear" if compute == "exact" else "linear_integer"

    def build(problem: Problem, megabytes: int) -> Built:
        _, name, blocks = panels(problem, qtype, group, symmetric)
        call = getattr(torch.ops.quanto_cpu, f"{operator}_panels").default

        def function(x: Tensor, *copy: Any) -> Tensor:
            return call(x, *copy, None, name, blocks)

        made = partial(panels, problem, qtype, group, symmetric)
        return _built(function, made, megabytes, lambda: problem.quantized(qtype, group, symmetric).dequantize())

    name = operator if symmetric else f"{operator}, zero points"
    return Candidate("quanto", name, weights, compute, dtype, build, everywhere)


def _scaled(qtype: str, group: int | None) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        _, name, blocks = panels(problem, qtype, group)
        quantize = torch.ops.quanto_cpu.dynamic_quantize.default
        call = torch.ops.quanto_cpu.scaled_linear_panels.default

        def function(x: Tensor, *copy: Any) -> Tensor:
            codes, scale = quantize(x, "int8", F32)
            return call(codes, scale, *copy, None, "int8", name, blocks, None, x.dtype)

        made = partial(panels, problem, qtype, group)
        return _built(function, made, megabytes, lambda: problem.quantized(qtype, group).dequantize())

    return build


def _built(
    function: Callable[..., Tensor], made: Callable[[], tuple[Any, ...]], megabytes: int, values: Callable[[], Tensor]
) -> Built:
    # Each copy is arranged, not cloned: it lies in memory as a model's weight does.
    nbytes = sum(t.nbytes for t in made()[0] if t is not None)
    copies = [made()[0] for _ in count(nbytes, megabytes)]
    return TorchBuilt(function, copies, nbytes, values)
