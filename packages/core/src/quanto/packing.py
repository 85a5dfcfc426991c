# SPDX-License-Identifier: Apache-2.0
"""The canonical packing: a little-endian bit stream along the last dimension, low bits first.

Code `i` of a row occupies bits `i * bits … (i + 1) * bits - 1` of the row, and bit `j` of the row is bit `j % 8` of
byte `j // 8`. A row is padded with zero bits to a whole byte, so a row slice is a byte slice.

    int4   byte 0 = c1 c1 c1 c1 c0 c0 c0 c0
    int2   byte 0 = c3 c3 c2 c2 c1 c1 c0 c0
    int3   byte 0 = c2 c2 c1 c1 c1 c0 c0 c0
           byte 1 = c5 c4 c4 c4 c3 c3 c3 c2
           byte 2 = c7 c7 c7 c6 c6 c6 c5 c5      (8 codes in 3 bytes)

For int4 these are the bytes that compressed-tensors writes into its little-endian int32 words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["pack", "packed_size", "unpack"]


def packed_size(size: int, bits: int) -> int:
    """Bytes that hold `size` codes of `bits` bits each."""
    return (size * bits + 7) // 8


def _period(bits: int) -> tuple[int, int]:
    """Codes and bytes after which the pattern of a bit width repeats."""
    common = math.lcm(bits, 8)
    return common // bits, common // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes of `bits` bits along the last dimension.

    Args:
        codes: uint8 (int8 for 8 bits) of shape `[..., size]`, values below `2**bits`.
        bits: 1 to 8.

    Returns:
        uint8 of shape `[..., ceil(size * bits / 8)]`; the input itself for 8 bits.
    """
    if bits == 8:
        return codes
    codes_per, bytes_per = _period(bits)
    size = codes.shape[-1]
    pad = -size % codes_per
    if pad:
        codes = torch.nn.functional.pad(codes, (0, pad))
    groups = codes.unflatten(-1, (-1, codes_per))
    out: list[Tensor | None] = [None] * bytes_per
    for i in range(codes_per):
        byte, offset = divmod(i * bits, 8)
        code = groups[..., i]
        low = code << offset if offset else code  # uint8 arithmetic drops what belongs to the next byte
        previous = out[byte]
        out[byte] = low if previous is None else previous | low
        if offset + bits > 8:
            out[byte + 1] = code >> (8 - offset)
    packed = torch.stack([b for b in out if b is not None], dim=-1).flatten(-2)
    return packed[..., : packed_size(size, bits)].contiguous() if pad else packed


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """The inverse of `pack`.

    Args:
        packed: uint8 of shape `[..., ceil(size * bits / 8)]`.
        bits: 1 to 8.
        size: codes per row.

    Returns:
        uint8 of shape `[..., size]`; the input itself for 8 bits.
    """
    if bits == 8:
        return packed
    codes_per, bytes_per = _period(bits)
    pad = -packed.shape[-1] % bytes_per
    if pad:
        packed = torch.nn.functional.pad(packed, (0, pad))
    groups = packed.unflatten(-1, (-1, bytes_per))
    mask = (1 << bits) - 1
    out = []
    for i in range(codes_per):
        byte, offset = divmod(i * bits, 8)
        code = groups[..., byte] >> offset if offset else groups[..., byte]
        if offset + bits > 8:
            code = code | (groups[..., byte + 1] << (8 - offset))
        out.append(code & mask if offset + bits != 8 else code)
    codes = torch.stack(out, dim=-1).flatten(-2)
    return codes[..., :size] if codes.shape[-1] != size else codes
