# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.quanto`: the operators of optimum-quanto that run on every device, by the same names and schemas."""

from __future__ import annotations

import torch
from torch import Tensor

from quanto import ops

from ..tensor import qbits, qbytes
from ..tensor.grouped import grouped_shape
from ..tensor.kernel import of_rows
from ..tensor.packed import unpack_weights

__all__ = ["SCHEMAS", "define_operators"]

SCHEMAS = {
    "quantize_symmetric": "(Tensor base, ScalarType dtype, int? axis, Tensor scale) -> Tensor",
    "quantize_affine": "(Tensor base, int bits, int axis, int? group_size, Tensor scale, Tensor shift) -> Tensor",
    "unpack": "(Tensor self, int bits) -> Tensor",
    "qbytes_mm": "(Tensor A, Tensor B, Tensor scales) -> Tensor",
}

_library: list[torch.library.Library] = []


def define_operators() -> None:
    """Defines the operators that nobody has defined before."""
    if _library:
        return
    _library.append(torch.library.Library("quanto", "FRAGMENT"))  # torch keeps definitions as long as it lives
    for name, schema in SCHEMAS.items():
        if hasattr(torch.ops.quanto, name):
            continue
        _library[0].define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library[0].impl(name, globals()[name], "CompositeExplicitAutograd")
        torch.library.register_fake(f"quanto::{name}", globals()[f"_fake_{name}"], lib=_library[0])


def quantize_symmetric(base: Tensor, dtype: torch.dtype, axis: int | None, scale: Tensor) -> Tensor:
    """`base / scale` in int8 or float8, see `optimum.quanto.tensor.qbytes`.

    Raises:
        ValueError: for a scale that does not fit the axis.
    """
    if axis is None:
        if scale.ndim:
            raise ValueError(f"scale must be a scalar where axis is None, got the shape {tuple(scale.shape)}")
    else:
        if base.ndim < 2 or axis not in (0, -1, base.ndim - 1):
            raise ValueError(f"axis must be the first or the last of two or more, got {axis} of {base.ndim}")
        if base.shape[axis] == 1:
            raise ValueError(f"axis {axis} of a tensor of shape {tuple(base.shape)} has one entry: use axis=None")
        if scale.ndim != base.ndim or scale.numel() != scale.shape[axis]:
            raise ValueError(f"scale must have the dimensions of base and one axis, got the shape {tuple(scale.shape)}")
    return qbytes.quantize_symmetric(base, dtype, scale)


def _fake_quantize_symmetric(base: Tensor, dtype: torch.dtype, axis: int | None, scale: Tensor) -> Tensor:
    return torch.empty_like(base, dtype=dtype)


def quantize_affine(base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor) -> Tensor:
    """Codes from zero, see `optimum.quanto.tensor.qbits`."""
    return qbits.quantize_affine(base, bits, axis, group_size, scale, shift)


def _fake_quantize_affine(
    base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
) -> Tensor:
    shape = base.shape if group_size is None else grouped_shape(base.shape, axis, group_size)
    return base.new_empty(shape, dtype=torch.uint8)


def unpack(self: Tensor, bits: int) -> Tensor:
    """The values of packed bytes, with the rows that filled the last byte row.

    Raises:
        ValueError: for other bits than 2 and 4, or another dtype than uint8.
    """
    if bits not in (2, 4) or self.dtype != torch.uint8:
        raise ValueError(f"bits must be 2 or 4 and values uint8, got {bits} and {self.dtype}")
    return unpack_weights(self, bits)


def _fake_unpack(self: Tensor, bits: int) -> Tensor:
    return self.new_empty((self.shape[0] * (8 // bits), *self.shape[1:]))


def qbytes_mm(A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
    """`A @ (scales * B).T`, in the dtype of the scales.

    Args:
        A: `[…, in]`, floating, or codes in int8 whose scale is within the scales.
        B: int8 or float8, `[out, in]`.
        scales: `[out, 1]` or one.
    """
    weight = of_rows(B, scales, scales.dtype)
    if A.dtype == torch.int8 and B.dtype == torch.int8:
        return ops.scaled_linear(A.contiguous(), scales.new_ones(()), weight, None, "int8", None, scales.dtype)
    return ops.linear(A.to(scales.dtype), weight)


def _fake_qbytes_mm(A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
    return scales.new_empty((*A.shape[:-1], B.shape[0]))
