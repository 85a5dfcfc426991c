# SPDX-License-Identifier: Apache-2.0
"""From float activations to quantized ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..qtype import qint8, qtype
from .grouped import axis_to_dim
from .qbytes import ActivationQBytesTensor

__all__ = ["absmax_scale", "dtype_info", "quantize_activation"]


def dtype_info(dtype: torch.dtype) -> torch.finfo | torch.iinfo:
    """The range of a floating or an integer dtype."""
    return torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)


def absmax_scale(base: Tensor, qtype: qtype = qint8, axis: int | None = None) -> Tensor:
    """The scale that maps the largest magnitude to the largest value of the qtype.

    Returns:
        `[]`, or with an axis one for each of its entries, in as many dimensions as the base has.
    """
    base = base.abs()
    peak = base.max() if axis is None else torch.amax(base, dim=axis_to_dim(base, axis), keepdim=True)
    return peak / dtype_info(qtype.dtype).max


def quantize_activation(t: Tensor, qtype: qtype, scale: Tensor) -> ActivationQBytesTensor:
    """Quantizes activations by one scale.

    Raises:
        ValueError: if the scale has more elements than one.
    """
    if scale.numel() != 1:
        raise ValueError(f"scale must have one element, got the shape {tuple(scale.shape)}")
    return ActivationQBytesTensor.quantize(t, qtype, scale)
