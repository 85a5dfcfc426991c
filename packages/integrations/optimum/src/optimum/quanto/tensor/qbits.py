# SPDX-License-Identifier: Apache-2.0
"""Tensors of 2 and 4 bits: packed codes, scales and shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..qtype import qtype, qtypes
from .grouped import group, grouped_shape, ungroup
from .packed import PackedTensor
from .qtensor import QTensor

__all__ = ["QBitsTensor", "WeightQBitsTensor", "quantize_affine"]


def quantize_affine(base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor) -> Tensor:
    """Codes from 0 to `2**bits - 1`, uint8, grouped where a size is given.

    A floating shift is in units of the base, a whole one in units of the scale.
    """
    if axis not in (0, -1):
        raise ValueError(f"axis must be 0 or -1, got {axis}")
    if group_size is not None:
        base = group(base, axis, group_size)
    divisor = torch.where(scale == 0, 1, scale)  # where the scale is zero, all values are the shift's
    if shift.is_floating_point():
        codes = torch.round((base + shift) / divisor)
    else:
        codes = torch.round(base / divisor) + shift
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)


class QBitsTensor(QTensor):
    """Values of 2 or 4 bits with scales and shifts."""

    stored = ("_data", "_scale", "_shift")
    _shift: Tensor
    _group_size: int | None

    def values(self) -> Tensor:
        data = self._data.unpack() if isinstance(self._data, PackedTensor) else self._data
        if self._shift.is_floating_point():
            out = self._scale * data.to(self._scale.dtype) - self._shift
        else:
            out = self._scale * (data.to(torch.int8) - self._shift)
        return out if self._group_size is None else ungroup(out, self._axis or 0, self.shape)


class WeightQBitsTensor(QBitsTensor):
    """Weights of 2 or 4 bits, per row or column or by groups."""

    @staticmethod
    def __new__(
        cls,
        qtype: qtype,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        shift: Tensor,
        requires_grad: bool = False,
    ) -> WeightQBitsTensor:
        if not isinstance(data, PackedTensor):
            data = PackedTensor.pack(data, qtype.bits)
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, tuple(size), strides=tuple(stride), dtype=scale.dtype, device=data.device, requires_grad=False
        )
        made._qtype, made._axis, made._group_size = qtype, axis, group_size
        made._data, made._scale, made._shift = data, scale, shift
        return made.requires_grad_(requires_grad)  # type: ignore[no-any-return]

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> WeightQBitsTensor:
        """The constructor by another name: kernels are chosen when the weight is used."""
        return cls(*args, **kwargs)

    @classmethod
    def quantize(
        cls,
        base: Tensor,
        qtype: qtype,
        axis: int,
        group_size: int | None,
        scale: Tensor,
        shift: Tensor,
        optimized: bool = True,
    ) -> WeightQBitsTensor:
        """Quantizes by given scales and shifts; gradients pass."""
        return _Quantize.apply(base, qtype, axis, group_size, scale, shift)  # type: ignore[no-any-return, no-untyped-call]

    def optimize(self) -> WeightQBitsTensor:
        """Itself: kernels are chosen when the weight is used."""
        return self

    def constants(self) -> tuple[Any, ...]:
        return self._qtype.name, self._axis, self._group_size, tuple(self.size()), tuple(self.stride())

    @classmethod
    def assemble(cls, tensors: dict[str, Tensor], constants: tuple[Any, ...]) -> Any:
        name, axis, size, shape, stride = constants
        return cls(qtypes[name], axis, size, shape, stride, tensors["_data"], tensors["_scale"], tensors["_shift"])

    @staticmethod
    def load_from_state_dict(
        state_dict: dict[str, Any],
        prefix: str,
        qtype: qtype,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        missing_keys: list[str],
    ) -> WeightQBitsTensor | None:
        """Takes a weight out of a state dict; None, and names in `missing_keys`, where parts are not there."""
        inner = tuple(size) if group_size is None else grouped_shape(size, axis, group_size)
        strides = torch.empty(inner, device="meta").stride()
        data = PackedTensor.load_from_state_dict(
            state_dict, f"{prefix}_data.", qtype.bits, inner, strides, missing_keys
        )
        found = {name: state_dict.pop(prefix + name, None) for name in ("_scale", "_shift")}
        missing_keys += [prefix + name for name, tensor in found.items() if tensor is None]
        if data is None or None in found.values():
            return None
        rows = -(-inner[0] * qtype.bits // 8)
        if tuple(data._data.shape) != (rows, *inner[1:]):
            raise ValueError(f"{prefix}_data._data has shape {tuple(data._data.shape)}, not {(rows, *inner[1:])}")
        return WeightQBitsTensor(qtype, axis, group_size, size, stride, data, found["_scale"], found["_shift"])


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, qtype: qtype, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
    ) -> Tensor:
        codes = quantize_affine(base, qtype.bits, axis, group_size, scale, shift)
        return WeightQBitsTensor(qtype, axis, group_size, base.size(), base.stride(), codes, scale, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None, None, None, None
