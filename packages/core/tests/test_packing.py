# SPDX-License-Identifier: Apache-2.0
"""The bytes of packed codes, against a bit stream written with Python's big integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quanto.packing import pack, packed_size, unpack

BITS = range(1, 9)


def _stream(codes: list[int], bits: int) -> list[int]:
    """The bytes of one row: code i is shifted by i * bits in one long integer, stored little-endian."""
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    return list(number.to_bytes((len(codes) * bits + 7) // 8, "little"))


@st.composite
def _rows(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    bits = draw(st.integers(1, 8))
    shape = (*draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.integers(0, 41)))
    seed = draw(st.integers(0, 2**16))
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return codes.to(torch.uint8), bits


@given(_rows())
def test_unpacking_is_the_inverse_of_packing(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*codes.shape[:-1], packed_size(codes.shape[-1], bits))
    again = unpack(packed, bits, codes.shape[-1])
    assert again.dtype == torch.uint8
    assert torch.equal(again, codes)


@given(_rows())
def test_packed_bytes_are_a_little_endian_bit_stream(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    size = codes.shape[-1]
    expected = [_stream(row, bits) for row in codes.reshape(codes.shape[:-1].numel(), size).tolist()]
    assert pack(codes, bits).reshape(len(expected), packed_size(size, bits)).tolist() == expected


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 96, 577])
def test_sizes_that_do_not_fill_their_last_byte(bits: int, size: int) -> None:
    codes = torch.randint(0, 2**bits, (5, size), dtype=torch.int32).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.tolist() == [_stream(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack(packed, bits, size), codes)
    assert packed.is_contiguous()


def test_the_bytes_drawn_in_the_documentation() -> None:
    assert pack(torch.tensor([0x1, 0xF, 0x8], dtype=torch.uint8), 4).tolist() == [0xF1, 0x08]
    assert pack(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2).tolist() == [0b00_11_10_01, 0b10]
    eight = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
    assert pack(eight, 3).tolist() == [0b11_010_001, 0b0_101_100_0, 0b000_111_11]


@pytest.mark.parametrize("bits", BITS)
def test_a_row_slice_is_a_byte_slice(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (4, 33), dtype=torch.int32).to(torch.uint8)
    assert torch.equal(pack(codes, bits)[1:3], pack(codes[1:3], bits))
    at = 8  # 8 codes of any width fill whole bytes
    assert torch.equal(pack(codes, bits)[:, at * bits // 8 :], pack(codes[:, at:].contiguous(), bits))


@pytest.mark.parametrize("bits", BITS)
def test_padding_bits_are_zero_and_ignored(bits: int) -> None:
    size = 3
    packed = pack(torch.full((size,), 2**bits - 1, dtype=torch.uint8), bits)
    spare = packed_size(size, bits) * 8 - size * bits
    assert int(packed[-1]) < 2 ** (8 - spare)
    if spare:
        dirty = packed.clone()
        dirty[-1] |= 0xFF << (8 - spare) & 0xFF
        assert torch.equal(unpack(dirty, bits, size), unpack(packed, bits, size))


@pytest.mark.parametrize("bits", BITS)
def test_strided_codes_pack_like_contiguous_ones(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (17, 6), dtype=torch.int32).to(torch.uint8).T
    assert torch.equal(pack(codes, bits), pack(codes.contiguous(), bits))
    packed = pack(codes, bits)
    wide = torch.stack([packed, packed], dim=-1)[..., 0]
    assert torch.equal(unpack(wide, bits, 17), codes)


def test_whole_bytes_are_passed_through() -> None:
    codes = torch.tensor([-128, 127], dtype=torch.int8)
    assert pack(codes, 8) is codes
    assert unpack(codes, 8, 2) is codes
