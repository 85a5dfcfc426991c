# SPDX-License-Identifier: Apache-2.0
"""What the kernels take, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quanto.kernels import KernelSpec, Request
from quanto.weight import CANONICAL

from .layout import PANELS
from .library import operator

__all__ = ["specs"]

INTEGERS = frozenset({"int8", "int4", "int3", "int2"})
TABLES = frozenset({"nf4", "fp4", "mxfp4", "nvfp4"})
FLOAT8 = frozenset({"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "mxfp8"})
EVERY = INTEGERS | TABLES | FLOAT8

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
HALVES = frozenset({torch.bfloat16, torch.float16})
# of formats that fix a scale of one byte; in panels it is bfloat16
SMALL = frozenset({torch.float8_e8m0fnu, torch.float8_e4m3fn})


def specs() -> Iterator[KernelSpec]:
    """Every kernel, each for weights in panels and for canonical ones.

    Exact kernels accumulate in float32. Integer kernels round activations to int8 per block of up to 256 features,
    which adds an error of 0.7 % of a typical output (root mean square; 3 to 4 % is the worst of many). bfloat16 and
    float16 activations get them by default.
    """
    for suffix, layout, step in (("_panels", PANELS.name, 0), ("", CANONICAL, -10)):
        common: dict[str, Any] = {
            "device": "cpu",
            "layout": layout,
            "granularities": frozenset({"tensor", "channel", "group", "block"}),
            "zero_points": frozenset({"none", "int", "float"}),
            "scale_dtypes": FLOATS | SMALL if suffix else FLOATS,
            "refuse": _refuse,
        }
        name = "cpu" if suffix else "cpu.canonical"
        yield KernelSpec(
            f"{name}.linear", "linear", fn=operator(f"linear{suffix}"), qtypes=EVERY, priority=100 + step, **common
        )
        yield KernelSpec(
            f"{name}.linear_integer",
            "linear",
            fn=operator(f"linear_integer{suffix}"),
            qtypes=INTEGERS | TABLES,
            dtypes=HALVES,
            priority=105 + step,
            tolerance=0.08,  # of int8 activations
            **{**common, "refuse": _refuse_few},
        )
        yield KernelSpec(
            f"{name}.scaled_linear",
            "scaled_linear",
            fn=operator(f"scaled_linear{suffix}"),
            qtypes=EVERY,
            activations=frozenset({"int8"}),
            priority=100 + step,
            **common,
        )
        for op in ("dequantize", "embedding"):
            yield KernelSpec(f"{name}.{op}", op, fn=operator(op + suffix), qtypes=EVERY, priority=100 + step, **common)
        yield KernelSpec(
            f"{name}.linear_input_grad",
            "linear_input_grad",
            fn=partial(_linear_input_grad, operator(f"dequantize{suffix}")),
            qtypes=EVERY,
            priority=100 + step,
            **common,
        )
    any_granularity = frozenset({"tensor", "channel", "group", "block"})
    yield KernelSpec(
        "cpu.quantize",
        "quantize",
        "cpu",
        operator("quantize"),
        EVERY - {"mxfp4", "mxfp8", "nvfp4"},
        granularities=any_granularity,
        zero_points=frozenset({"none", "int", "float"}),
        refuse=_refuse,
    )
    yield KernelSpec(
        "cpu.dynamic_quantize",
        "dynamic_quantize",
        "cpu",
        operator("dynamic_quantize"),
        frozenset({"int8"}),
        granularities=any_granularity,
        scale_dtypes=frozenset({torch.float32}),
    )
    for op in ("pack", "unpack"):
        yield KernelSpec(f"cpu.{op}", op, "cpu", operator(op), INTEGERS - {"int8"}, granularities=any_granularity)


def _linear_input_grad(
    dequantize: Any,
    grad: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: Sequence[int],
    size: int,
) -> Tensor:
    """`grad @ weight`; decoding takes a small part of the time of the product."""
    weight: Tensor = dequantize(codes, scale, zero, shared, qtype, block, size, grad.dtype)
    return grad @ weight


def _refuse_few(request: Request) -> str | None:
    if request.shape[-1] < 64:
        return f"rounds activations to int8, which is too coarse for sums of fewer than 64 ({request.shape[-1]})"
    return _refuse(request)


def _refuse(request: Request) -> str | None:
    if len(request.shape) != 2:
        return f"takes weights of two dimensions, not {len(request.shape)}"
    return None
