# SPDX-License-Identifier: Apache-2.0
"""What the kernels claim."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from quanto.kernels import KernelSpec, Request

from .ops import dense, encode, linear
from .ops.define import define
from .weights import KINDS

__all__ = ["specs"]

_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
_INTEGERS = frozenset({"int8", "int4", "int3", "int2"})
_NARROW = frozenset(KINDS) - {"int8", "float8_e4m3fn", "float8_e5m2"}
_GRANULARITIES = frozenset({"tensor", "channel", "group", "block"})


def _refuse(request: Request) -> str | None:
    if request.op != "dynamic_quantize" and len(request.shape) != 2:
        return f"takes weights of two dimensions, not {len(request.shape)}"
    return None


def _kernel(op: str, function: Callable[..., Any], **claims: Any) -> KernelSpec:
    common: dict[str, Any] = {
        "qtypes": frozenset(KINDS),
        "dtypes": _FLOATS,
        "granularities": _GRANULARITIES,
        "zero_points": frozenset({"none", "int", "float"}),
        "scale_dtypes": _FLOATS,
        "refuse": _refuse,
    }
    return KernelSpec(name=f"mps.{op}", op=op, device="mps", fn=define(op, function), **{**common, **claims})


@functools.cache
def specs() -> tuple[KernelSpec, ...]:
    """Defines the operators, once, and returns the claims."""
    return (
        _kernel("linear", linear.linear),
        _kernel("linear_input_grad", dense.linear_input_grad),
        _kernel("dequantize", dense.dequantize),
        _kernel("embedding", dense.embedding),
        _kernel("quantize", encode.quantize),
        _kernel(
            "dynamic_quantize",
            encode.dynamic_quantize,
            qtypes=frozenset({"int8"}),
            granularities=frozenset({"tensor"}),
            zero_points=frozenset({"none"}),
            scale_dtypes=frozenset({torch.float32}),
        ),
        _kernel("pack", encode.pack, qtypes=_NARROW, zero_points=frozenset({"none"})),
        _kernel("unpack", encode.unpack, qtypes=_NARROW, zero_points=frozenset({"none"})),
        _kernel("scaled_linear", linear.scaled_linear, qtypes=_INTEGERS, activations=frozenset({"int8"})),
    )
