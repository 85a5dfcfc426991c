# SPDX-License-Identifier: Apache-2.0
"""`tiled`: the layout of weights that the linear kernels read fastest.

    codes   uint8 or int8 [N, bytes of 128 C codes]; in memory tiles of 16 rows and 128 columns, `[N/16][C][16][bytes]`
    scale   [N, G]; in memory `[N/16][G][16]`, so that a tile's scales lie together
    zero    as scale

Within a row of 128 codes the bits are ordered as `quanto_backend_cuda.kernels.decode` draws them: first the words of
lane 0, then of lanes 1, 2, 3. int3 has a plane of two bits, `[16][4][2]` words, and after it one of third bits,
`[16][4][2]` half words. Columns are padded with code 0 to C = ceil(K / 128); the shape says how many bytes that are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quanto import packing
from quanto.kernels import Layout, Request
from quanto.kernels.layout import Tensors
from quanto.qtypes import get_qtype

from .beginning import begin, prepare

__all__ = ["TILED", "refuse", "tile", "untile"]

_ROWS, _COLUMNS = 16, 128
_MAX_WASTE = 1.25  # of padding
_PART = 1 << 22  # codes unpacked at a time: the largest temporary is 8 bytes for each

# [C, 128 columns] seen as word, pair from its highest bit, lane, half; the order of the bits in memory, high first.
# Columns of a row: t (words), p (pairs), q (lanes), e (halves).
_PAIRS = {8: 2, 4: 4, 3: 8, 2: 8}


def _split_halves(qtype: str) -> bool:
    """Whether the second code of a pair is 16 bits above the first, or right above it."""
    q = get_qtype(qtype)
    return q.is_integer and q.bits < 8


def _to_memory(codes: Tensor, qtype: str, bits: int) -> Tensor:
    """Unpacked codes uint8 [rows, 128 C] to [rows, C, lanes, words, codes of a word from its lowest bit]."""
    pairs = _PAIRS[bits]
    words = 16 // pairs
    view = codes.view(codes.shape[0], -1, words, pairs, 4, 2)  # row, c, t, p, q, e
    order = (0, 1, 4, 2, 5, 3) if _split_halves(qtype) else (0, 1, 4, 2, 3, 5)
    return view.permute(order).reshape(codes.shape[0], -1, 4, words, 2 * pairs)


def _from_memory(codes: Tensor, qtype: str, bits: int) -> Tensor:
    """The inverse of `_to_memory`."""
    pairs = _PAIRS[bits]
    words = 16 // pairs
    rows, count = codes.shape[:2]
    if _split_halves(qtype):
        view = codes.reshape(rows, count, 4, words, 2, pairs).permute(0, 1, 3, 5, 2, 4)
    else:
        view = codes.reshape(rows, count, 4, words, pairs, 2).permute(0, 1, 3, 4, 2, 5)
    return view.reshape(rows, -1)


def tile(t: Tensor, width: int) -> Tensor:
    """`[N, G * width]` to `[N/16][G][16][width]` in memory, under the same shape."""
    return t.reshape(t.shape[0] // _ROWS, _ROWS, -1, width).transpose(1, 2).reshape(t.shape)


def untile(t: Tensor, width: int) -> Tensor:
    """The inverse of `tile`."""
    return t.reshape(t.shape[0] // _ROWS, -1, _ROWS, width).transpose(1, 2).reshape(t.shape)


def _chunks(size: int) -> int:
    return -(-size // _COLUMNS)


def _pack_rows(codes: Tensor, qtype: str, size: int) -> Tensor:
    """Canonical rows, a multiple of 16, to tiles of bytes [rows, bytes]."""
    bits = get_qtype(qtype).bits
    plain = packing.unpack(codes.view(torch.uint8), bits, size)
    padded = torch.nn.functional.pad(plain, (0, _chunks(size) * _COLUMNS - size))
    memory = _to_memory(padded, qtype, bits)
    rows, count = memory.shape[:2]
    if bits != 3:
        return tile(packing.pack(memory, bits).reshape(rows, -1), 16 * bits)
    low = packing.pack(memory & 3, 2).reshape(rows // _ROWS, _ROWS, count, 32)
    # the third bits of a word: pair p, half e is bit 2p + e
    third = (memory >> 2).view(rows, count, 4, 2, 2, 8).transpose(-1, -2).reshape(rows, count, 4, 2, 16)
    high = packing.pack(third, 1).reshape(rows // _ROWS, _ROWS, count, 16)
    both = [plane.transpose(1, 2).reshape(rows // _ROWS, count, -1) for plane in (low, high)]
    return torch.cat(both, dim=-1).reshape(rows, -1)


def _unpack_rows(tiles: Tensor, qtype: str, size: int) -> Tensor:
    """The inverse of `_pack_rows`."""
    bits = get_qtype(qtype).bits
    rows, count = tiles.shape[0], _chunks(size)
    if bits != 3:
        pairs = _PAIRS[bits]
        flat = untile(tiles, 16 * bits).view(rows, count, 4, 16 // pairs, -1)
        memory = packing.unpack(flat, bits, 2 * pairs)
    else:
        both = tiles.view(rows // _ROWS, count, _ROWS * 48)
        low, high = (
            plane.reshape(rows // _ROWS, count, _ROWS, -1).transpose(1, 2).reshape(rows, count, 4, 2, -1)
            for plane in both.split([_ROWS * 32, _ROWS * 16], dim=-1)
        )
        third = packing.unpack(high, 1, 16).view(rows, count, 4, 2, 8, 2).transpose(-1, -2)
        memory = packing.unpack(low, 2, 16) | third.reshape(rows, count, 4, 2, 16) << 2
    plain = _from_memory(memory, qtype, bits)[:, :size]
    return packing.pack(plain.contiguous(), bits)


def _by_rows(tensor: Tensor, width: int, codes: int, function: object, *args: object) -> Tensor:
    """Applies a function to stretches of rows, so that temporaries stay small."""
    step = max(_PART // max(codes, 1) // _ROWS, 1) * _ROWS
    out = torch.empty(tensor.shape[0], width, dtype=torch.uint8, device=tensor.device)
    for first in range(0, tensor.shape[0], step):
        out[first : first + step] = function(tensor[first : first + step], *args)  # type: ignore[operator]
    return out


def _pack(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    codes, scale, zero, shared = tensors
    begin(codes.device)
    width = _chunks(size) * 16 * get_qtype(qtype).bits
    tiles = _by_rows(codes.contiguous(), width, size, _pack_rows, qtype, size).view(codes.dtype)
    if _tiles_scale(block_size):
        scale = tile(scale.contiguous(), 1)
        zero = None if zero is None else tile(zero.contiguous(), 1)
    prepare((tiles, scale, zero, shared), qtype, block_size, size)
    return tiles, scale, zero, shared


def _unpack(tensors: Tensors, qtype: str, block_size: tuple[int, ...], size: int) -> Tensors:
    tiles, scale, zero, shared = tensors
    width = packing.packed_size(size, get_qtype(qtype).bits)
    codes = _by_rows(tiles.view(torch.uint8), width, size, _unpack_rows, qtype, size).view(tiles.dtype)
    if _tiles_scale(block_size):
        scale = untile(scale, 1)
        zero = None if zero is None else untile(zero, 1)
    return codes, scale, zero, shared


def _tiles_scale(block_size: Sequence[int]) -> bool:
    """Scales of the whole tensor and of several rows stay as they are."""
    return len(block_size) == 2 and block_size[0] == 1


def refuse(request: Request) -> str | None:
    """Why a weight can't be tiled, or None."""
    if len(request.shape) != 2:
        return f"the tiled layout takes weights of two dimensions, not {len(request.shape)}"
    rows, size = request.shape
    if rows % _ROWS or not rows:
        return f"the tiled layout needs out_features that are a multiple of {_ROWS} (here {rows})"
    if size * get_qtype(request.qtype).bits % 8:
        return f"the tiled layout needs rows of whole bytes ({size} codes of {request.qtype} are not)"
    if size == 0 or _chunks(size) * _COLUMNS > _MAX_WASTE * size:
        return f"the tiled layout would pad {size} in_features to {_chunks(size) * _COLUMNS}"
    return None


#: see the module.
TILED = Layout("quanto-backend-cuda.tiled", _pack, _unpack, stacks=_ROWS, stacked=prepare)
