# SPDX-License-Identifier: Apache-2.0
"""What the kernels need to know of a weight, worked out once per kind of weight."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quanto.qtypes import get_qtype

__all__ = ["KINDS", "Facts", "aligned", "facts", "raw_scale", "stretches"]

#: how the elements of a qtype are decoded.
KINDS = {
    "int8": "int8",
    "int4": "int4",
    "int3": "int3",
    "int2": "int2",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "mxfp8": "float8_e4m3fn",
    "nf4": "nf4",
    "fp4": "fp4",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
_HALVES = (torch.float16, torch.bfloat16)
_ZEROS = ("int4", "int3", "int2")
_SCALE8 = {torch.float8_e8m0fnu: "e8m0", torch.float8_e4m3fn: "e4m3"}


class Facts(NamedTuple):
    """Constants of the kernels: `GROUP` columns (0: a row) and `ROWS` rows (0: all) share a scale."""

    kind: str
    bits: int
    group: int
    rows: int

    @property
    def by_words(self) -> bool:
        """Whether canonical rows can be read as whole words, by the linear kernel (given whole stretches of 128)."""
        return self.kind != "int3" and (self.group % 32 == 0 or self.group == 0)

    @property
    def by_tiles(self) -> bool:
        """Whether the linear kernel reads tiles with such groups."""
        return self.group % 16 == 0


@functools.lru_cache(maxsize=1024)
def _facts(qtype: str, block: tuple[int, ...], size: int) -> Facts:
    rows = block[-2] if len(block) > 1 else 1 if block else 0
    group = 0 if not block or block[-1] >= size else block[-1]
    return Facts(KINDS[qtype], get_qtype(qtype).bits, group, rows)


def facts(qtype: str, block: Sequence[int], size: int) -> Facts:
    """The facts of a weight with `size` columns."""
    return _facts(qtype, tuple(block), size)


def stretches(f: Facts, dtype: torch.dtype, zero: Tensor | None, scale: Tensor) -> bool:
    """Whether a weight is one that kernels in Gluon read by stretches of 128 columns, for activations of such a dtype.

    Each stretch has one scale or two, of more than a byte, and a group's zero point is an integer.
    """
    groups = f.rows == 1 and (f.group in (0, 64) or f.group % 128 == 0)
    zeros = zero is None or (f.kind in _ZEROS and not zero.is_floating_point() and f.group > 0)
    return groups and zeros and scale.element_size() > 1 and dtype in _HALVES


def raw_scale(scale: Tensor) -> tuple[Tensor, str]:
    """One-byte scales as uint8, which Triton can load on any device, and the name of their type."""
    name = _SCALE8.get(scale.dtype, "")
    return (scale.view(torch.uint8) if name else scale), name


def aligned(codes: Tensor) -> Tensor:
    """The codes at an address that words can be read from; weights mapped from a file lie anywhere."""
    if torch.compiler.is_compiling() or (type(codes) is not Tensor and not isinstance(codes, torch.nn.Parameter)):
        return codes
    return codes if codes.data_ptr() % 16 == 0 else codes.clone()
