# SPDX-License-Identifier: Apache-2.0
"""Clusters of blocks of threads (Hopper): what they hand over goes from shared memory to shared memory.

Triton takes the blocks of its own clusters for one program. Here every block is a program of its own, in a grid that is
started in clusters, with shared memory behind Triton's that it knows nothing of. So what is done there is PTX.

Nothing is released over a cluster: such a fence waits for all of a block's memory (a microsecond). A part goes by bulk
copies, which report to a barrier in the memory where they write. A block says once that its barrier is there, before
others may send, and once that it has got all, before others, whose copies have been read then, may end.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

__all__ = ["area", "arrive", "exchange", "expect", "half", "in_clusters", "met", "part", "room", "room_of_halves"]

# Newer versions of Triton have another name.
_barrier = getattr(gl, "thread_barrier", None) or gl.barrier
_one_at_a_time = threading.Lock()
# Floats between rows of a part in shared memory: what one instruction writes lies in different banks.
_PAD = 4


def in_clusters(kernel: Any) -> Any:
    """Has a kernel start in clusters of its constant `CLUSTER`, with its constant `EXTRA` bytes more of shared memory.

    Where this Triton is not as expected a launch raises, before anything runs. `EXTRA` is a multiple of 128.
    """
    begun = getattr(kernel, "_do_compile", None)
    if begun is None:
        return kernel
    places = [(kernel.arg_names.index(name),) for name in ("CLUSTER", "EXTRA")]

    def compiled(compile_one: Any, *args: Any, **kwargs: Any) -> Any:
        found = compile_one(*args, **kwargs)
        size, extra = (found.src.constants[place] for place in places)
        if size > 1:
            before = found.metadata
            if found.packed_metadata != (before.num_warps, 1, before.shared) or found.module is not None:
                raise RuntimeError("this version of Triton starts kernels in another way")
            shared = -(-before.shared // 128) * 128 + extra
            found.metadata = before._replace(num_ctas=size, shared=shared)
            found.packed_metadata = (before.num_warps, size, shared)
        return found

    @functools.wraps(begun)
    def begin(*args: Any, **kwargs: Any) -> Any:
        with _one_at_a_time:
            if getattr(kernel.compile, "func", None) is not compiled:  # else another thread could start it too soon
                kernel.compile = functools.partial(compiled, kernel.compile)
        return begun(*args, **kwargs)

    kernel._do_compile = begin
    kernel.clusters = True
    return kernel


@triton.constexpr_function
def part(rows, tokens):
    """Bytes of a part [rows, tokens]: each token's rows in a line, and some bytes more."""
    return tokens * (rows + _PAD) * 4


def room(size: int, rows: int, tokens: int) -> int:
    """Bytes that `exchange` needs behind Triton's for tiles [rows, tokens] that `size` blocks share."""
    return -(-((size - 1) * part(rows // size, tokens)) // 128) * 128 + 128


def room_of_halves(rows: int, tokens: int) -> int:
    """Bytes that `half` needs behind Triton's for tiles [rows, tokens] of which two warpgroups have a half each.

    One that comes and one that goes, besides the barrier.
    """
    return 128 + 2 * (rows // 2 * tokens * 4)


@triton.jit
def area(EXTRA: tl.constexpr):
    """The address of the last `EXTRA` bytes of shared memory, and that of the first."""
    first = tl.inline_asm_elementwise("mov.u32 $0, global_smem;", "=r", [], tl.int32, True, 1)
    size = tl.inline_asm_elementwise("mov.u32 $0, %dynamic_smem_size;", "=r", [], tl.int32, True, 1)
    return first + size - EXTRA, first


@triton.jit
def expect(bar, nbytes):
    """Makes a barrier that `nbytes` of copies complete: what its first thread does for a block."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred p; .reg .b32 t;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        @p mbarrier.init.shared::cta.b64 [$1], 1;
        @p fence.mbarrier_init.release.cluster;
        @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [$1], $2;
        mov.b32 $0, 0;
        }""",
        "=r,r,r",
        [bar, nbytes],
        tl.int32,
        False,
        1,
    )


@triton.jit
def arrive():
    """Says that this thread has come here; every thread of a cluster does so as often as it calls `met`."""
    tl.inline_asm_elementwise("barrier.cluster.arrive.relaxed; mov.b32 $0, 0;", "=r", [], tl.int32, False, 1)


@triton.jit
def met():
    """Waits until all threads of the cluster have come to their last `arrive`."""
    tl.inline_asm_elementwise("barrier.cluster.wait; mov.b32 $0, 0;", "=r", [], tl.int32, False, 1)


@triton.jit
def _receive(bar):
    """Waits for all copies to this block."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        again:
        mbarrier.try_wait.parity.shared::cta.b64 p, [$1], 0;
        @!p bra again;
        mov.b32 $0, 0;
        }""",
        "=r,r",
        [bar],
        tl.int32,
        False,
        1,
    )


@triton.jit
def _send(to, bar, start, nbytes, rank, SIZE: tl.constexpr, WARPS: tl.constexpr):
    """Starts the copies to each other block of `SIZE`: `nbytes` each, those for block q from `start + q * nbytes`.

    A warp starts its copies one after another, so all warps have some.

    Args:
        to: where the parts of the first block lie, then those of the others but a block's own.
        bar: the barrier there.
    """
    tl.inline_asm_elementwise(
        """{
        .reg .pred p, q; .reg .b32 t, a, b, c;
        mov.u32 t, %tid.x;
        and.b32 a, t, 31;
        shr.u32 t, t, 5;
        mad.lo.u32 t, a, $7, t;
        setp.lt.u32 p, t, $6;
        setp.ne.and.u32 p, t, $5, p;
        setp.lt.u32 q, t, $5;
        selp.u32 a, 1, 0, q;
        sub.u32 a, $5, a;
        mad.lo.u32 a, a, $4, $1;
        mad.lo.u32 c, t, $4, $3;
        @p mapa.shared::cluster.u32 a, a, t;
        @p mapa.shared::cluster.u32 b, $2, t;
        @p cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [a], [c], $4, [b];
        mov.b32 $0, 0;
        }""",
        "=r,r,r,r,r,r,r,r",
        [to, bar, start, nbytes, rank, SIZE, WARPS],
        tl.int32,
        False,
        1,
    )


@triton.jit
def _give(to, bar, start, nbytes, rank):
    """Starts a copy to block `rank`, by the first thread of a warpgroup."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred p; .reg .b32 t, a, b;
        mov.u32 t, %tid.x;
        and.b32 t, t, 127;
        setp.eq.u32 p, t, 0;
        mapa.shared::cluster.u32 a, $1, $5;
        mapa.shared::cluster.u32 b, $2, $5;
        @p cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [a], [$3], $4, [b];
        mov.b32 $0, 0;
        }""",
        "=r,r,r,r,r,r",
        [to, bar, start, nbytes, rank],
        tl.int32,
        False,
        1,
    )


@triton.jit
def _write(address, value):
    """Stores floats in shared memory."""
    tl.inline_asm_elementwise("st.shared.f32 [$1], $2; mov.b32 $0, 0;", "=r,r,f", [address, value], tl.int32, False, 1)


@triton.jit
def _read(address):
    """Loads floats from shared memory."""
    return tl.inline_asm_elementwise("ld.shared.f32 $0, [$1];", "=f,r", [address], tl.float32, False, 1)


@gluon.jit
def exchange(acc, first, extra, rank, SIZE: gl.constexpr, OUT: gl.constexpr):
    """Sums of `SIZE` blocks' tiles [ROWS, TOKENS], of which each gets its share of the rows, in the layout `OUT`.

    `expect` came before, of `SIZE - 1` parts at `extra`, and `arrive` and `met`; another `met` comes after.

    Args:
        acc: this block's sums.
        first: the address of shared memory that is not used any more.
        extra: of `room` bytes that nobody else uses.
        rank: of this block.
    """
    ROWS: gl.constexpr = acc.shape[0] // SIZE
    TOKENS: gl.constexpr = acc.shape[1]
    PART: gl.constexpr = part(ROWS, TOKENS)
    LINE: gl.constexpr = PART // TOKENS
    LAYOUT: gl.constexpr = acc.type.layout
    n = gl.arange(0, ROWS * SIZE, gl.SliceLayout(1, LAYOUT))
    t = gl.arange(0, TOKENS, gl.SliceLayout(0, LAYOUT))
    row = first + n // ROWS * PART + n % ROWS * 4
    _write(row[:, None] + (t * LINE)[None, :], acc)
    fence_async_shared()
    _barrier()
    parts = extra + 128
    _send(parts, extra, first, PART, rank, SIZE, gl.num_warps())
    r = gl.arange(0, ROWS, gl.SliceLayout(1, OUT))
    to = gl.arange(0, TOKENS, gl.SliceLayout(0, OUT))
    offset = (r * 4)[:, None] + (to * LINE)[None, :]
    _receive(extra)
    arrive()
    total = gl.zeros([ROWS, TOKENS], gl.float32, OUT)
    for p in gl.static_range(SIZE):  # in the order of the blocks
        other = parts + gl.where(rank > p, p, p - 1) * PART
        total += _read(offset + gl.where(rank == p, first + p * PART, other))
    return total


@gluon.jit
def half(acc, extra, mine, rank):
    """Sums of both blocks of a cluster, in the one that has `mine`; the other gives its own away.

    `expect` of one `acc` and `arrive` came before, another `met` comes after. `extra` is of `room_of_halves` bytes.
    """
    ROWS: gl.constexpr = acc.shape[0]
    BM: gl.constexpr = acc.shape[1]
    LAYOUT: gl.constexpr = acc.type.layout
    r = gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    t = gl.arange(0, BM, gl.SliceLayout(0, LAYOUT))
    # a register of all 128 threads, then the next
    by_row = r // 16 % 4 * 128 + r % 8 * 16 + r % 16 // 8 * 1024 + r // 64 * (BM * 256)
    by_column = t % 8 // 2 * 4 + t % 2 * 512 + t // 8 * 2048
    offset = by_row[:, None] + by_column[None, :]
    met()
    if mine:
        _receive(extra)
        acc += _read(offset + (extra + 128))
    else:
        start = extra + 128 + ROWS * BM * 4
        _write(offset + start, acc)
        fence_async_shared()
        _barrier()
        _give(extra + 128, extra, start, ROWS * BM * 4, 1 - rank)
    arrive()
    return acc
