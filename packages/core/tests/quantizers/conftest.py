# SPDX-License-Identifier: Apache-2.0
"""The bound that both quantizers promise, and the tensors it is tried on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quanto import QTensor, QType, reference

HalfStep = Callable[[Tensor, QTensor], None]
Granularities = Callable[[tuple[int, int]], dict[str, tuple[int, ...]]]
Make = Callable[[tuple[int, ...], int, float, torch.dtype], Tensor]


@pytest.fixture(scope="session")
def granularities() -> Granularities:
    """Every way to share scales in a matrix of a shape, by name."""

    def make(shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        rows, columns = shape
        return {
            "tensor": (),
            "channel": (1, columns),
            "group": (1, max(columns // 2, 1)),
            "ragged": (1, max(columns * 2 // 3, 1)),
            "block": (max(rows * 2 // 3, 1), max(columns // 3, 1)),
            "column": (rows, 1),
        }

    return make


@pytest.fixture(scope="session")
def make() -> Make:
    """Values of one order of magnitude, rows that differ by up to 2**6, and one row of zeros where there are three."""

    def build(shape: tuple[int, ...], seed: int, magnitude: float, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = 0.05 + torch.rand(shape, generator=generator, dtype=torch.float64)
        x = x * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)
        x = x * 2.0 ** torch.randint(-3, 4, (*shape[:-1], 1), generator=generator) * magnitude
        if shape[0] > 2:
            x[1] = 0
        return x.to(dtype)

    return build


def _spread(scale: Tensor, block_size: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    for dim, (b, n) in enumerate(zip(block_size, shape, strict=False)):
        scale = scale.repeat_interleave(b, dim).narrow(dim, 0, n)
    return scale


def _points(q: QType) -> Tensor:
    codes = (
        torch.arange(-128, 128).to(torch.int8) if q.storage == torch.int8 else torch.arange(2**q.bits).to(torch.uint8)
    )
    values = reference.decode(codes, q).double()
    return values[values.isfinite()].unique()


@pytest.fixture(scope="session")
def assert_half_step() -> HalfStep:
    """Asserts that no element is further from its value than half the distance of its neighbours in the qtype.

    The tolerance, 1e-5 of that distance and 4e-7 of the element, is what float32 arithmetic may add.
    """

    def check(x: Tensor, q: QTensor) -> None:
        assert q.shape == x.shape
        scale = q.scale.double() if q.global_scale is None else q.scale.double() * q.global_scale.double()
        scale = _spread(scale, q.block_size, tuple(x.shape))
        zero = 0.0 if q.zero_point is None else _spread(q.zero_point.double(), q.block_size, tuple(x.shape))
        points = _points(q.qtype)
        above = torch.searchsorted(points, (x.double() / scale + zero).contiguous()).clamp(1, len(points) - 1)
        half = (points[above] - points[above - 1]) / 2 * scale
        error = (x.double() - q.dequantize(torch.float64)).abs()
        excess = error - half * (1 + 1e-5) - 4e-7 * x.double().abs()
        assert not error.isnan().any()
        assert excess.max() <= 0, f"{q}: off by {float((error / half).max())} half steps"

    return check
