# SPDX-License-Identifier: Apache-2.0
"""`Candidate`: one way to compute a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Built", "Candidate", "Missing"]


class Missing(Exception):
    """A peer that is not installed, or has no kernel for the problem; the message says why."""


@dataclass
class Built:
    """A weight in the form of a candidate, with copies.

    Attributes:
        nbytes: of one copy, scales included: what one token has to read.
        calls: given x, one function per copy, which returns the product `[m, n]`.
        values: the weight that it stands for, float64 `[n, k]`.
    """

    nbytes: int
    calls: Callable[[Tensor], list[Callable[[], Any]]]
    values: Callable[[], Tensor]


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
        source: the library.
        name: of the kernel, weights and activations.
        build: makes it from a weight `[n, k]`, bfloat16, with so many bytes of copies.
        tokens: range in which it is measured.
    """

    source: str
    name: str
    build: Callable[[Tensor, int], Built]
    tokens: tuple[int, int] = (1, 1 << 30)

    def __str__(self) -> str:
        return f"{self.source} {self.name}"


def clones(tensors: tuple[Tensor | None, ...], cold: int) -> list[tuple[Tensor | None, ...]]:
    """Copies of the tensors of a weight that fill `cold` bytes together, two at least."""
    nbytes = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    count = max(2, -(-cold // max(nbytes, 1)))
    rest = [tuple(None if t is None else t.clone() for t in tensors) for _ in range(count - 1)]
    return [tensors, *rest]


def size_of(tensors: tuple[Tensor | None, ...]) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
