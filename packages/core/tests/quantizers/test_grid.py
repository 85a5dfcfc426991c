# SPDX-License-Identifier: Apache-2.0
"""Elements of qtypes and blocks as rows, against their plain definitions."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto import reference
from quanto.blocks import scale_shape
from quanto.quantizers.grid import as_rows, limits, nearest, round_scale, round_zero, valid_elements


@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
def test_nearest_is_what_encoding_and_decoding_gives(qtype: str) -> None:
    q = quanto.qtypes[qtype]
    low, high = limits(q)
    x = torch.empty(1000).uniform_(2 * low, 2 * high, generator=torch.Generator().manual_seed(0))
    expected = reference.decode(reference.encode(x, q), q)
    assert torch.equal(nearest(x.clone(), q), expected)
    assert expected.min() == low
    assert expected.max() == high


@pytest.mark.parametrize("shape", [(3, 10), (10,), (2, 3, 8)])
def test_rows_are_blocks_in_the_order_of_the_scale(shape: tuple[int, ...]) -> None:
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    for last in (1, 4, shape[-1]):
        blocks = (*(1,) * (len(shape) - 1), last)
        sizes = scale_shape(shape, blocks)
        rows = as_rows(x, blocks)
        valid = valid_elements(shape, blocks, x.device)
        assert rows.shape == (torch.Size(sizes).numel(), last)
        assert (valid is None) == (shape[-1] % last == 0)
        flat = x.reshape(-1, shape[-1])
        for index, row in enumerate(rows):
            line, block = divmod(index, sizes[-1])
            piece = flat[line, block * last : (block + 1) * last]
            assert torch.equal(row[: len(piece)], piece)
            assert valid is None or valid[index].tolist() == [1.0] * len(piece) + [0.0] * (last - len(piece))


def test_two_dimensional_blocks_are_rows() -> None:
    x = torch.arange(24.0).reshape(4, 6)
    assert as_rows(x, (2, 3))[1].tolist() == [3.0, 4.0, 5.0, 9.0, 10.0, 11.0]
    assert as_rows(x, ()).shape == (1, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn])
def test_scales_are_rounded_to_the_nearest_positive_value(dtype: torch.dtype) -> None:
    x = torch.logspace(-2, 2, 101)
    found = round_scale(x, dtype)
    assert torch.equal(found.to(dtype).float(), found)
    up = reference.round_up_to(x, dtype).float()
    assert ((found - x).abs() <= (up - x).abs() + 1e-9).all()
    assert round_scale(torch.zeros(1), dtype).item() > 0


def test_zero_points_fit_their_dtype() -> None:
    zero = torch.tensor([-1e9, -3.4, 2.6, 1e9])
    assert round_zero(zero, quanto.qint4, torch.int8).tolist() == [-8.0, -3.0, 3.0, 7.0]
    assert round_zero(zero, quanto.qint4, torch.float16)[[0, 3]].tolist() == [-65504.0, 65504.0]
