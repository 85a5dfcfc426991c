# SPDX-License-Identifier: Apache-2.0
"""`Quantizer`: an algorithm that chooses scales, and the table of those known by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..qtypes import QType

__all__ = ["Parameters", "Quantizer", "Target", "get_quantizer", "quantizers", "register_quantizer"]


@dataclass(frozen=True)
class Target:
    """What a tensor is to become.

    Attributes:
        qtype: of the codes.
        block_size: which elements share a scale (see `quanto.blocks`).
        scale_dtype: of the scales.
        symmetric: whether zero points are absent (always so for floats).
        zero_dtype: of the zero points: `torch.int8`, or a floating dtype.
    """

    qtype: QType
    block_size: tuple[int, ...]
    scale_dtype: torch.dtype
    symmetric: bool = True
    zero_dtype: torch.dtype = torch.int8


class Parameters(NamedTuple):
    """Scale, zero point and global scale; see `quanto.weight.Weight` for their shapes."""

    scale: Tensor
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None


class Quantizer(ABC):
    """An algorithm. Subclasses set `name` and write `parameters`; one that also chooses codes overrides `codes`."""

    #: the name in `Scheme(algorithm=…)`
    name: str
    #: the zero points it places where the scheme does not say: `"int"` or `"float"`
    zero_point: str = "int"

    @abstractmethod
    def parameters(self, x: Tensor, target: Target) -> Parameters:
        """Chooses the scales of `x` (floating, any shape).

        Raises:
            ValueError: if the algorithm cannot serve the target; the message says which would.
        """

    def codes(self, x: Tensor, target: Target, p: Parameters) -> Tensor:
        """Packed codes of `x` under the parameters; nearest code by default."""
        rows = _rows_at_once(x, target.block_size)
        if rows >= x.shape[0]:
            return reference.quantize(x, *p, target.qtype.name, target.block_size)
        return torch.cat([_codes_from(i, rows, x, target, p) for i in range(0, x.shape[0], rows)])


#: elements rounded at a time; the temporaries of a large weight would be several times as large as the weight itself.
_PART = 1 << 21


def _rows_at_once(x: Tensor, block_size: tuple[int, ...]) -> int:
    """Indices of the first dimension that make a part: whole blocks, or all where x is not large or one is traced."""
    if x.ndim < 2 or torch.compiler.is_compiling() or x.numel() <= _PART:
        return x.shape[0]
    unit = block_size[0] if block_size else 1
    return max(_PART * x.shape[0] // (x.numel() * unit), 1) * unit


def _codes_from(first: int, rows: int, x: Tensor, target: Target, p: Parameters) -> Tensor:
    scale, zero, shared = p
    if target.block_size:
        blocks = slice(first // target.block_size[0], -(-(first + rows) // target.block_size[0]))
        scale, zero = scale[blocks], None if zero is None else zero[blocks]
    part = x[first : first + rows]
    size = (min(target.block_size[0], part.shape[0]), *target.block_size[1:]) if target.block_size else ()
    return reference.quantize(part, scale, zero, shared, target.qtype.name, size)


#: algorithms by name; plugins add theirs through the `register_quantizers` hook.
quantizers: dict[str, Quantizer] = {}


def register_quantizer(quantizer: Quantizer) -> None:
    """Adds an algorithm.

    Raises:
        ValueError: if the name is taken.
    """
    if quantizer.name in quantizers:
        raise ValueError(f"quantizer {quantizer.name!r} is registered already")
    quantizers[quantizer.name] = quantizer


def get_quantizer(name: str) -> Quantizer:
    """Returns the algorithm of that name.

    Raises:
        ValueError: if there is none, naming those that are known.
    """
    from ..plugins.manager import plugins

    plugins.load()
    try:
        return quantizers[name]
    except KeyError:
        raise ValueError(f"unknown algorithm {name!r}; known: {', '.join(sorted(quantizers))}") from None
