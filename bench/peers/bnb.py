# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes: nf4 and fp4 in blocks of 64 along the whole weight, int8 as LLM.int8() runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .weights import Peer, count, linears, replace

__all__ = ["BITSANDBYTES"]

BLOCK = 64


def _four(kind: str, nested: bool) -> Peer:
    # nested: absmax in 8 bits, with a float32 for each 256 of them
    extra = (8 + 32 / 256) if nested else 32

    def run(model: Any, _: list[Tensor]) -> float:
        from bitsandbytes import functional as f

        def decode(name: str, weight: Tensor) -> tuple[Tensor, float]:
            codes, state = f.quantize_4bit(
                weight.contiguous(), blocksize=BLOCK, compress_statistics=nested, quant_type=kind
            )
            return f.dequantize_4bit(codes, state), weight.numel() * (4 + extra / BLOCK)

        return replace(model, decode)

    return run


@torch.no_grad()
def _int8(model: Any, _: list[Tensor]) -> float:
    import bitsandbytes as peer

    stored = count(model, 8, 32)
    for name, module in list(linears(model)):
        made = peer.nn.Linear8bitLt(
            module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False, threshold=6.0
        )
        made.load_state_dict(module.state_dict())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made.to("cpu"))
    if any(module.weight.dtype != torch.int8 for module in model.modules() if isinstance(module, peer.nn.Linear8bitLt)):
        raise RuntimeError("Linear8bitLt holds floats on a CPU")
    return stored


BITSANDBYTES: dict[str, Peer] = {
    "bitsandbytes int8": _int8,
    "bitsandbytes nf4": _four("nf4", nested=False),
    "bitsandbytes nf4 double": _four("nf4", nested=True),
    "bitsandbytes fp4": _four("fp4", nested=False),
}
