# SPDX-License-Identifier: Apache-2.0
"""What the kernels claim, and their registration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quanto.kernels import KernelRegistry, KernelSpec, Request

from . import layout
from .ops import dense, encode, linear, scaled
from .ops.attend import define_attend
from .ops.define import NAMESPACE, define
from .ops.norm import define_norms
from .ops.weights import KINDS, facts
from .workspace import locks

__all__ = ["register", "specs"]

_ALL = frozenset(KINDS)
_INTEGERS = frozenset({"int8", "int4", "int3", "int2"})
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
_SCALES = _FLOATS | {torch.float8_e8m0fnu, torch.float8_e4m3fn}
_GRANULARITIES = frozenset({"tensor", "channel", "group", "block"})
_HALVES = frozenset({torch.float16, torch.bfloat16})


def _rows_cross_experts(request: Request) -> str | None:
    """Blocks of rows that reach from one leading index into the next."""
    rows = request.block_size[-2] if len(request.block_size) > 1 else 1
    if any(b > 1 for b in request.block_size[:-2]) or (
        len(request.shape) > 2 and rows > 1 and request.shape[-2] % rows
    ):
        return f"takes no blocks that reach over leading dimensions (here {'x'.join(map(str, request.block_size))})"
    return None


def _refuse_dense(request: Request) -> str | None:
    return _rows_cross_experts(request)


def _refuse_tiled(request: Request) -> str | None:
    reason = layout.refuse(request)
    if reason is not None:
        return reason
    if not facts(request.qtype, request.block_size, request.shape[-1]).by_tiles:
        return f"takes groups that are a multiple of 16, not {request.group_size}"
    return None


def _refuse_grouped(request: Request) -> str | None:
    if len(request.shape) != 3:
        return f"takes weights of three dimensions, not {len(request.shape)}"
    return _rows_cross_experts(request)


def _refuse_scaled(request: Request) -> str | None:
    size = request.shape[-1]
    if request.qtype == "int4" and size % 128:
        return f"needs in_features that are a multiple of 128 for int4 (here {size})"
    if request.qtype == "int4" and request.granularity == "group" and request.group_size % 128:
        return f"takes groups that are a multiple of 128 for int4, not {request.group_size}"
    return None


def _kernel(
    name: str, like: str, function: Callable[..., Any], dissolves: Callable[..., bool] | None = None, **claims: Any
) -> KernelSpec:
    overload = define(name, like, function, dissolves)
    return KernelSpec(
        name=f"cuda.{name}", op=like, device="cuda", fn=overload, compiles=True, **{"priority": 100, **claims}
    )


@functools.cache
def specs() -> tuple[KernelSpec, ...]:
    """Defines the operators, once, and returns the claims."""
    _define_locks()
    weights: dict[str, Any] = {
        "qtypes": _ALL,
        "dtypes": _FLOATS,
        "granularities": _GRANULARITIES,
        "zero_points": frozenset({"none", "int", "float"}),
        "scale_dtypes": _SCALES,
        "refuse": _refuse_dense,
    }
    tiled = {**weights, "layout": layout.TILED.name, "refuse": _refuse_tiled, "priority": 110}
    partial = functools.partial
    return (
        _kernel("linear", "linear", linear.linear, linear.dissolves, **weights),
        _kernel(
            "linear_tiled",
            "linear",
            partial(linear.linear, tiled=True),
            partial(linear.dissolves, tiled=True),
            checks_itself=linear.checks_itself,
            **tiled,
        ),
        _kernel("linear_input_grad", "linear_input_grad", dense.linear_input_grad, **weights),
        _kernel("linear_input_grad_tiled", "linear_input_grad", partial(dense.linear_input_grad, tiled=True), **tiled),
        _kernel("dequantize", "dequantize", dense.dequantize, **weights),
        _kernel("dequantize_tiled", "dequantize", partial(dense.dequantize, tiled=True), **tiled),
        _kernel("embedding", "embedding", dense.embedding, **weights),
        _kernel("grouped_linear", "grouped_linear", linear.grouped_linear, **{**weights, "refuse": _refuse_grouped}),
        _kernel("quantize", "quantize", encode.quantize, **weights),
        _kernel(
            "dynamic_quantize",
            "dynamic_quantize",
            encode.dynamic_quantize,
            qtypes=frozenset({"int8", "float8_e4m3fn", "float8_e5m2"}),
            dtypes=_FLOATS,
            granularities=frozenset({"tensor"}),
        ),
        _kernel("pack", "pack", encode.pack, qtypes=_ALL - {"int8"}, dtypes=_FLOATS, granularities=_GRANULARITIES),
        _kernel(
            "unpack", "unpack", encode.unpack, qtypes=_ALL - {"int8"}, dtypes=_FLOATS, granularities=_GRANULARITIES
        ),
        _kernel(
            "scaled_linear_int8",
            "scaled_linear",
            scaled.scaled_linear,
            scaled.dissolves,
            qtypes=frozenset({"int8"}),
            dtypes=_FLOATS,
            granularities=frozenset({"channel"}),
            activations=frozenset({"int8"}),
        ),
        _kernel(
            "scaled_linear_int4",
            "scaled_linear",
            scaled.scaled_linear,
            scaled.dissolves,
            qtypes=frozenset({"int4"}),
            dtypes=_FLOATS,
            granularities=frozenset({"channel", "group"}),
            zero_points=frozenset({"none", "int"}),
            activations=frozenset({"int8"}),
            refuse=_refuse_scaled,
        ),
        _kernel(
            "scaled_linear_float8",
            "scaled_linear",
            scaled.scaled_linear,
            scaled.dissolves,
            qtypes=frozenset({"float8_e4m3fn"}),
            dtypes=_FLOATS,
            granularities=frozenset({"channel"}),
            activations=frozenset({"float8_e4m3fn"}),
            min_capability=(8, 9),
        ),
    )


def _define_locks() -> None:
    """The operator by which graphs get their counters; see `quanto_backend_cuda.workspace`."""
    schema = "(Tensor like, int count) -> Tensor"
    operator = torch.library.custom_op(f"{NAMESPACE}::locks", _locks, mutates_args=(), schema=schema)
    operator.register_fake(lambda like, count: like.new_empty((count,), dtype=torch.int32))


def _locks(like: Tensor, count: int) -> Tensor:
    return locks(like.device, count)[:count]


def register(registry: KernelRegistry) -> None:
    """Adds the layout and every kernel."""
    registry.register_layout(layout.TILED)
    for name, function in (define_attend() | define_norms()).items():
        registry.register_function(name, "cuda", function)
    for spec in specs():
        registry.register(spec)
