# SPDX-License-Identifier: Apache-2.0
"""The bytes of tensors, and the numbers in them that no code stands for."""

from __future__ import annotations

import ctypes

from torch import Tensor

__all__ = ["bytes_of", "check_finite"]


def bytes_of(tensor: Tensor) -> memoryview:
    """What a contiguous tensor on the CPU holds, without a copy; it must outlive this.

    Not through numpy, which torch does not require and which lacks bfloat16 and float8.
    """
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def check_finite(name: str, tensor: Tensor) -> None:
    """Looks for what no code stands for.

    Raises:
        ValueError: naming a tensor that holds NaN or infinity.
    """
    if tensor.numel() and not tensor.is_meta and not all(t.isfinite() for t in tensor.detach().aminmax()):
        raise ValueError(f"{name} holds NaN or infinity")
