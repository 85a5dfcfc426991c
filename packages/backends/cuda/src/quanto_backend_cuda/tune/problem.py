# SPDX-License-Identifier: Apache-2.0
"""`Problem`: what tiles are measured for, and its operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from quanto import packing
from quanto.qtypes import get_qtype

from ..ops import linear, product, scaled, specialized, stream
from ..ops.weights import facts
from ..tables import Tile
from .timing import copies_for

__all__ = ["Operands", "Problem"]

# Bytes that no float8 reads as NaN or infinite.
_FINITE = 0xF7


@dataclass(frozen=True)
class Problem:
    """One product.

    Attributes:
        kernel: `"linear"`, `"stream"`, `"specialized"`, `"scaled"` or `"product"`.
        qtype: of the weight.
        group: columns that share a scale; 0: a row.
        m, n, k: tokens, rows and columns.
        dtype: of the activations, and of the result.
    """

    kernel: str
    qtype: str
    group: int
    m: int
    n: int
    k: int
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        return f"{self.kernel} {self.qtype} {self.n}x{self.k}, {self.m} token{'s' * (self.m > 1)}"

    @property
    def x_qtype(self) -> str:
        """Of quantized activations."""
        return self.qtype if self.qtype.startswith("float8") else "int8"

    @property
    def quantized(self) -> bool:
        """Whether activations are."""
        return self.kernel in ("scaled", product.KERNEL)

    @property
    def nbytes(self) -> int:
        """Of the weight and its scales."""
        groups = self.k // self.group if self.group else 1
        return self.n * (packing.packed_size(self.k, get_qtype(self.qtype).bits) + 2 * groups)

    def operands(self, device: torch.device, copies: int | None = None) -> Operands:
        """Random operands, with as many copies of the weight as fill the caches."""
        generator = torch.Generator(device).manual_seed(0)
        return Operands(self, device, copies_for(self.nbytes) if copies is None else copies, generator)

    def shapes(self, device: torch.device) -> Operands:
        """Operands that nobody has written to: enough to compile for, and no work for the GPU."""
        return Operands(self, device, 1, None)


class Operands:
    """Random operands of a problem.

    Attributes:
        out: where the result goes.
    """

    def __init__(self, problem: Problem, device: torch.device, copies: int, generator: Generator | None) -> None:
        p = self.problem = problem
        groups = p.k // p.group if p.group else 1
        self._weights = []
        for _ in range(copies):
            codes = _bytes(p.n, _width(p), device, generator)
            if get_qtype(p.qtype).scale_dtype == torch.float8_e8m0fnu:
                scale = _bytes(p.n, groups, device, generator).bitwise_and_(7).add_(120).view(torch.float8_e8m0fnu)
            else:
                scale = _scales((p.n, groups), get_qtype(p.qtype).amax * p.k**0.5, p.dtype, device, generator)
            self._weights.append((codes, scale))
        self.out = torch.empty(p.m, p.n, dtype=p.dtype, device=device)
        if not p.quantized:
            self._x = torch.empty(p.m, p.k, dtype=p.dtype, device=device)
            if generator is not None:
                self._x.normal_(generator=generator)
        else:
            self._x = _bytes(p.m, p.k, device, generator).view(get_qtype(p.x_qtype).storage)
            self._xs = _scales((p.m,), get_qtype(p.x_qtype).amax, torch.float32, device, generator)

    def calls(self, tile: Tile) -> list[Callable[[], None]]:
        """One function per copy of the weight, that multiplies by it."""
        return [partial(self.call, tile, weight) for weight in self._weights]

    def call(self, tile: Tile, weight: tuple[Tensor, Tensor] | None = None) -> None:
        """Multiplies, by the first weight if not told by which."""
        p = self.problem
        codes, scale = self._weights[0] if weight is None else weight
        block = [1, p.group or p.k]
        if p.kernel == "linear":
            f = facts(p.qtype, block, p.k)
            linear.start(self._x, (codes, scale, None, None), None, None, self.out, f, tile, True, False)
            return
        if p.kernel in (specialized.KERNEL, stream.KERNEL):
            f = facts(p.qtype, block, p.k)
            start = specialized.start if p.kernel == specialized.KERNEL else stream.start
            start(self._x, (codes, scale, None, None), None, f, self.out, tile)
            return
        storage = codes.view(get_qtype(p.qtype).storage)
        if p.kernel == product.KERNEL:
            product.start(product.typed(self._x, p.qtype), self._xs, product.typed(storage, p.qtype), scale, None,
                          self.out, tile)  # fmt: skip
            return
        scaled.start(
            self._x, self._xs, (storage, scale, None), None, self.out, None, p.x_qtype, p.qtype, block, True, tile,
            False,
        )  # fmt: skip


def _width(p: Problem) -> int:
    """Bytes of a row: weight-only kernels read tiles, whole stretches of 128 columns."""
    size = p.k if p.quantized else -(-p.k // 128) * 128
    return packing.packed_size(size, get_qtype(p.qtype).bits)


def _bytes(rows: int, width: int, device: torch.device, generator: Generator | None) -> Tensor:
    raw = torch.empty(rows, width, dtype=torch.uint8, device=device)
    return raw if generator is None else raw.random_(0, 256, generator=generator).bitwise_and_(_FINITE)


def _scales(
    shape: tuple[int, ...], largest: float, dtype: torch.dtype, device: torch.device, generator: Generator | None
) -> Tensor:
    """Such that results are neither lost nor infinite in half precision."""
    raw = torch.empty(shape, dtype=dtype, device=device)
    return raw if generator is None else raw.uniform_(0.5, 1.5, generator=generator).div_(largest)
