# SPDX-License-Identifier: Apache-2.0
"""Which expert of a mixture a tile of tokens belongs to."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["find_expert"]


@triton.jit
def find_expert(offsets, E, tile, BM: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert whose rows tile number `tile` holds, the first of these rows and where the expert's end.

    An expert has `ceil(rows / BM)` tiles; E is returned for tiles beyond the last.
    """
    e = tl.arange(0, EXPERTS)
    end = tl.load(offsets + e, mask=e < E, other=0)
    begin = tl.load(offsets + e - 1, mask=(e > 0) & (e < E), other=0)
    tiles = tl.where(end > begin, (end - begin + BM - 1) // BM, 0)
    until = tl.cumsum(tiles, 0)
    expert = tl.sum(((until <= tile) & (e < E)).to(tl.int32), 0)
    mine = e == expert
    first = tl.sum(tl.where(mine, begin + (tile - until + tiles) * BM, 0), 0)
    return expert, first, tl.sum(tl.where(mine, end, 0), 0)
