# SPDX-License-Identifier: Apache-2.0
"""The linear layers of quanto-backend-cuda, through the operators that models call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import quanto
from quanto_backend_cuda.layout import TILED

from .candidate import Built, Candidate, clones, size_of
from .plan import SCALED, WEIGHTS

__all__ = ["candidates", "quantized"]


def quantized(weight: Tensor, qtype: str, **options: Any) -> quanto.QTensor:
    """A weight as quanto makes it."""
    return quanto.quantize_tensor(weight, qtype, **options)


def candidates() -> list[Candidate]:
    """Every kind of weight, alone and with quantized activations."""
    found = [Candidate("quanto", name, _weight_only(how)) for name, how in WEIGHTS.items()]
    for name, x_qtype in SCALED.items():
        how = WEIGHTS.get(name, {"qtype": "int4", "symmetric": True, "granularity": "channel"})
        short = "int8" if x_qtype == "int8" else "float8"
        found.append(Candidate("quanto", f"{name} × {short} dynamic", _scaled(how, x_qtype)))
    return found


def _weight_only(how: dict[str, Any]) -> Any:
    def build(weight: Tensor, cold: int) -> Built:
        w = quantized(weight, **how)
        name, block = w.qtype.name, list(w.block_size)
        tiles = TILED.pack((w.codes, w.scale, w.zero_point, w.global_scale), name, w.block_size, w.columns)
        copies = clones(tiles, cold)
        linear = torch.ops.quanto_cuda.linear_tiled

        def calls(x: Tensor) -> list[Any]:
            return [lambda c=c: linear(x, *c, None, name, block) for c in copies]

        return Built(size_of(tiles), calls, lambda: w.dequantize(torch.float32).double())

    return build


def _scaled(how: dict[str, Any], x_qtype: str) -> Any:
    def build(weight: Tensor, cold: int) -> Built:
        w = quantized(weight, **how)
        name, block = w.qtype.name, list(w.block_size)
        tensors = (w.codes, w.scale, w.zero_point, w.global_scale)
        copies = clones(tensors, cold)
        kernel = {"int8": "scaled_linear_int8", "int4": "scaled_linear_int4"}.get(name, "scaled_linear_float8")
        linear = getattr(torch.ops.quanto_cuda, kernel)
        encode = torch.ops.quanto_cuda.dynamic_quantize

        def call(x: Tensor, c: tuple[Any, ...]) -> Tensor:
            codes, scale = encode(x, x_qtype, torch.float32)
            return linear(codes, scale, *c, None, x_qtype, name, block, None, x.dtype)

        def calls(x: Tensor) -> list[Any]:
            return [lambda c=c: call(x, c) for c in copies]

        return Built(size_of(tensors), calls, lambda: w.dequantize(torch.float32).double())

    return build
