# SPDX-License-Identifier: Apache-2.0
"""From a floating tensor to a `QTensor`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import packing, reference
from ..blocks import scale_shape
from ..qtypes import QType, get_qtype
from ..quantizers import Target, get_quantizer, quantizers
from ..scheme import Scheme
from .qtensor import QTensor

__all__ = ["make_target", "quantize_activation", "quantize_parts", "quantize_tensor"]

_Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def quantize_tensor(
    x: Tensor,
    qtype: str | QType | Scheme,
    *,
    block_size: Sequence[int] | None = None,
    group_size: int | None = None,
    granularity: str | None = None,
    symmetric: bool | None = None,
    algorithm: str | None = None,
    scale_dtype: str | None = None,
) -> QTensor:
    """Quantizes a floating tensor.

    Args:
        x: floating, any shape; groups run along the last dimension. May be on the meta device.
        qtype: of the codes; or a whole `Scheme`, and then nothing else but `block_size`.
        block_size: which elements share a scale (see `quanto.blocks`); overrides the scheme's granularity.
        group_size, granularity, symmetric, algorithm, scale_dtype: see `Scheme`.

    Returns:
        A `QTensor` of x's shape and dtype, without gradient.

    Raises:
        TypeError: if x is not floating.
        ValueError: where the options conflict.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if isinstance(qtype, Scheme):
        scheme = qtype
        if any(option is not None for option in (group_size, granularity, symmetric, algorithm, scale_dtype)):
            raise ValueError(f"the scheme {scheme} says everything: give it alone, or a qtype with options")
    else:
        scheme = Scheme(
            get_qtype(qtype).name,
            group_size=group_size,
            granularity=granularity,
            symmetric=symmetric,
            algorithm=algorithm,
            scale_dtype=scale_dtype,
        )
    shape = tuple(x.shape)
    if block_size is None:
        blocks = scheme.block_size(shape) if shape else ()
    else:
        scale_shape(shape, block_size)  # raises where it does not fit
        if any(b <= 0 for b in block_size):
            raise ValueError(f"block_size must be positive, got {tuple(block_size)}")
        blocks = tuple(min(b, max(n, 1)) for b, n in zip(block_size, shape, strict=False))
    tensors = quantize_parts(x, scheme, blocks)
    return QTensor(
        *tensors, qtype=scheme.qtype, block_size=blocks, columns=shape[-1] if shape else 1, dtype=x.dtype, shape=shape
    )


@torch.no_grad()
def quantize_parts(x: Tensor, scheme: Scheme, block_size: tuple[int, ...]) -> _Parts:
    """The codes, scale, zero point and global scale of a floating tensor; traces, where a `QTensor` would not."""
    target = make_target(scheme, block_size, x.dtype)
    return _empty(x, target) if x.is_meta or x.numel() == 0 else _quantize(x.detach(), target, scheme.quantizer)


def make_target(scheme: Scheme, block_size: tuple[int, ...], dtype: torch.dtype) -> Target:
    """What a scheme asks of the quantizer of a tensor of `dtype`."""
    scales = scheme.scales(dtype)
    zeros = scheme.zero_point
    if zeros is None:  # kernels of quantized activations want whole ones
        zeros = "int" if scheme.activations else getattr(quantizers.get(scheme.quantizer), "zero_point", "int")
    floating = scales if scales.itemsize > 1 else torch.float16
    zero_dtype = floating if zeros == "float" else torch.int8
    return Target(scheme.qtype, block_size, scales, scheme.is_symmetric, zero_dtype)


def _quantize(x: Tensor, target: Target, algorithm: str) -> _Parts:
    quantizer = get_quantizer(algorithm)
    x = x.contiguous()
    p = quantizer.parameters(x, target)
    return quantizer.codes(x if x.ndim else x.reshape(1), target, p), *p


def _empty(x: Tensor, target: Target) -> _Parts:
    """Tensors of the right shapes without values, for meta tensors and empty ones."""
    q, shape = target.qtype, tuple(x.shape) or (1,)
    codes = x.new_empty((*shape[:-1], packing.packed_size(shape[-1], q.bits)), dtype=q.storage)
    sizes = scale_shape(shape, target.block_size)
    zero = None if target.symmetric else x.new_zeros(sizes, dtype=target.zero_dtype)
    shared = x.new_ones((), dtype=torch.float32) if q.two_level else None
    return codes, x.new_ones(sizes, dtype=torch.float32).to(target.scale_dtype), zero, shared


def quantize_activation(x: Tensor, qtype: str | QType, scale: Tensor | None = None) -> QTensor:
    """Quantizes activations to 8 bits.

    Args:
        x: floating, `[…, features]`.
        qtype: `"int8"` or a float8.
        scale: `[]`, static; None gives each token (row of the last dimension) its own.

    Raises:
        TypeError: if x is not floating.
        ValueError: if the qtype is not one of activations, the scale not one number, or x one number without a scale.
    """
    q = get_qtype(qtype)
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {x.dtype}")
    if q.bits != 8 or q.block is not None:
        raise ValueError(f"activations must be int8 or float8, got {q.name}")
    if scale is not None and scale.ndim:
        raise ValueError(f"scale must be one number, got the shape {tuple(scale.shape)}")
    if scale is None:
        if not x.ndim:
            raise ValueError("x must have a dimension of features where each token has its own scale; give a scale")
        codes, scale = reference.dynamic_quantize(x, q.name, torch.float32)
        return QTensor(codes, scale, qtype=q, block_size=(*(1,) * (x.ndim - 1), x.shape[-1]), dtype=x.dtype)
    codes = torch.ops.quanto_core.quantize(x, scale, None, None, q.name, [])
    return QTensor(codes, scale, qtype=q, dtype=x.dtype)
