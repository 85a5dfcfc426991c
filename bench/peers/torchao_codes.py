# SPDX-License-Identifier: Apache-2.0
"""torchao: int4 as its tinygemm kernels store it, chosen by tinygemm's rule and by HQQ; intx; int8 with activations.

The tensor class of tinygemm is made on a GPU only, so its arithmetic is done by the same functions that the class calls
(torchao 0.18, `Int4TilePackedTo4dTensor.from_hp`), in bfloat16 as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .weights import HEAD, Peer, count, replace

__all__ = ["TORCHAO"]


def _tinygemm(group: int, weight: Tensor) -> Tensor:
    from torchao.quantization import quant_primitives as p

    w, block = weight.bfloat16(), (1, group)
    scale, zero = p._choose_qparams_affine_tinygemm(
        w, p.MappingType.ASYMMETRIC, block, torch.int32, 0, 15, None, torch.bfloat16, torch.bfloat16
    )
    codes = p._quantize_affine_tinygemm(w, block, scale, zero, torch.int32, 0, 15)
    return p._dequantize_affine_tinygemm(codes, block, scale, zero, torch.int32, 0, 15, output_dtype=torch.float32)


def _hqq(group: int, weight: Tensor) -> Tensor:
    from torchao.quantization import quant_primitives as p

    w = weight.bfloat16()
    codes, scale, zero, _ = p._choose_qparams_and_quantize_affine_hqq(
        w, nbits=4, group_size=group, axis=1, compute_dtype=w.dtype, device="cpu", verbose=False, raw_output=False
    )
    scale, zero = scale.view(len(w), -1), zero.view(len(w), -1)
    codes = codes.view(w.shape).int()
    return p._dequantize_affine_tinygemm(codes, (1, group), scale, zero, torch.int32, 0, 15, output_dtype=torch.float32)


def _int4(decode: Any, group: int) -> Peer:
    def run(model: Any, _: list[Tensor]) -> float:
        return replace(model, lambda name, w: (decode(group, w), w.numel() * (4 + 32 / group)))

    return run


def _intx(bits: int, group: int) -> Peer:
    def run(model: Any, _: list[Tensor]) -> float:
        from torchao import quantization as q

        config = q.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=q.PerGroup(group),
            mapping_type=q.MappingType.ASYMMETRIC,
        )
        q.quantize_(model, config, filter_fn=_wanted)
        return count(model, bits, 16 + bits, group)

    return run


def _int8(name: str) -> Peer:
    def run(model: Any, _: list[Tensor]) -> float:
        from torchao import quantization as q

        q.quantize_(model, getattr(q, name)(), filter_fn=_wanted)
        return count(model, 8, 16)

    return run


def _wanted(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and HEAD not in name


TORCHAO: dict[str, Peer] = {
    "torchao int8": _int8("Int8WeightOnlyConfig"),
    "torchao int8 dynamic activations": _int8("Int8DynamicActivationInt8WeightConfig"),
    "torchao int4 tinygemm g32": _int4(_tinygemm, 32),
    "torchao int4 tinygemm g128": _int4(_tinygemm, 128),
    "torchao int4 hqq g128": _int4(_hqq, 128),
    **{f"torchao intx {bits} bits g{group}": _intx(bits, group) for bits, group in ((4, 128), (3, 128), (2, 64))},
}
