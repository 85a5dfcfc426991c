# SPDX-License-Identifier: Apache-2.0
"""`QuantizeOnLoad`: a float tensor of the checkpoint becomes codes and scales before the next one is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps

from quanto.hosts.rows import quantize_rows
from quanto.nn import QModule
from quanto.nn.slot import PARTS

from .adapter import is_sharded
from .parallel import shard_like
from .standins import StandIns

__all__ = ["QuantizeOnLoad", "quantize_weight"]


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
            try:
                parts = quantize_weight(module, leaf, tensor, name)
            except ValueError as error:
                self.stand_ins.failed[name] = str(error)
                continue
            finally:
                if missing_keys is not None:
                    missing_keys.discard(name)
            del tensor
            out.update({f"{name}_{part}": t for part, t in zip(PARTS, parts, strict=True) if t is not None})
        return out


def quantize_weight(module: QModule, leaf: str, value: Tensor, name: str) -> tuple[Tensor | None, ...]:
    """Codes, scale, zero point and global scale of a float weight; of this rank, where they are sharded.

    Raises:
        ValueError: if it has another shape than the module's.
    """
    slot = module._slots[leaf]
    shown: Any = module.__dict__.get(leaf)
    shape = tuple(shown.to_local().shape) if is_sharded(shown) else slot.shape
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)} in the checkpoint and {shape} in the model")
    parts = quantize_rows(slot, slot.rows(value))
    if is_sharded(shown):
        return parts
    held = [module._parameters.get(f"{leaf}_{part}") for part in PARTS]
    return tuple(None if t is None else shard_like(t, p) for t, p in zip(parts, held, strict=True))
