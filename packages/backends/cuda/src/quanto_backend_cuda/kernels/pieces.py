# SPDX-License-Identifier: Apache-2.0
"""Pieces: which part of which tile a block of threads multiplies, and how blocks that share a tile hand over sums."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

__all__ = ["after", "gathered", "piece", "pieces", "place"]

# Newer versions of Triton have another name.
_barrier = getattr(gl, "thread_barrier", None) or gl.barrier


@gluon.jit
def piece(j, whole, rest, sharers, C):
    """Piece j of this block: its tile, the first and the last stretch of columns."""
    p = gl.program_id(0)
    own = (whole - p + gl.num_programs(0) - 1) // gl.num_programs(0)
    tile = p + j * gl.num_programs(0)
    begin = p * 0
    end = C
    if j >= own:
        unit = p * (rest * C) // sharers
        until = (p + 1) * (rest * C) // sharers
        if j > own:
            unit = (unit // C + 1) * C
        begin = unit % C
        end = gl.minimum(C, begin + until - unit)
        tile = whole + unit // C
    return tile, begin, end


@gluon.jit
def pieces(whole, rest, sharers, C):
    """How many pieces this block has."""
    p = gl.program_id(0)
    own = (whole - p + gl.num_programs(0) - 1) // gl.num_programs(0)
    first = p * (rest * C) // sharers
    until = (p + 1) * (rest * C) // sharers
    more = (until - 1) // C - first // C + 1
    return own + gl.where((p < sharers) & (rest > 0), more, 0)


@gluon.jit
def place(tile, TM, TN, STRIPE: gl.constexpr):
    """Tiles in stripes of `STRIPE` tiles of tokens, so that neighbours share the L2."""
    stripe = tile // (STRIPE * TN)
    height = gl.minimum(TM - stripe * STRIPE, STRIPE)
    return stripe * STRIPE + tile % (STRIPE * TN) % height, tile % (STRIPE * TN) // height


@gluon.jit
def _by_thread(acc):
    """Sums [ROWS, BM] as [2 * ROWS, BM / 2]: a row is what one thread has of 16 rows."""
    ROWS: gl.constexpr = acc.shape[0]
    BM: gl.constexpr = acc.shape[1]
    apart = acc.reshape((ROWS // 16, 2, 8, BM // 8, 4, 2)).permute((0, 2, 4, 3, 1, 5))
    return apart.reshape((2 * ROWS, BM // 2))


@gluon.jit
def _by_place(flat, ROWS: gl.constexpr, BM: gl.constexpr):
    """The inverse of `_by_thread`."""
    apart = flat.reshape((ROWS // 16, 8, 4, BM // 8, 2, 2)).permute((0, 4, 1, 3, 2, 5))
    return apart.reshape((ROWS, BM))


@gluon.jit
def _spread(flat):
    """Offsets of `_by_thread`: four numbers of a thread, then those of the next, so that a warp writes whole lines."""
    LAYOUT: gl.constexpr = flat.type.layout
    row = gl.arange(0, flat.shape[0], gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, flat.shape[1], gl.SliceLayout(0, LAYOUT))
    return (column // 4 * (4 * flat.shape[0]) + column % 4)[None, :] + row[:, None] * 4


@gluon.jit
def gathered(acc, partial, locks, tile, begin, end, C, whole, rest, sharers, side: gl.constexpr):
    """The sums of a whole tile, from those of the piece from `begin` to `end`, and whether this block has them.

    Blocks that share a tile write their parts; the last to arrive adds all of them, in the order of the blocks.

    Args:
        acc: sums [ROWS, COLUMNS], one half of the tile.
        partial: [2 * sharers] tiles of such sums, locks: two zeros per tile that is shared; None if none is.
        side: which half.
    """
    last = True
    if partial is not None:  # noqa: SIM102 - what is None is known to the compiler, the rest is not
        if end - begin < C:
            HALF: gl.constexpr = acc.shape[0] * acc.shape[1]
            mine = tile - whole
            units = rest * C
            block = (mine * C * sharers + sharers - 1) // units
            until = ((mine + 1) * C * sharers - 1) // units
            flat = _by_thread(acc)
            corner = partial + side * HALF + _spread(flat)
            slot = 2 * gl.program_id(0) + mine - gl.program_id(0) * units // sharers // C
            gl.store(corner + slot.to(gl.int64) * (2 * HALF), flat)
            _barrier()  # every thread's part is written before one says so
            lock = locks + mine * 2 + side
            last = gl.atomic_add(lock, 1, sem="acq_rel", scope="gpu") == until - block
            if last:
                slot = 2 * block + mine - block * units // sharers // C
                flat = gl.load(corner + slot.to(gl.int64) * (2 * HALF), cache_modifier=".cg")
                for p in range(block + 1, until + 1):
                    slot = 2 * p + mine - p * units // sharers // C
                    flat += gl.load(corner + slot.to(gl.int64) * (2 * HALF), cache_modifier=".cg")
                whole_sums = _by_place(flat, acc.shape[0], acc.shape[1])
                acc = gl.convert_layout(whole_sums, acc.type.layout, assert_trivial=True)
                gl.store(lock, 0)
    return acc, last


@gluon.jit
def after(stage, phase, STAGES: gl.constexpr):
    """The stage of a ring after this one, and its phase."""
    stage += 1
    if stage == STAGES:
        stage = stage * 0
        phase = phase ^ 1
    return stage, phase
