# SPDX-License-Identifier: Apache-2.0
"""The tiles worth measuring for a problem.

They are what sweeps on an H100 left: every kind of tile that was within 15 % of the best for some shape or qtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from ..ops import product as products
from ..ops import specialized, stream
from ..ops.linear import FUSED_TOKENS
from ..tables import Tile
from .problem import Problem

__all__ = ["candidates"]

# Bytes of shared memory that the ring of a block may take.
_SHARED = 220 << 10
# Blocks of threads, in multiples of an H100's 132 multiprocessors; 0: the input dimension is never split.
_ONCE, _TWICE, _FOUR_TIMES, _EIGHT_TIMES = 132, 264, 528, 1056


def candidates(problem: Problem) -> list[Tile]:
    """Tiles for the tokens of a problem, rounded up to a power of two; none where no kernel of ours is used."""
    m = 1 << (problem.m - 1).bit_length()
    if problem.kernel == specialized.KERNEL:
        return [] if m < specialized.TOKENS else list(_specialized())
    if problem.kernel == stream.KERNEL:
        return [] if m > stream.TOKENS else list(_stream(m, problem.qtype))
    if problem.kernel == products.KERNEL:
        return [] if m < products.TOKENS else list(_product())
    if problem.kernel == "linear":
        return [] if m > FUSED_TOKENS else list(dict.fromkeys(_linear(m, problem.group)))
    found = [t for t in _few(m) if problem.qtype != "int4" or t.bk == 128] if m <= 64 else []
    if problem.qtype != "int4" and m >= 64:
        found += _many(m)
    return list(dict.fromkeys(found or _middle(m)))


def _linear(m: int, group: int) -> Iterator[Tile]:
    if m <= 8:
        yield from _diagonal(m)
        return
    if m <= 64:
        for bn, warps in ((64, 4), (128, 4), (128, 8), (256, 8)):
            for stages, blocks in ((3, 0), (4, _TWICE), (3, 384), (4, 448), (4, _FOUR_TIMES), (3, _EIGHT_TIMES)):
                yield Tile(bn, m, warps=warps, stages=stages, blocks=blocks)
        for ahead in (8, 32):
            yield Tile(64, m, warps=4, stages=4, blocks=_TWICE, ahead=ahead)
            yield Tile(128, m, warps=4, stages=3, blocks=384, ahead=ahead)
            yield Tile(128, m, warps=4, stages=4, blocks=_FOUR_TIMES, ahead=ahead)
        return
    for bm, on_weight in product((128, 256) if m > 128 else (64, 128), (True, False) if group else (False,)):
        for bn, stages, blocks in ((128, 3, _ONCE), (128, 3, _TWICE), (128, 4, _ONCE), (64, 4, _TWICE)):
            yield Tile(bn, bm, warps=8 if bn * bm > 8192 else 4, stages=stages, blocks=blocks, on_weight=on_weight)


def _specialized() -> Iterator[Tile]:
    for (bm, stages), blocks in product(((256, 5), (128, 8)), (0, _ONCE)):
        yield Tile(128, bm, stages=stages, blocks=blocks)
    yield Tile(128, 128, stages=8, blocks=_ONCE, cluster=2)


def _product() -> Iterator[Tile]:
    for (bn, bm, stages), blocks in product(((64, 128, 7), (128, 128, 6), (256, 128, 4), (128, 256, 4)), (0, _ONCE)):
        yield Tile(bn, bm, stages=stages, blocks=blocks)


def _stream(m: int, qtype: str) -> Iterator[Tile]:
    """Eight-bit weights have room for fewer stages."""
    wide = qtype in ("int8", "float8_e4m3fn", "float8_e5m2")
    if m <= 8:
        shapes = [
            (8, 8, 4),
            (16, 8, 4),
            (16, 8, 8),
            (8, 16, 8),
            (16, 4, 4),
            (32, 4, 8),
            (64, 2, 8),
            (128, 1, 8),
            (64, 1, 4),
        ]
        for bn, kw, warps in shapes:
            if 8 <= kw * m <= 32:
                for stages in (3, 4) if wide else (3, 4, 6, 8):
                    yield Tile(bn, m, kw, warps=warps, stages=stages)
                yield Tile(bn, m, kw, warps=warps, stages=4, blocks=_FOUR_TIMES)
        return
    shapes = [(64, 1, 4), (128, 1, 4), (128, 1, 8), (256, 1, 8)] + ([(64, 2, 8)] if m <= 16 else [])
    for (bn, kw, warps), stages in product(shapes, (3, 4, 6, 8)):
        stage = bn * kw * (128 if wide else 64) + 256 * m * kw
        if stage * stages > _SHARED:
            continue
        for blocks in (0, _ONCE, _TWICE, _FOUR_TIMES):
            yield Tile(bn, m, kw, warps=warps, stages=stages, blocks=blocks)
    for bn, stages, blocks in product((64, 128), (3, 5, 6), (_ONCE, _TWICE, _FOUR_TIMES)):
        if bn == 64 or blocks < _FOUR_TIMES:
            yield Tile(bn, m, stages=stages, blocks=blocks, cluster=8)


def _diagonal(m: int) -> Iterator[Tile]:
    """Few tokens: `kw` stretches of the input dimension side by side, 16 columns of a product in all."""
    kw = 16 // m
    rows = 128 // kw
    for bn, stages, ahead in product((rows, 2 * rows), (3, 4, 6), (0, 8, 32)):
        if m == 1 or bn == rows or ahead < 32:
            yield Tile(bn, m, kw, warps=4 if bn == rows else 8, stages=stages, blocks=0, ahead=ahead)
    for blocks in (_TWICE, _FOUR_TIMES, _EIGHT_TIMES):
        yield Tile(rows, m, kw, stages=3, blocks=blocks)
        yield Tile(rows, m, kw, stages=3, blocks=blocks, ahead=8)
    for stages, ahead in product((3, 4, 6), (0, 8)):  # the fewest rows that wgmma takes
        yield Tile(rows // 2, m, kw, stages=stages, blocks=0, ahead=ahead)
    yield Tile(rows // 2, m, kw, stages=4, blocks=_EIGHT_TIMES)
    if m <= 2:  # the shapes of twice and four times the tokens, which fill their columns with nothing
        for wide, (stages, ahead) in product((2, 4, 8), ((3, 0), (4, 0), (3, 8), (2, 8))):
            yield Tile(rows * wide, m * wide, kw // wide, stages=stages, blocks=0, ahead=ahead)
            if stages == 3:
                yield Tile(rows * wide, m * wide, kw // wide, stages=3, blocks=_FOUR_TIMES, ahead=ahead)
                yield Tile(rows * wide // 2, m * wide, kw // wide, stages=3, blocks=0, ahead=ahead)
    for stages, ahead in ((4, 0), (4, 8)):  # half the threads: the product by mma.sync
        yield Tile(rows // 2, m, kw, warps=2, stages=stages, blocks=0, ahead=ahead)


def _few(m: int) -> Iterator[Tile]:
    if m <= 8:
        for tile in _diagonal(m):
            if tile.warps >= 4 and tile.stages < 6:
                yield tile
        return
    for bn, bk, blocks, ahead in product((64, 128), (128, 256), (0, _ONCE, _TWICE), (0, 16)):
        yield Tile(bn, m, bk=bk, stages=4, blocks=blocks, warps=8 if bn * m >= 8192 else 4, ahead=ahead)


def _middle(m: int) -> list[Tile]:
    """Four-bit weights and many tokens."""
    tiles = [(128, 128, 3, _ONCE), (128, 128, 4, 0), (128, 256, 3, _ONCE), (64, 256, 3, 0)]
    return [Tile(bn, min(bm, m), warps=8, stages=stages, blocks=blocks) for bn, bm, stages, blocks in tiles]


def _many(m: int) -> list[Tile]:
    shapes = [(64, 64, 4), (128, 64, 4), (64, 128, 4), (128, 128, 4), (128, 128, 8), (256, 128, 8), (128, 256, 8)]
    found = []
    for (bn, bm, warps), swap in product(shapes, (False, True)):
        if bm > max(m, 64) or (swap and m > 1024):
            continue
        for stages in (3, 4):
            found.append(Tile(bn, bm, 0, warps=warps, stages=stages, swap=swap))
            if not swap and m >= 128:
                found.append(Tile(bn, bm, 0, warps=warps, stages=stages, tma=True))
    return found
