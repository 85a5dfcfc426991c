# SPDX-License-Identifier: Apache-2.0
"""What the tests of `QTensor` share: samples of every format, and witnesses of what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

import quanto
from quanto import QTensor, kernels

Draw = Callable[[st.SearchStrategy[Any]], Any]
Step = Callable[[Tensor], Any]


@pytest.fixture
def dequantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The aten operations that dequantized a tensor, in order."""
    seen: list[str] = []
    monkeypatch.setattr(QTensor, "on_dequantize", staticmethod(lambda q, operation: seen.append(operation)))
    return seen


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operators for which a kernel ran, in order; without `dequantize`, which the expected values use too."""
    seen: list[str] = []

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            seen.append(kernels.specs[name].op)
            return function(*args)

        return call

    for name, function in list(kernels.calls.items()):
        if name in kernels.specs and kernels.specs[name].op != "dequantize":
            monkeypatch.setitem(kernels.calls, name, watch(name, function))
    with kernels.select():  # nothing is forced; the cache of calls is left out
        yield seen


@pytest.fixture(scope="session")
def samples() -> st.SearchStrategy[QTensor]:
    """Tensors of one to three dimensions, every qtype, blocks of any size, with and without zero points."""
    return _samples()


@pytest.fixture(scope="session")
def steps() -> dict[str, Callable[[Draw, Tensor], Step]]:
    """Rearrangements by name: each draws its arguments for a tensor and gives the function of one tensor."""
    return STEPS


@st.composite
def _samples(draw: st.DrawFn) -> QTensor:
    q = quanto.qtypes[draw(st.sampled_from(sorted(quanto.qtypes)))]
    shape = (*draw(st.lists(st.integers(0, 5), max_size=2)), draw(st.sampled_from([1, 2, 7, 16, 24, 48])))
    whole = draw(st.booleans())
    sizes = [st.sampled_from(sorted({1, max(n // 3, 1), max(n // 2, 1), max(n, 1)})) for n in shape]
    blocks = () if whole else tuple(draw(size) for size in sizes)
    symmetric = draw(st.booleans()) if q.is_integer else None
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    return quanto.quantize_tensor(x, q, block_size=blocks, symmetric=symmetric)


def _dim(draw: Draw, t: Tensor) -> int:
    assume(t.ndim > 0)
    return draw(st.integers(-t.ndim, t.ndim - 1))


def _slice(draw: Draw, t: Tensor) -> Step:
    dim = _dim(draw, t)
    n = t.shape[dim]
    multiple = draw(st.sampled_from([1, 1, 2, 8]))
    start, end = (draw(st.integers(-n - 1, n + 1)) // multiple * multiple for _ in range(2))
    index = slice(start, draw(st.sampled_from([None, end])), draw(st.sampled_from([1, 1, 1, 2, 3])))
    return lambda x: x[(slice(None),) * (dim % t.ndim) + (index,)]


def _select(draw: Draw, t: Tensor) -> Step:
    dim = _dim(draw, t)
    assume(t.shape[dim] > 0)
    index = draw(st.integers(-t.shape[dim], t.shape[dim] - 1))
    return lambda x: x.select(dim, index)


def _split(draw: Draw, t: Tensor) -> Step:
    dim, size = _dim(draw, t), draw(st.sampled_from([1, 2, 3, 8, 16]))
    return lambda x: x.split(size, dim)


def _split_sizes(draw: Draw, t: Tensor) -> Step:
    dim = _dim(draw, t)
    cut = draw(st.integers(0, t.shape[dim]))
    return lambda x: x.split([cut, t.shape[dim] - cut], dim)


def _chunk(draw: Draw, t: Tensor) -> Step:
    dim, count = _dim(draw, t), draw(st.integers(1, 4))
    return lambda x: x.chunk(count, dim)


def _unbind(draw: Draw, t: Tensor) -> Step:
    dim = _dim(draw, t)
    return lambda x: x.unbind(dim)


def _transpose(draw: Draw, t: Tensor) -> Step:
    a, b = _dim(draw, t), _dim(draw, t)
    return lambda x: x.transpose(a, b)


def _permute(draw: Draw, t: Tensor) -> Step:
    order = draw(st.permutations(range(t.ndim)))
    return lambda x: x.permute(order)


def _unsqueeze(draw: Draw, t: Tensor) -> Step:
    assume(t.ndim < 5)
    dim = draw(st.integers(-t.ndim - 1, t.ndim))
    return lambda x: x.unsqueeze(dim)


def _squeeze(draw: Draw, t: Tensor) -> Step:
    dim = draw(st.sampled_from([None, *range(-t.ndim, t.ndim)]))
    return lambda x: x.squeeze() if dim is None else x.squeeze(dim)


def _reshape(draw: Draw, t: Tensor) -> Step:
    assume(t.numel() > 0)
    rest, shape = t.numel(), []
    for _ in range(draw(st.integers(0, 2))):
        part = draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
        shape.append(part)
        rest //= part
    shape = draw(st.permutations([*shape, draw(st.sampled_from([rest, -1]))]))
    return lambda x: x.reshape(shape)


def _flatten(draw: Draw, t: Tensor) -> Step:
    a, b = sorted((_dim(draw, t) % t.ndim, _dim(draw, t) % t.ndim))
    return lambda x: x.flatten(a, b)


def _cat(draw: Draw, t: Tensor) -> Step:
    dim = _dim(draw, t)
    cut = draw(st.integers(0, t.shape[dim]))
    order = draw(st.permutations([0, 1]))

    def step(x: Tensor) -> Tensor:
        parts = x.split([cut, t.shape[dim] - cut], dim)
        return torch.cat([parts[i] for i in order], dim)

    return step


def _stack(draw: Draw, t: Tensor) -> Step:
    assume(t.ndim < 5)
    dim = draw(st.integers(-t.ndim - 1, t.ndim))
    return lambda x: torch.stack([x, x], dim)


STEPS: dict[str, Callable[[Draw, Tensor], Step]] = {
    f.__name__[1:]: f
    for group in (
        (_slice, _select, _split, _split_sizes, _chunk, _unbind, _transpose),
        (_permute, _unsqueeze, _squeeze, _reshape, _flatten, _cat, _stack),
    )
    for f in group
}
