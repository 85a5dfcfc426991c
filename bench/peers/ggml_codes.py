# SPDX-License-Identifier: Apache-2.0
"""ggml's block formats, coded by ggml itself (ggml-py) and decoded by gguf; with an importance matrix where named so.

A whole model gets one type, where llama.cpp's presets (Q4_K_M …) mix several. A row that is no multiple of the 256 of a
K-quant gets the type that llama.cpp falls back to, and its bits. The importance of an input is its mean square over
the calibration tokens, as llama.cpp's imatrix has it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .weights import Peer, linears, replace

__all__ = ["GGML"]

FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _coder() -> Callable[[str, Tensor, Tensor | None], tuple[Tensor, float]]:
    import ggml
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    floats = ctypes.POINTER(ctypes.c_float)

    def code(name: str, weight: Tensor, importance: Tensor | None) -> tuple[Tensor, float]:
        rows, width = weight.shape
        if width % GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]:
            name = FALLBACK[name]
        kind = GGMLQuantizationType[name]
        block, size = GGML_QUANT_SIZES[kind]
        source = numpy.ascontiguousarray(weight.float().numpy())
        out = numpy.zeros((rows, width // block * size), numpy.uint8)
        matters = None if importance is None else numpy.ascontiguousarray(importance.float().numpy())
        pointer = None if matters is None else matters.ctypes.data_as(floats)
        pointed = source.ctypes.data_as(floats)
        written = ggml.ggml_quantize_chunk(kind.value, pointed, out.ctypes.data, 0, rows, width, pointer)
        if written != out.nbytes:
            raise RuntimeError(f"ggml wrote {written} bytes of {name}, {out.nbytes} are expected")
        return torch.from_numpy(quants.dequantize(out, kind).copy()), 8.0 * out.nbytes

    return code


@torch.no_grad()
def _importance(model: Any, batches: list[Tensor]) -> dict[str, Tensor]:
    """Mean square of each input of each layer, float32 `[in]`."""
    sums: dict[str, Tensor] = {}
    handles = []
    tokens = sum(batch.numel() for batch in batches)
    for name, module in linears(model):

        def add(_: Any, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].float().flatten(0, -2)
            sums[name] = sums.get(name, 0) + x.square().sum(0) / tokens

        handles.append(module.register_forward_pre_hook(add))
    for batch in batches:
        model(batch)
    for handle in handles:
        handle.remove()
    return sums


def _ggml(kind: str, imatrix: bool = False) -> Peer:
    def run(model: Any, batches: list[Tensor]) -> float:
        code = _coder()
        importance = _importance(model, batches) if imatrix else {}
        return replace(model, lambda name, weight: code(kind, weight, importance.get(name)))

    return run


GGML: dict[str, Peer] = {
    **{f"ggml {kind}": _ggml(kind) for kind in ("Q8_0", "Q4_0", "Q4_K", "Q3_K", "Q2_K")},
    **{f"ggml {kind} imatrix": _ggml(kind, True) for kind in ("Q4_K", "Q3_K", "Q2_K")},
}
