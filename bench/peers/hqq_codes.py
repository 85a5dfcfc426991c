# SPDX-License-Identifier: Apache-2.0
"""HQQ as its authors publish it: scale and zero point of each group as 16-bit floats, zero points rounded at 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .weights import Peer, replace

__all__ = ["HQQ"]


def _hqq(bits: int, group: int) -> Peer:
    def run(model: Any, _: list[Tensor]) -> float:
        from hqq.core.quantize import BaseQuantizeConfig, Quantizer

        options = BaseQuantizeConfig(nbits=bits, group_size=group)["weight_quant_params"]

        def decode(name: str, weight: Tensor) -> tuple[Tensor, float]:
            codes, meta = Quantizer.quantize(weight, device="cpu", compute_dtype=torch.float32, **options)
            meta["compute_dtype"] = torch.float32
            for part in ("scale", "zero"):
                meta[part] = meta[part].half().float()
            return Quantizer.dequantize(codes, meta), weight.numel() * (bits + 32 / group)

        return replace(model, decode)

    return run


HQQ: dict[str, Peer] = {
    f"hqq {bits} bits g{group}": _hqq(bits, group) for bits, group in ((4, 128), (4, 64), (3, 128), (2, 64), (2, 32))
}
