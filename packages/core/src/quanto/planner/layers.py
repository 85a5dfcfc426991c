# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model can be planned, and what a scheme makes of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn.base import QModule
from ..nn.registry import modules
from ..nn.slot import Slot
from ..scheme import Scheme
from ..tensor import QTensor, quantize_tensor

__all__ = ["Layer", "encode", "find_layers", "stored_bits"]


@dataclass(frozen=True)
class Layer:
    """A floating layer that `quanto.quantize` would quantize.

    Attributes:
        name: of the module.
        module: itself; its parameter is `weight`.
        arrangement: of the weight (see `quanto.nn.slot.Slot`).
    """

    name: str
    module: nn.Module
    arrangement: str

    @property
    def weight(self) -> Tensor:
        """The float weight."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    def rows(self, value: Tensor) -> Tensor:
        """A tensor of the weight's shape as rows whose last dimension is contracted."""
        return self.slot(Scheme("int8")).rows(value)  # any scheme: the arrangement alone counts

    def slot(self, scheme: Scheme) -> Slot:
        """What a quantized twin would remember of the weight."""
        return Slot(scheme, tuple(self.weight.shape), self.weight.dtype, self.arrangement)


def find_layers(model: nn.Module, exclude: Sequence[str] = ()) -> list[Layer]:
    """The layers with one weight that have a twin by default; shared weights are left out, as `quantize` does.

    Raises:
        ValueError: if there are none, or the model is quantized already.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QModule):
            raise ValueError(f"{name or 'the model'} is quantized already; plan for the float model")
        twin, _ = modules.find(module)
        if twin is None or not twin.default or twin.only_activations:
            continue
        if set(twin.quantized.quantized_parameters) != {"weight"} or holders.get(id(module._parameters["weight"])) != 1:
            continue
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
            found.append(Layer(name, module, twin.quantized.quantized_parameters["weight"]))
    if not found:
        raise ValueError("the model has no layer that quanto.quantize would quantize")
    return found


def encode(layer: Layer, scheme: Scheme, meta: bool = False) -> QTensor:
    """The weight's rows under a scheme; without values if `meta`."""
    slot = layer.slot(scheme)
    if meta:
        return quantize_tensor(torch.empty(slot.rows_shape(), dtype=slot.dtype, device="meta"), scheme)
    return quantize_tensor(slot.rows(layer.weight.detach()), scheme)


def stored_bits(layer: Layer, scheme: Scheme) -> int:
    """Bits of codes, scales, zero points and a correction."""
    bits = 8 * encode(layer, scheme, meta=True).nbytes
    if scheme.rank is None or not isinstance(layer.module, nn.Linear):
        return bits
    shape = tuple(layer.weight.shape)
    return bits + 8 * layer.weight.element_size() * min(scheme.rank, *shape) * sum(shape)
