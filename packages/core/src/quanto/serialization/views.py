# SPDX-License-Identifier: Apache-2.0
"""Tensors of dtypes that safetensors does not know, stored as tensors of another dtype over the same bytes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["VIEWS", "restored", "stored", "view_of"]

#: dtype name -> the dtype, and the one it is stored as. Complex numbers become pairs along a new last dimension.
VIEWS: dict[str, tuple[torch.dtype, torch.dtype]] = {
    "complex32": (torch.complex32, torch.float16),
    "complex64": (torch.complex64, torch.float32),
    "complex128": (torch.complex128, torch.float64),
    "float8_e4m3fnuz": (torch.float8_e4m3fnuz, torch.uint8),
    "float8_e5m2fnuz": (torch.float8_e5m2fnuz, torch.uint8),
}
_NAMES = {dtype: name for name, (dtype, _) in VIEWS.items()}


def view_of(dtype: torch.dtype) -> str | None:
    """The name of a dtype that is stored as another; None for one that is stored as it is."""
    return _NAMES.get(dtype)


def stored(tensor: Tensor) -> Tensor:
    """What is written for a tensor."""
    name = view_of(tensor.dtype)
    if name is None:
        return tensor
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.contiguous().view(VIEWS[name][1])


def restored(tensor: Tensor, name: str | None) -> Tensor:
    """The inverse of `stored`, of the dtype of that name; the tensor itself for None.

    Raises:
        ValueError: if the tensor cannot be one of that dtype.
    """
    if name is None:
        return tensor
    dtype, under = VIEWS[name]
    if tensor.dtype != under or (dtype.is_complex and tensor.shape[-1:] != (2,)):
        raise ValueError(f"a tensor of {tensor.dtype} {tuple(tensor.shape)} does not hold {name}")
    return torch.view_as_complex(tensor) if dtype.is_complex else tensor.view(dtype)
