# SPDX-License-Identifier: Apache-2.0
"""Tensors of 2 and 4 bits: packed codes, scales and shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quanto.weight import Weight

from ..qtype import qtype, qtypes
from .arranged import arrange, restore
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

    _shift: Tensor
    _group_size: int | None

    @property
    def stored(self) -> tuple[str, ...]:
        """The attributes that are tensors."""
        return "_data", "_scale", "_shift"

    def values(self) -> Tensor:
        data = self._data.unpack() if isinstance(self._data, PackedTensor) else self._data
        if self._shift.is_floating_point():
            out = self._scale * data.to(self._scale.dtype) - self._shift
        else:
            out = self._scale * (data.to(torch.int8) - self._shift)
        return out if self._group_size is None else ungroup(out, self._axis or 0, self.shape)


class WeightQBitsTensor(QBitsTensor):
    """Weights of 2 or 4 bits, per row or column or by groups.

    The codes are in memory once: as files have them, or, after `optimize`, as a kernel wants them.

    Attributes:
        operand: what kernels take; None where the codes lie as in files.
    """

    _packed: Tensor | None
    _codes: Tensor
    _steps: Tensor
    _zeros: Tensor | None
    _kernel: tuple[Any, ...] | None

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
        made._packed, made._scale, made._shift = data, scale, shift
        made._kernel = None
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

    # -- as kernels want it ------------------------------------------------------------------------------------

    def optimize(self) -> WeightQBitsTensor:
        """The weight for its fastest kernel; itself where there is none, or it is so already."""
        if self._kernel is not None:
            return self
        operand = arrange(self)
        return self if operand is None else self._with(operand)

    def _with(self, w: Weight) -> WeightQBitsTensor:
        tensors = {"_codes": w.codes, "_steps": w.scale, "_scale": self._scale, "_shift": self._shift}
        if w.zero_point is not None:
            tensors["_zeros"] = w.zero_point
        made: WeightQBitsTensor = self.assemble(tensors, (*self._own(), tuple(w[4:])))
        return made

    @property
    def operand(self) -> Weight | None:
        """See the class."""
        if self._kernel is None:
            return None
        return Weight(self._codes, self._steps, self._zeros, None, *self._kernel)

    @property
    def _data(self) -> Any:
        """The codes as files have them."""
        operand = self.operand
        return self._packed if operand is None else restore(operand)

    @_data.setter
    def _data(self, value: Any) -> None:
        self.settle()
        self._packed = value

    def settle(self) -> None:
        """Lays the codes as in files, in place."""
        if self._kernel is not None:
            self._packed, self._kernel = self._data, None

    def settled(self) -> WeightQBitsTensor:
        """The same weight with its codes as in files."""
        if self._kernel is None:
            return self
        tensors = {"_data": self._data, "_scale": self._scale, "_shift": self._shift}
        settled: WeightQBitsTensor = self.assemble(tensors, self._own())
        return settled

    @property
    def stored(self) -> tuple[str, ...]:
        """The attributes that are tensors."""
        if self._kernel is None:
            return "_data", "_scale", "_shift"
        return "_codes", "_steps", *(() if self._zeros is None else ("_zeros",)), "_scale", "_shift"

    def _own(self) -> tuple[Any, ...]:
        return self._qtype.name, self._axis, self._group_size, tuple(self.size()), tuple(self.stride())

    def constants(self) -> tuple[Any, ...]:
        return self._own() if self._kernel is None else (*self._own(), self._kernel)

    @classmethod
    def assemble(cls, tensors: dict[str, Tensor], constants: tuple[Any, ...]) -> Any:
        name, axis, size, shape, stride, *kernel = constants
        data = tensors["_codes" if kernel else "_data"]
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=stride, dtype=tensors["_scale"].dtype, device=data.device, requires_grad=False
        )
        made._qtype, made._axis, made._group_size = qtypes[name], axis, size
        made._scale, made._shift = tensors["_scale"], tensors["_shift"]
        made._packed, made._kernel = tensors.get("_data"), kernel[0] if kernel else None
        if kernel:
            made._codes, made._steps, made._zeros = data, tensors["_steps"], tensors.get("_zeros")
        return made

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
