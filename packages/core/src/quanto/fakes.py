# SPDX-License-Identifier: Apache-2.0
"""Fake implementations of the operators of `quanto.ops`: shapes and dtypes only, by which they trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import packing
from .contracts import check_inner
from .nonlinearity import check_nonlinearity
from .qtypes import get_qtype

__all__ = ["FAKES"]


def quantize(x: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block_size: list[int]) -> Tensor:
    q = get_qtype(qtype)
    return x.new_empty((*x.shape[:-1], packing.packed_size(x.shape[-1], q.bits)), dtype=q.storage)


def dequantize(
    codes: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block: list[int], size: int, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], size), dtype=dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], packing.packed_size(codes.shape[-1], bits)))


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], size))


def dynamic_quantize(x: Tensor, qtype: str, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    q = get_qtype(qtype)
    codes = x.new_empty((*x.shape[:-1], packing.packed_size(x.shape[-1], q.bits)), dtype=q.storage)
    return codes, x.new_empty((*x.shape[:-1], 1), dtype=scale_dtype)


def linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Any, shared: Any, bias: Any, qtype: str, block: list[int]
) -> Tensor:
    check_inner(x, codes, qtype)
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def linear_input_grad(
    grad: Tensor, codes: Tensor, scale: Tensor, zero: Any, shared: Any, qtype: str, block: list[int], size: int
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], size))


def scaled_linear(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Any,
    shared: Any,
    bias: Any,
    x_qtype: str,
    qtype: str,
    block: list[int],
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> Tensor:
    check_nonlinearity(nonlinearity)
    check_inner(x_codes, codes, qtype, "x_codes")
    return x_codes.new_empty(
        (*x_codes.shape[:-1], codes.shape[0]), dtype=dtype if out_scale is None else get_qtype(x_qtype).storage
    )


def grouped_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Any, shared: Any, bias: Any, offsets: Tensor, qtype: str, block: Any
) -> Tensor:
    check_inner(x, codes, qtype)
    return x.new_empty((x.shape[0], codes.shape[1]))


def embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Any,
    shared: Any,
    qtype: str,
    block: list[int],
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty((*indices.shape, size), dtype=dtype)


#: by operator; kernels that wrap the same schema use them too.
FAKES: dict[str, Any] = {
    function.__name__: function
    for function in (
        quantize,
        dequantize,
        pack,
        unpack,
        dynamic_quantize,
        linear,
        linear_input_grad,
        scaled_linear,
        grouped_linear,
        embedding,
    )
}
