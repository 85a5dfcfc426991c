# SPDX-License-Identifier: Apache-2.0
"""Copies that `quanto_backend_cuda.kernels.stream` starts: of words, scales and zero points of a tile, and of x."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .addresses import rows_at

__all__ = ["copy_weight", "copy_x", "lines_at", "stretch_at", "thirds_at"]

# Newer versions of Triton have another name.
_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared


@gluon.jit
def _copy_lines(to, stage, at, c, end, N, pn, BN: gl.constexpr, GROUP: gl.constexpr):
    """Starts the copy of scales or zero points: lines of 16 rows, or of all rows of a smaller block."""
    ROWS: gl.constexpr = to.shape[1]
    PER: gl.constexpr = GROUP // 128 if GROUP >= 128 else 1
    J: gl.constexpr = 128 // GROUP if GROUP < 128 else 1
    LINE: gl.constexpr = at.shape[1]
    line = gl.arange(0, at.shape[0], gl.SliceLayout(1, at.type.layout)) * LINE
    chunk = c + line // BN
    has = ((chunk < end) & (pn * BN + line % BN < N))[:, None]
    for j in gl.static_range(J):
        here = at + (chunk // PER * (J * 16) + j * 16)[:, None]
        _copy(to.index(stage * J + j).reshape((ROWS // LINE, LINE)), here, mask=has)


@gluon.jit
def lines_at(pointer, pn, G, R: gl.constexpr, BN: gl.constexpr):
    """Where the lines of group 0 begin."""
    LINE: gl.constexpr = 16 if BN >= 16 else BN
    SIZE: gl.constexpr = pointer.dtype.element_ty.primitive_bitwidth // 8
    MOST: gl.constexpr = 16 // SIZE
    EACH: gl.constexpr = LINE if LINE < MOST else MOST
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, EACH], [32 * EACH // LINE, LINE // EACH], [gl.num_warps(), 1], [1, 0])
    line = gl.arange(0, R // LINE, gl.SliceLayout(1, LAYOUT)) * LINE
    n = pn * BN + line % BN
    return pointer + ((n // 16 * (G * 16) + n % 16)[:, None] + gl.arange(0, LINE, gl.SliceLayout(0, LAYOUT))[None, :])


@gluon.jit
def thirds_at(words, pn, C, R: gl.constexpr, BN: gl.constexpr):
    """Where the third bits of int3 begin, behind the two low bits of 16 rows."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [gl.num_warps(), 1], [1, 0])
    row = gl.arange(0, R, gl.SliceLayout(1, LAYOUT))
    n = pn * BN + row % BN
    base, STEP = rows_at(n, C, "int3", True)
    at = base - n % 16 * 4 + 128 + row // BN * STEP
    return words + (at[:, None] + gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))[None, :])


@gluon.jit
def _copy_words(to, stage, at, c, end, N, pn, STEP, BN: gl.constexpr):
    row = gl.arange(0, to.shape[1], gl.SliceLayout(1, at.type.layout))
    has = ((c + row // BN < end) & (pn * BN + row % BN < N))[:, None]
    _copy(to.index(stage), at + c * STEP, mask=has)


@gluon.jit
def copy_weight(
    ws, hs, ss, zs, stage, at, thirds, scales, zeros, c, end, N, pn, STEP, BN: gl.constexpr, GROUP: gl.constexpr
):
    """Starts the copy of a tile of packed words, and of what scales it."""
    _copy_words(ws, stage, at, c, end, N, pn, STEP, BN)
    if thirds is not None:
        _copy_words(hs, stage, thirds, c, end, N, pn, STEP, BN)
    if scales is not None:
        _copy_lines(ss, stage, scales, c, end, N, pn, BN, GROUP)
    if zeros is not None:
        _copy_lines(zs, stage, zeros, c, end, N, pn, BN, GROUP)


@gluon.jit
def copy_x(xs, stage, x_at, c, end, first, M, BM: gl.constexpr):
    """Starts the copy of a tile of x: the first 64 columns of each stretch, and the last."""
    COLUMNS: gl.constexpr = xs.shape[1]
    col = gl.arange(0, COLUMNS, gl.SliceLayout(1, x_at.type.layout))
    has = ((first + col % BM < M) & (c + col // BM < end))[:, None]
    _copy(xs.index(2 * stage), x_at + c * 128, mask=has)
    _copy(xs.index(2 * stage + 1), x_at + (c * 128 + 64), mask=has)


@gluon.jit
def stretch_at(i, turn, steps, begin, end, KW: gl.constexpr):
    """The first stretch of step i; past the last step, where nothing is read."""
    j = i + turn
    j = gl.where(j >= steps, j - steps, j)
    return gl.where(i < steps, begin + j * KW, end)
