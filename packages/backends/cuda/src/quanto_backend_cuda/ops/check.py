# SPDX-License-Identifier: Apache-2.0
"""Arguments that a kernel would misread are refused by name."""

from __future__ import annotations

import torch
from torch import Tensor

from quanto import packing
from quanto.qtypes import get_qtype

__all__ = ["activations", "same_device", "weight"]

_HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*_HALVES, torch.float32)


def same_device(device: torch.device, **tensors: Tensor | None) -> None:
    """Raises ValueError, naming the argument, if a tensor is elsewhere."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the other arguments are on {device}")


def activations(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Raises TypeError if x has a dtype that the kernels do not take."""
    if x.dtype not in dtypes:
        takes = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be one of {takes}, got {str(x.dtype).removeprefix('torch.')}")


def weight(
    x_name: str, size: int, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, qtype: str,
    block: list[int], tiled: bool,
) -> None:  # fmt: skip
    """Raises, naming the tensor, if the codes do not fit `size` columns, or the others the codes.

    Args:
        x_name: the argument whose last dimension `size` is.
        size: columns of the weight.
        codes, scale, zero, bias, qtype, block: the weight.
        tiled: whether the codes are padded to whole tiles.
    """
    q = get_qtype(qtype)
    if codes.dtype != q.storage:
        raise TypeError(f"codes must be {q.storage} for {q.name}, got {codes.dtype}")
    columns = -(-size // 128) * 128 if tiled else size
    need = packing.packed_size(columns, q.bits)
    if codes.shape[-1] != need:
        raise ValueError(
            f"{x_name} has {size} features, which {q.name} packs in {need} bytes a row; codes has {codes.shape[-1]}"
        )
    if block and scale.shape[-1] != -(-size // block[-1]):
        raise ValueError(
            f"scale has {scale.shape[-1]} groups a row, block_size {list(block)} makes {-(-size // block[-1])} "
            f"of {size} columns"
        )
    rows = codes.shape[-2]
    if len(block) and scale.ndim > 1 and scale.shape[-2] != -(-rows // (block[-2] if len(block) > 1 else 1)):
        raise ValueError(f"scale has {scale.shape[-2]} rows for {rows} of codes, block_size is {list(block)}")
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"zero_point is {list(zero.shape)}, scale {list(scale.shape)}")
    if bias is not None and bias.shape != codes.shape[:-1]:
        raise ValueError(f"bias is {list(bias.shape)}, for {list(codes.shape[:-1])} rows of codes")
