# SPDX-License-Identifier: Apache-2.0
"""`Slot`: one quantized parameter of a module, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..scheme import Scheme
from ..tensor import QTensor
from ..weight import CANONICAL

__all__ = ["ARRANGEMENTS", "PARTS", "Slot"]

#: parameter suffixes of a frozen slot, in the operators' order (names of compressed-tensors).
PARTS = ("packed", "scale", "zero_point", "global_scale")

# How a parameter becomes rows whose last dimension is contracted, and back.
_TO_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda t: t,
    "flatten": lambda t: t.flatten(1),
    "transposed_flatten": lambda t: t.transpose(0, 1).flatten(1),
    "transposed": lambda t: t.transpose(-1, -2),
}
ARRANGEMENTS = tuple(_TO_ROWS)


@dataclass
class Slot:
    """What a module remembers of a parameter that is, or will be, quantized.

    Attributes:
        scheme: how.
        shape: of the float parameter.
        dtype: of the float parameter; the dtype in which it is presented.
        arrangement: `"rows"` for `[…, out, in]`, `"flatten"` for convolutions `[out, …]`, `"transposed_flatten"` for
            transposed convolutions `[in, out, …]`, `"transposed"` for `[…, in, out]`.
        qtype, block_size, size, key, layout: of the frozen weight (see `quanto.weight.Weight`).
        activations, rank: of the scheme. A compiled forward pass that read them there would compare schemes at each
            call, layer by layer.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    dtype: torch.dtype
    arrangement: str = "rows"
    qtype: str = ""
    block_size: tuple[int, ...] = ()
    size: int = 0
    key: str = ""
    layout: str = field(default=CANONICAL)
    activations: str | None = field(init=False, repr=False, compare=False)
    rank: int | None = field(init=False, repr=False, compare=False)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if isinstance(value, Scheme):
            self.activations, self.rank = value.activations, value.rank

    def rows(self, parameter: Tensor) -> Tensor:
        """The parameter as rows whose last dimension is contracted."""
        return _TO_ROWS[self.arrangement](parameter)

    def rows_shape(self) -> tuple[int, ...]:
        """Shape of `rows`."""
        if self.arrangement == "rows":
            return self.shape
        return tuple(self.rows(torch.empty(self.shape, device="meta")).shape)

    def present(self, rows: QTensor) -> QTensor:
        """The inverse of `rows` for a quantized tensor."""
        if self.arrangement == "flatten":
            return rows.view(self.shape)  # type: ignore[return-value]
        if self.arrangement == "transposed_flatten":
            swapped = (self.shape[1], self.shape[0], *self.shape[2:])
            return rows.view(swapped).transpose(0, 1)  # type: ignore[return-value]
        if self.arrangement == "transposed":
            return rows.transpose(-1, -2)  # type: ignore[return-value]
        return rows

    def to_float(self, rows: Tensor) -> Tensor:
        """The inverse of `rows` for a floating tensor."""
        if self.arrangement == "flatten":
            return rows.view(self.shape)
        if self.arrangement == "transposed_flatten":
            return rows.view(self.shape[1], self.shape[0], *self.shape[2:]).transpose(0, 1)
        return rows.transpose(-1, -2) if self.arrangement == "transposed" else rows
