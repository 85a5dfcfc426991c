# SPDX-License-Identifier: Apache-2.0
"""What operators refuse: arguments that plain arithmetic would take without a word, named one by one.

The rest of torch's own checks (devices, ranks of matrices) is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import packing
from .blocks import scale_shape
from .nonlinearity import check_nonlinearity
from .qtypes import get_qtype
from .weight import Weight

__all__ = ["CHECKS", "check_inner", "check_scales", "check_weight"]


def check_inner(x: Tensor, codes: Tensor, qtype: str, what: str = "x") -> None:
    """Refuses activations of other features than the weight has.

    Raises:
        RuntimeError: naming both numbers.
    """
    need = packing.packed_size(x.shape[-1], get_qtype(qtype).bits)
    torch._check(
        codes.shape[-1] == need,
        lambda: f"{what} has {x.shape[-1]} features, which {qtype} packs in {need} bytes; codes has {codes.shape[-1]}",
    )


def check_weight(w: Weight, shape: tuple[int, ...]) -> None:
    """Raises ValueError, naming the tensor, if a weight's tensors do not fit its shape and qtype."""
    q = get_qtype(w.qtype)
    packed = (*shape[:-1], packing.packed_size(shape[-1], q.bits))
    if tuple(w.codes.shape) != packed or w.codes.dtype != q.storage:
        got = f"{w.codes.dtype} {tuple(w.codes.shape)}"
        raise ValueError(f"codes must be {q.storage} {packed} for {q.name} {shape}, got {got}")
    check_scales(w.scale, w.zero_point, shape, w.block_size)


def check_scales(scale: Tensor, zero: Tensor | None, shape: Sequence[int], block_size: Sequence[int]) -> None:
    """Raises ValueError, naming the tensor, if scales or zero points are not one for each block."""
    sizes = scale_shape(shape, block_size)
    for name, tensor in (("scale", scale), ("zero_point", zero)):
        if tensor is not None and tuple(tensor.shape) != sizes:
            raise ValueError(f"{name} must have shape {sizes} for block_size {block_size}, got {tuple(tensor.shape)}")


def _check_floating(name: str, x: Tensor) -> None:
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}")


def _check_bias(bias: Tensor | None, codes: Tensor) -> None:
    if bias is not None and bias.shape != codes.shape[:-1]:
        raise ValueError(f"bias must have shape {tuple(codes.shape[:-1])}, got {tuple(bias.shape)}")


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")


def _pack(codes: Tensor, bits: int) -> None:
    _check_bits(bits)
    if codes.dtype not in ((torch.uint8, torch.int8) if bits == 8 else (torch.uint8,)) or not codes.ndim:
        raise ValueError(f"codes must be uint8 [..., size], got {codes.dtype} {tuple(codes.shape)}")


def _unpack(packed: Tensor, bits: int, size: int) -> None:
    _check_bits(bits)
    need = packing.packed_size(size, bits)
    if not packed.ndim or packed.shape[-1] != need:
        raise ValueError(f"packed must have {need} bytes in a row for {size} codes, got {tuple(packed.shape)}")


def _quantize(x: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block: list[int]) -> None:
    _check_floating("x", x)
    if block:
        check_scales(scale, zero, x.shape, block)


def _dequantize(
    codes: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block: Any, size: int, dtype: torch.dtype
) -> None:
    if codes.ndim:
        check_weight(Weight(codes, scale, zero, shared, qtype, block, size, ""), (*codes.shape[:-1], size))


def _dynamic_quantize(x: Tensor, qtype: str, scale_dtype: torch.dtype) -> None:
    _check_floating("x", x)
    if not x.ndim:
        raise ValueError("x must have a dimension of features, got a single number")


def _linear(x: Tensor, codes: Tensor, scale: Tensor, zero: Any, shared: Any, bias: Any, qtype: str, block: Any) -> None:
    _check_floating("x", x)
    _check_product(x, "x", codes, scale, zero, shared, qtype, block)
    _check_bias(bias, codes)


def _check_product(
    x: Tensor, what: str, codes: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block: Any
) -> None:
    size = x.shape[-1]
    if codes.shape[-1] != packing.packed_size(size, get_qtype(qtype).bits):
        check_inner(x, codes, qtype, what)
    check_weight(Weight(codes, scale, zero, shared, qtype, block, size, ""), (*codes.shape[:-1], size))


def _linear_input_grad(
    grad: Tensor, codes: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block: Any, size: int
) -> None:
    _check_floating("grad", grad)
    check_weight(Weight(codes, scale, zero, shared, qtype, block, size, ""), (*codes.shape[:-1], size))
    if grad.shape[-1] != codes.shape[0]:
        raise RuntimeError(f"grad has {grad.shape[-1]} features, the weight gives {codes.shape[0]}")


def _scaled_linear(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Any,
    shared: Any,
    bias: Any,
    x_qtype: str,
    qtype: str,
    block: Any,
    out_scale: Any,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> None:
    check_nonlinearity(nonlinearity)
    _check_product(x_codes, "x_codes", codes, scale, zero, shared, qtype, block)
    _check_bias(bias, codes)


def _grouped_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Any, shared: Any, bias: Any, offsets: Tensor, qtype: str, block: Any
) -> None:
    _linear(x, codes, scale, zero, shared, bias, qtype, block)


def _embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Any,
    shared: Any,
    qtype: str,
    block: Any,
    size: int,
    dtype: torch.dtype,
) -> None:
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"indices must be int32 or int64, got {indices.dtype}")
    _dequantize(codes, scale, zero, shared, qtype, block, size, dtype)


#: by operator, with its arguments.
CHECKS: dict[str, Callable[..., None]] = {
    "pack": _pack,
    "unpack": _unpack,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "dynamic_quantize": _dynamic_quantize,
    "linear": _linear,
    "linear_input_grad": _linear_input_grad,
    "scaled_linear": _scaled_linear,
    "grouped_linear": _grouped_linear,
    "embedding": _embedding,
}
