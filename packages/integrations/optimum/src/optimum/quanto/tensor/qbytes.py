# SPDX-License-Identifier: Apache-2.0
"""Tensors of 8 bits: one byte a value, and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..qtype import qtype, qtypes
from .qtensor import QTensor, by_name

__all__ = ["ActivationQBytesTensor", "QBytesTensor", "WeightQBytesTensor", "quantize_symmetric"]


def quantize_symmetric(base: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    """`round(base / scale)` in int8, or `base / scale` in float8, within the range of the dtype."""
    data = base / torch.where(scale == 0, 1, scale)  # where the scale is zero, so are all values
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        return data.clamp(info.min, info.max).to(dtype)
    return data.round().clamp(-128, 127).to(dtype)


class QBytesTensor(QTensor):
    """Values of 8 bits with one scale, or one for each row or column."""

    def values(self) -> Tensor:
        return self._scale * self._data.to(self._scale.dtype)


def _wrap(cls: Any, data: Tensor, scale: Tensor, size: Sequence[int], stride: Sequence[int]) -> Any:
    made = torch.Tensor._make_wrapper_subclass(
        cls, tuple(size), strides=tuple(stride), dtype=scale.dtype, device=data.device, requires_grad=False
    )
    made._data, made._scale = data, scale
    return made


class ActivationQBytesTensor(QBytesTensor):
    """Activations: one scale."""

    @staticmethod
    def __new__(
        cls,
        qtype: qtype,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        requires_grad: bool = False,
    ) -> ActivationQBytesTensor:
        made: ActivationQBytesTensor = _wrap(cls, data, scale, size, stride)
        made._qtype, made._axis = qtype, None
        made.requires_grad_(requires_grad)
        return made

    @classmethod
    def quantize(cls, base: Tensor, qtype: qtype, scale: Tensor) -> ActivationQBytesTensor:
        """Quantizes by a scale of one element; gradients pass."""
        return _QuantizeActivation.apply(base, qtype, scale)  # type: ignore[no-any-return, no-untyped-call]

    def constants(self) -> tuple[Any, ...]:
        return (self._qtype.name,)

    @classmethod
    def assemble(cls, tensors: dict[str, Tensor], constants: tuple[Any, ...]) -> Any:
        data = tensors["_data"]
        return cls(qtypes[constants[0]], data.size(), data.stride(), data, tensors["_scale"])


class WeightQBytesTensor(QBytesTensor):
    """Weights: a scale for each row (axis 0) or column (axis -1), or one."""

    activation_qtype: qtype | None

    @staticmethod
    def __new__(
        cls,
        qtype: qtype,
        axis: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        activation_qtype: qtype | None = None,
        requires_grad: bool = False,
    ) -> WeightQBytesTensor:
        made: WeightQBytesTensor = _wrap(cls, data, scale, size, stride)
        made._qtype, made._axis, made.activation_qtype = qtype, axis, activation_qtype
        made.requires_grad_(requires_grad)
        return made

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> WeightQBytesTensor:
        """The constructor by another name: kernels are chosen when the weight is used."""
        return cls(*args, **kwargs)

    @classmethod
    def quantize(
        cls,
        base: Tensor,
        qtype: qtype,
        axis: int | None,
        scale: Tensor,
        activation_qtype: qtype | None = None,
        optimized: bool = True,
    ) -> WeightQBytesTensor:
        """Quantizes by given scales; gradients pass."""
        return _QuantizeWeight.apply(base, qtype, axis, scale, activation_qtype)  # type: ignore[no-any-return, no-untyped-call]

    def optimize(self) -> WeightQBytesTensor:
        """Itself: kernels are chosen when the weight is used."""
        return self

    def constants(self) -> tuple[Any, ...]:
        activations = None if self.activation_qtype is None else self.activation_qtype.name
        return self._qtype.name, self._axis, activations

    @classmethod
    def assemble(cls, tensors: dict[str, Tensor], constants: tuple[Any, ...]) -> Any:
        name, axis, activations = constants
        data = tensors["_data"]
        return cls(qtypes[name], axis, data.size(), data.stride(), data, tensors["_scale"], by_name(activations))

    @staticmethod
    def load_from_state_dict(
        state_dict: dict[str, Any],
        prefix: str,
        qtype: qtype,
        axis: int,
        size: Sequence[int],
        stride: Sequence[int],
        activation_qtype: qtype | None,
        missing_keys: list[str],
    ) -> WeightQBytesTensor | None:
        """Takes a weight out of a state dict; None, and names in `missing_keys`, where parts are not there."""
        found = {name: state_dict.pop(prefix + name, None) for name in ("_data", "_scale")}
        missing_keys += [prefix + name for name, tensor in found.items() if tensor is None]
        if None in found.values():
            return None
        if tuple(found["_data"].shape) != tuple(size):
            raise ValueError(f"{prefix}_data has shape {tuple(found['_data'].shape)}, the module needs {tuple(size)}")
        return WeightQBytesTensor(qtype, axis, size, stride, found["_data"], found["_scale"], activation_qtype)


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, qtype: qtype, scale: Tensor) -> Tensor:
        data = quantize_symmetric(base, qtype.dtype, scale)
        return ActivationQBytesTensor(qtype, base.size(), base.stride(), data, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, qtype: qtype, axis: int, scale: Tensor, activations: qtype | None) -> Tensor:
        data = quantize_symmetric(base, qtype.dtype, scale)
        return WeightQBytesTensor(qtype, axis, base.size(), base.stride(), data, scale, activations)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None, None, None
