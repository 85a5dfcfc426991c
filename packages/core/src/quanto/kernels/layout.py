# SPDX-License-Identifier: Apache-2.0
"""`Layout`: how a kernel wants a weight arranged in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["WEIGHT_AT", "Layout", "Tensors"]

#: codes, scale, zero point, global scale
Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

#: where the four tensors stand among the arguments of the operators that take a weight.
WEIGHT_AT = {
    "dequantize": 0,
    "linear": 1,
    "linear_input_grad": 1,
    "grouped_linear": 1,
    "embedding": 1,
    "scaled_linear": 2,
}


@dataclass(frozen=True)
class Layout:
    """A private arrangement of a weight; never written to files.

    The payload exists once: a module holds either the canonical tensors or these. Going back must be bit-exact.

    Attributes:
        name: unique, `"<package>.<layout>"`.
        pack: `(tensors, qtype, block_size, size) -> tensors`, from canonical; `size` is the elements per row.
        unpack: `(tensors, qtype, block_size, size) -> tensors`, back to canonical, bit for bit; on any device, since
            offloading moves tensors by itself, and on meta.
        stacks: weights whose rows are a multiple of it may be stacked by stacking their tensors; 0: they may not.
        stacked: told `(tensors, qtype, block_size, size)` of weights that were stacked, as `pack` is of each; or None.
    """

    name: str
    pack: Callable[[Tensors, str, tuple[int, ...], int], Tensors]
    unpack: Callable[[Tensors, str, tuple[int, ...], int], Tensors]
    stacks: int = 0
    stacked: Callable[[Tensors, str, tuple[int, ...], int], None] | None = None
