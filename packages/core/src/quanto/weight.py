# SPDX-License-Identifier: Apache-2.0
"""What an operator is given of a quantized weight: plain tensors and plain constants, never a tensor subclass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["CANONICAL", "Weight", "constants_of", "make_key"]

#: the layout of files and of `packing.py`; any other lives in memory only and belongs to a kernel.
CANONICAL = "canonical"


class Weight(NamedTuple):
    """A quantized weight as operators see it.

    Attributes:
        codes: packed codes; `[out, ceil(in * bits / 8)]` in the canonical layout (`[experts, out, …]` if grouped).
        scale: `[out, groups]`, or `[]` per tensor.
        zero_point: int8 or floating, the scale's shape, or None.
        global_scale: float32 `[]`, or None.
        qtype: name.
        block_size: see `quanto.blocks`.
        size: elements per row (the input dimension).
        key: a string that names everything the choice of a kernel depends on but device and activations.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    global_scale: Tensor | None
    qtype: str
    block_size: tuple[int, ...]
    size: int
    key: str


def make_key(
    qtype: str,
    block_size: tuple[int, ...],
    shape: tuple[int, ...],
    scale: Tensor,
    zero_point: Tensor | None,
    layout: str = CANONICAL,
) -> str:
    """Writes the key of a weight of (unpacked) `shape`; `quanto.kernels.spec.Request.parse` reads it.

    A string, so that it is a constant to torch.compile and survives pickling; `constants_of` reads its beginning.
    """
    zero = "none" if zero_point is None else "float" if zero_point.is_floating_point() else "int"
    dims = "x".join(map(str, shape))
    blocks = "x".join(map(str, block_size))
    return f"{qtype};{blocks};{dims};{str(scale.dtype).removeprefix('torch.')};{zero};{layout}"


def constants_of(key: str) -> tuple[str, tuple[int, ...], int]:
    """`qtype`, `block_size` and `size` of the weight with a key.

    Graphs read them here: torch.compile then guards a layer on its key, not on each constant besides.
    """
    qtype, blocks, dims, *_ = key.split(";")
    return qtype, tuple([int(b) for b in blocks.split("x") if b]), int(dims.split("x")[-1])
