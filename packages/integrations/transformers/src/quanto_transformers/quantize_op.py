# SPDX-License-Identifier: Apache-2.0
"""`QuantizeOnLoad`: a float tensor of the checkpoint becomes codes and scales before the next one is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps

from quanto.nn import QModule
from quanto.nn.slot import PARTS, Slot
from quanto.scheme import Scheme
from quanto.tensor.quantize import quantize_parts

from .standins import StandIns

__all__ = ["QuantizeOnLoad", "quantize_rows"]

#: elements quantized at once: the float32 copies that an algorithm makes of them are the working set of loading.
CHUNK = 2**24


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc]
    """Turns float weights into the parameters of their frozen modules.

    Args:
        stand_ins: of the model.
    """

    def __init__(self, stand_ins: StandIns) -> None:
        self.stand_ins = stand_ins

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: set[str] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Codes and scales by full name; tensors that are no quantized weights (of a fused checkpoint) pass through."""
        out: dict[str, Tensor] = {}
        for name in list(input_dict):
            value = input_dict.pop(name)
            tensor = value[0] if isinstance(value, list) else value
            del value
            if name not in self.stand_ins:
                out[name] = tensor.to(model.get_parameter_or_buffer(name).dtype)
                continue
            module, leaf = self.stand_ins.take(name)
            parts = quantize_weight(module, leaf, tensor, name)
            del tensor
            out.update({f"{name}_{part}": t for part, t in zip(PARTS, parts, strict=True) if t is not None})
            if missing_keys is not None:
                missing_keys.discard(name)
        return out


def quantize_weight(module: QModule, leaf: str, value: Tensor, name: str) -> tuple[Tensor | None, ...]:
    """Codes, scale, zero point and global scale of a float weight.

    Raises:
        ValueError: if it has another shape than the module's.
    """
    slot = module._slots[leaf]
    if tuple(value.shape) != slot.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)} in the checkpoint and {slot.shape} in the model")
    return quantize_rows(slot, slot.rows(value))


def quantize_rows(slot: Slot, rows: Tensor) -> tuple[Tensor | None, ...]:
    """Quantizes the rows of a weight `[…, out, in]`, some at a time where that gives the same numbers.

    Experts are one matrix each, and a row alone decides its scales unless blocks span rows.
    """
    scheme = slot.scheme
    blocks = scheme.block_size(tuple(rows.shape))
    if not _splits(scheme, rows.ndim) or rows.numel() <= CHUNK or rows.is_meta:
        return quantize_parts(rows, scheme, blocks)
    if rows.ndim > 2:
        made = [quantize_rows(slot, matrix) for matrix in rows]
        return tuple(None if t[0] is None else torch.stack(t) for t in zip(*made, strict=True))
    step = max(1, CHUNK // rows.shape[-1])
    made = [quantize_parts(part, scheme, blocks) for part in rows.split(step)]
    return tuple(None if t[0] is None else torch.cat(t) for t in zip(*made, strict=True))


def _splits(scheme: Scheme, ndim: int) -> bool:
    alone = scheme.granularity not in ("tensor", "block") and not scheme.qtype.two_level
    return alone and scheme.quantizer in ("absmax", "minmax") and ndim >= 2
