# SPDX-License-Identifier: Apache-2.0
"""`Candidate`: a way to compute a linear layer, of this project or of a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .problem import Problem

__all__ = ["Built", "Candidate", "Missing", "TorchBuilt", "clones"]


class Missing(Exception):
    """A peer that is not installed, or not for this machine; the message says what."""


class Built(Protocol):
    """A candidate with its copies of the weight.

    Attributes:
        nbytes: of one copy, scales included: what a call with one token has to read.
        weight: its values, float64 `[n, k]`; what its results are compared with.
    """

    nbytes: int

    @property
    def weight(self) -> Tensor: ...

    def calls(self, x: Tensor, threads: int) -> list[Callable[[], Any]]:
        """One function for each copy of the weight, which multiplies x by it."""
        ...

    def output(self, result: Any) -> Tensor:
        """The result of such a function as a tensor `[tokens, n]`."""
        ...


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
        source: the library.
        name: what it calls the kernel, within the library.
        weights: their format, "int8", "int4 g128", …; the same word for formats that compete.
        compute: "float" for unquantized weights; "exact" where activations stay as they are; "integer" where they are
            rounded to 8 bits on the way.
        activations: the dtype that goes in.
        build: makes it with so many copies; given the problem, the megabytes to fill and the largest batch of tokens.
        everywhere: measured at each shape and number of tokens; the others at one shape and fewer tokens.
    """

    source: str
    name: str
    weights: str
    compute: str
    activations: torch.dtype
    build: Callable[[Problem, int], Built]
    everywhere: bool = False

    @property
    def group(self) -> str:
        """Those that are measured in turns: of one size of weights."""
        return "8" if "8" in self.weights.split()[0] else "4" if "4" in self.weights.split()[0] else "other"


@dataclass
class TorchBuilt:
    """A candidate whose function takes torch tensors: `function(x, *copy)`."""

    function: Callable[..., Tensor]
    copies: list[tuple[Any, ...]]
    nbytes: int
    values: Callable[[], Tensor]
    remark: str = ""

    @property
    def weight(self) -> Tensor:
        return self.values().double()

    def calls(self, x: Tensor, threads: int) -> list[Callable[[], Any]]:
        return [lambda copy=copy: self.function(x, *copy) for copy in self.copies]

    def output(self, result: Any) -> Tensor:
        return result


def clones(tensors: tuple[Any, ...], megabytes: int) -> tuple[list[tuple[Any, ...]], int]:
    """Copies of tensors that together fill some megabytes, three at least, and the bytes of one."""
    nbytes = sum(t.nbytes for t in tensors if isinstance(t, Tensor))
    return [tuple(t.clone() if isinstance(t, Tensor) else t for t in tensors) for _ in count(nbytes, megabytes)], nbytes


def count(nbytes: int, megabytes: int) -> Iterator[int]:
    """As many turns as copies of `nbytes` fill some megabytes, three at least."""
    return iter(range(max(3, -(-(megabytes << 20) // nbytes))))
