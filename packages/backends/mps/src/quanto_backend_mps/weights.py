# SPDX-License-Identifier: Apache-2.0
"""What the shaders need to know of a weight, and the type codes of `shaders/decode.metal`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quanto import packing
from quanto.contracts import check_scales
from quanto.qtypes import get_qtype

__all__ = ["KINDS", "NONE", "SUFFIXES", "TABLES", "TYPES", "Operand", "aligned", "beside", "floating", "operand"]

#: the part of a kernel's name that says how elements are decoded, by qtype.
KINDS = {
    "int8": "int8",
    "int4": "int4",
    "int3": "int3",
    "int2": "int2",
    "nf4": "table4",
    "fp4": "table4",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
}
#: which of the tables of `shaders/decode.metal`.
TABLES = {"nf4": 0, "fp4": 1}

#: the type codes, and the part of a kernel's name that says of what type activations are.
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
NONE = 4
SUFFIXES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int8: "i8"}


@dataclass(frozen=True)
class Operand:
    """A 2-D weight as kernels take it.

    Attributes:
        kind: see `KINDS`.
        bits: of a code.
        table: index of the values of a table kind.
        codes: `[rows, stride]`, contiguous.
        scale, zero: contiguous; `zero` is None or int8 or floating.
        rows, size: of the unpacked weight.
        group, groups, block_rows: columns that share a scale, how many such groups a row has, rows that share a scale.
    """

    kind: str
    bits: int
    table: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    rows: int
    size: int
    group: int
    groups: int
    block_rows: int

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return self.codes.shape[-1]

    @property
    def whole_row(self) -> bool:
        """Whether a row has one scale."""
        return self.groups == 1

    @property
    def by_words(self) -> bool:
        """Whether units of codes (16 bytes, 12 for int3, 8 for int2) lie at words and within a group.

        Then a row is a multiple of four elements too, which is what reading activations four at a time needs.
        """
        unit = 16 if self.bits == 8 else 32
        words = self.size * self.bits % 32 == 0 and aligned(self.codes, 4)
        return words and (self.whole_row or self.group % unit == 0)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale, zero point; the scale stands in for a zero point that is not there."""
        return self.codes, self.scale, self.scale if self.zero is None else self.zero

    @property
    def types(self) -> tuple[int, int]:
        """Type codes of scale and zero point."""
        return TYPES[self.scale.dtype], NONE if self.zero is None else TYPES[self.zero.dtype]


def aligned(t: Tensor, bytes_: int) -> bool:
    """Whether a tensor begins at a multiple of that many bytes within its memory, which itself begins at any."""
    return t.storage_offset() * t.element_size() % bytes_ == 0


def floating(name: str, x: Tensor) -> None:
    """Raises TypeError, naming the argument, if it is no float that the kernels take."""
    if x.dtype not in TYPES or not x.is_floating_point():
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")


def beside(what: str, device: torch.device, **tensors: Tensor | None) -> None:
    """Raises ValueError, naming the argument, if a tensor is elsewhere than `what` is."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, {what} is on {device}")


def operand(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    qtype: str,
    block: Sequence[int],
    size: int,
    what: str = "x",
) -> Operand:
    """The weight of an operator, checked.

    Args:
        codes, scale, zero, shared, qtype, block: as operators have them.
        size: columns of the weight.
        what: the argument whose last dimension `size` is.

    Raises:
        TypeError: if the codes have another dtype than the qtype's.
        ValueError: if a tensor is elsewhere, or of a shape that does not fit the others.
    """
    q = get_qtype(qtype)
    beside("codes", codes.device, scale=scale, zero_point=zero, global_scale=shared)
    if codes.dtype != q.storage:
        raise TypeError(f"codes must be {q.storage} for {q.name}, got {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must have two dimensions, got {tuple(codes.shape)}")
    stride = packing.packed_size(size, q.bits)
    if codes.shape[1] != stride:
        raise ValueError(
            f"{what} has {size} features, which {q.name} packs in {stride} bytes a row; codes has {codes.shape[1]}"
        )
    rows = codes.shape[0]
    block_rows, group = (max(rows, 1), max(size, 1)) if not block else (block[0], min(block[1], max(size, 1)))
    groups = -(-size // group)
    check_scales(scale, zero, (rows, size), block)
    if shared is not None:
        scale = scale.float() * shared
    return Operand(
        KINDS[qtype], q.bits, TABLES.get(qtype, 0), codes.contiguous(), scale.contiguous(),
        None if zero is None else zero.contiguous(), rows, size, group, groups, block_rows,
    )  # fmt: skip
