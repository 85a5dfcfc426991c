# SPDX-License-Identifier: Apache-2.0
"""Block arithmetic: shapes of scales, splitting and joining, the rule for group sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quanto.blocks import choose_group_size, merge, scale_shape, split, spread


@pytest.mark.parametrize(
    ("shape", "block_size", "expected"),
    [
        ((8, 96), (), ()),
        ((8, 96), (1, 96), (8, 1)),
        ((8, 96), (1, 32), (8, 3)),
        ((8, 100), (1, 32), (8, 4)),
        ((9, 100), (4, 32), (3, 4)),
        ((2, 9, 100), (1, 4, 32), (2, 3, 4)),
        ((0, 96), (1, 32), (0, 3)),
        ((8, 0), (1, 1), (8, 0)),
        ((3,), (2,), (2,)),
    ],
)
def test_one_scale_per_block(shape: tuple[int, ...], block_size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert scale_shape(shape, block_size) == expected


def test_a_block_size_needs_an_entry_per_dimension() -> None:
    with pytest.raises(
        ValueError, match=r"block_size \(1, 32\) must have one entry per dimension of shape \(2, 3, 4\)"
    ):
        scale_shape((2, 3, 4), (1, 32))


@st.composite
def _blocked(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    return shape, tuple(draw(st.integers(1, max(n, 1))) for n in shape)


@given(_blocked())
def test_merging_undoes_splitting(case: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, block_size = case
    x = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    blocks = split(x, block_size)
    assert blocks.shape[1::2] == block_size
    if x.numel():
        assert blocks.shape[0::2] == scale_shape(shape, block_size)
    assert blocks.sum() == x.sum()  # the padding is zeros
    assert torch.equal(merge(blocks, shape), x)


@given(_blocked())
def test_a_spread_scale_meets_its_block(case: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, block_size = case
    scale = torch.rand(scale_shape(shape, block_size))
    blocks = split(torch.ones(shape), block_size)
    if not blocks.numel():
        return
    product = merge(blocks * spread(scale), shape)
    expected = scale
    for dim, (n, b) in enumerate(zip(shape, block_size, strict=True)):
        expected = expected.repeat_interleave(b, dim).narrow(dim, 0, n)
    assert torch.equal(product, expected)


def test_splitting_what_divides_is_a_view() -> None:
    x = torch.rand(8, 96)
    assert split(x, (4, 32)).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        (4096, 128, 128),  # divides
        (576, 128, 96),  # the largest multiple of 32 that divides
        (4304, 128, 128),  # none does: the last group is short, 80
        (160, 128, 32),  # a quarter of what was asked is the least
        (1056, 256, 96),
        (2080, 256, 160),
        (288, 128, 96),
        (1056, 512, 352),
        (544, 256, 256),  # 544 = 17 * 32, and 32 is less than a quarter of 256
        (100, 128, 100),  # shorter than a group: the whole row
        (128, 128, 128),
        (1, 128, 1),
        (100, 32, 32),
        (100, 7, 7),
        (0, 128, 0),
    ],
)
def test_the_rule_for_group_sizes(size: int, asked: int, expected: int) -> None:
    assert choose_group_size(size, asked) == expected


@given(st.integers(1, 20_000), st.integers(1, 1024))
def test_group_sizes_hold_to_the_rule(size: int, asked: int) -> None:
    chosen = choose_group_size(size, asked)
    equal = [g for g in range(32, asked, 32) if size % g == 0 and 4 * g >= asked]
    if size <= asked:
        assert chosen == size
    elif size % asked == 0 or not equal:
        assert chosen == asked
    else:
        assert chosen == max(equal)


@pytest.mark.parametrize("asked", [0, -1])
def test_a_group_needs_elements(asked: int) -> None:
    with pytest.raises(ValueError, match="group_size must be positive"):
        choose_group_size(96, asked)
