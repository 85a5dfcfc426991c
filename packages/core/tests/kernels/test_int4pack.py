# SPDX-License-Identifier: Apache-2.0
"""torch's private int4 layout: everything it claims goes there and back bit for bit, and multiplies right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quanto import reference
from quanto.kernels import Request, int4pack
from quanto.kernels.problems import arguments, compare, default_tolerance, random_weight

Case = tuple[int, int, int, str]


def _claimed() -> Iterator[tuple[int, int, int]]:
    """Rows, columns and group of shapes up to 128 x 512; the rest repeats them, torch works in tiles of 16 to 64."""
    for rows in (16, 32, 48, 64, 80, 96, 128):
        for size in range(32, 513, 32):
            for group in (32, 64, 128, 256):
                if int4pack.refuse(_request(rows, size, group)) is None:
                    yield rows, size, group


def _request(rows: int, size: int, group: int, zero: str = "none") -> Request:
    return Request("linear", "cpu", torch.bfloat16, "int4", (1, group), (rows, size), torch.bfloat16, zero)


@pytest.mark.parametrize("rows", [16, 32, 48, 64, 80, 96, 128])
def test_every_claimed_shape_comes_back(rows: int) -> None:
    shapes = {(r, size) for r, size, _ in _claimed() if r == rows}
    assert len(shapes) == 16
    for r, size in sorted(shapes):
        weight = random_weight(_request(r, size, 32, "int"), torch.Generator().manual_seed(size))
        packed = int4pack.LAYOUT.pack(weight, "int4", (1, 32), size)
        assert packed[0].numel() == weight[0].numel(), "the codes exist once, in as many bytes"
        for before, after in zip(weight, int4pack.LAYOUT.unpack(packed, "int4", (1, 32), size), strict=True):
            assert before is after is None or torch.equal(before, after)  # type: ignore[arg-type]


@given(
    st.sampled_from(sorted(_claimed())),
    st.sampled_from(["none", "int", "float"]),
    st.integers(0, 40),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_multiplies_as_the_reference(
    shape: tuple[int, int, int], zero: str, tokens: int, with_bias: bool, seed: int
) -> None:
    request = _request(*shape, zero)
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(request, generator)
    args, at = arguments(request, weight, tokens, generator)
    args[5] = args[5] if with_bias else None
    want = reference.linear(*args)
    assert at is not None
    args[at : at + 4] = int4pack.LAYOUT.pack(weight, "int4", (1, shape[2]), shape[1])
    assert compare(int4pack.linear(*args), want, default_tolerance(torch.bfloat16)) is None


@pytest.mark.parametrize("lead", [(), (0,), (2, 3), (2, 0, 3)])
def test_leading_dimensions(lead: tuple[int, ...]) -> None:
    weight = random_weight(_request(32, 64, 32), torch.Generator().manual_seed(0))
    packed = int4pack.LAYOUT.pack(weight, "int4", (1, 32), 64)
    x = torch.randn(*lead, 64, dtype=torch.bfloat16)
    y = int4pack.linear(x, *packed, None, "int4", (1, 32))
    want = reference.linear(x, *weight, None, "int4", (1, 32))
    assert y.shape == (*lead, 32)
    assert compare(y, want, default_tolerance(torch.bfloat16)) is None


@pytest.mark.parametrize("shape", [(16, 32), (48, 96), (64, 64), (128, 160)])
def test_every_nibble_has_one_place(shape: tuple[int, int]) -> None:
    low, high = int4pack._order(*shape)
    assert torch.equal(torch.cat([low, high]).sort().values, torch.arange(shape[0] * shape[1]))


def test_the_order_is_asked_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    int4pack._order.cache_clear()
    for _ in range(3):
        int4pack._order(16, 64)
    assert int4pack._order.cache_info().misses == 1
    assert int4pack._order.cache_info().maxsize == 2, "it is eight times as large as the weight it belongs to"


@pytest.mark.parametrize(
    ("rows", "size", "group", "sentence"),
    [
        (64, 128, 16, "groups of 32, 64, 128 or 256 that divide, not 16 of 128"),
        (64, 96, 64, "that divide, not 64 of 96"),
        (64, 512, 512, "not 512 of 512"),
        (8, 128, 32, "multiple of 16, not 8"),
        (40, 128, 32, "multiple of 16, not 40"),
        (16, 32, 32, None),
    ],
)
def test_what_it_refuses(rows: int, size: int, group: int, sentence: str | None) -> None:
    refusal = int4pack.refuse(_request(rows, size, group))
    assert refusal is None if sentence is None else sentence in str(refusal)


def test_meta_tensors_unpack_to_the_canonical_shapes() -> None:
    weight = random_weight(_request(48, 96, 32, "int"), torch.Generator().manual_seed(0))
    packed = int4pack.LAYOUT.pack(weight, "int4", (1, 32), 96)
    empty = tuple(None if t is None else t.to("meta") for t in packed)
    for before, after in zip(weight, int4pack.LAYOUT.unpack(empty, "int4", (1, 32), 96), strict=True):  # type: ignore[arg-type]
        assert before is after is None or (
            after.is_meta and after.shape == before.shape and after.dtype == before.dtype
        )
