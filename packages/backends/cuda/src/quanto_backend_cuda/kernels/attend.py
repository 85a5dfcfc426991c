# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token to a cache: queries that share keys side by side, positions dealt to blocks of threads.

Bound: latency while the cache is short, the bytes of keys and values that are seen after that. Positions behind the
last that a block sees are not read: a static cache is mostly empty.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import launch_dependents, wait_for_kernel_ahead

__all__ = ["attend"]


@triton.jit(do_not_specialize=["L", "splits"])
def attend(
    query,
    key,
    value,
    mask,
    out,
    partial,
    locks,
    scale,
    L,
    KV,
    splits,
    q_text,
    q_head,
    k_text,
    k_head,
    k_at,
    v_text,
    v_head,
    v_at,
    m_text,
    m_head,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    BD: tl.constexpr,
    BL: tl.constexpr,
    CHUNK: tl.constexpr,
    ADDED: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """`softmax(query @ key.T * scale + mask) @ value` by an online softmax; the last block to arrive adds the parts.

    Args:
        query: `[texts, heads, D]`; key, value: `[texts, KV, L, D]`; the last dimension of each is contiguous.
        mask: bytes, 0 where a position is not seen, or numbers to add (`ADDED`), `[texts, heads, L]`; or None.
        out: contiguous, as query.
        partial: float32, `BG * (BD + 2)` for each block of threads, locks: int32 zeros, one per head of keys; or None.
        GROUP: queries per head of keys, BG and BD powers of two that hold them and D; CHUNK: positions per block.
        WIDE: multiply in float32, for the interpreter.
    """
    pair = tl.program_id(0)
    split = tl.program_id(1)
    text, head = pair // KV, pair % KV
    g, d, p = tl.arange(0, BG), tl.arange(0, BD), tl.arange(0, BL)
    heads = head * GROUP + tl.minimum(g, GROUP - 1)
    within = (d < D)[None, :]
    begin = split * CHUNK
    if PDL:
        wait_for_kernel_ahead()
        launch_dependents()
    stop = tl.minimum(begin + CHUNK, L)
    masks = None
    if mask is not None:
        masks = mask + text.to(tl.int64) * m_text + heads[:, None] * m_head
        at = begin + tl.arange(0, CHUNK)
        first = tl.load(mask + text.to(tl.int64) * m_text + head * GROUP * m_head + at, mask=at < L, other=0)
        if m_head == 0:  # one mask for all heads
            seen = first != float("-inf") if ADDED else first != 0
            stop = tl.minimum(tl.max(tl.where(seen, at + 1, begin)), stop)
    q = tl.load(query + text * q_text + heads[:, None] * q_head + d[None, :], mask=within, other=0.0)
    keys = key + text.to(tl.int64) * k_text + head.to(tl.int64) * k_head + p[:, None] * k_at + d[None, :]
    values = value + text.to(tl.int64) * v_text + head.to(tl.int64) * v_head + p[:, None] * v_at + d[None, :]
    most = tl.full([BG], float("-inf"), tl.float32)
    total = tl.zeros([BG], tl.float32)
    acc = tl.zeros([BG, BD], tl.float32)
    for start in tl.range(begin, stop, BL, num_stages=3):
        there = (start + p < stop)[:, None]
        k = tl.load(keys + start * k_at, mask=there & within, other=0.0)
        v = tl.load(values + start * v_at, mask=there & within, other=0.0)
        if WIDE:
            q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k)) * scale
        if mask is not None:
            m = tl.load(masks + start + p[None, :], mask=(start + p < stop)[None, :], other=0)
            scores = scores + m.to(tl.float32) if ADDED else tl.where(m != 0, scores, float("-inf"))
        scores = tl.where((start + p < stop)[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp(scores - shift[:, None])
        fade = tl.exp(most - shift)
        total = total * fade + tl.sum(shares, 1)
        acc = tl.dot(shares.to(v.dtype), v, acc * fade[:, None])
        most = higher
    last = True
    if partial is not None:
        unit = partial + (pair * splits).to(tl.int64) * (BG * (BD + 2))
        mine = unit + split * (BG * (BD + 2))
        tl.store(mine + g[:, None] * BD + d[None, :], acc)
        tl.store(mine + BG * BD + g, most)
        tl.store(mine + BG * (BD + 1) + g, total)
        tl.debug_barrier()  # every thread's part is written before one thread says so
        last = tl.atomic_add(locks + pair, 1, sem="acq_rel", scope="gpu") == splits - 1
        if last:
            most = tl.full([BG], float("-inf"), tl.float32)
            total = tl.zeros([BG], tl.float32)
            acc = tl.zeros([BG, BD], tl.float32)
            for i in range(splits):
                part = unit + i * (BG * (BD + 2))
                other = tl.load(part + BG * BD + g, cache_modifier=".cg")
                higher = tl.maximum(most, other)
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                fade, weight = tl.exp(most - shift), tl.exp(other - shift)
                total = total * fade + tl.load(part + BG * (BD + 1) + g, cache_modifier=".cg") * weight
                more = tl.load(part + g[:, None] * BD + d[None, :], cache_modifier=".cg")
                acc = acc * fade[:, None] + more * weight[:, None]
                most = higher
            tl.store(locks + pair, 0)
    if last:
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        at_out = out + (text * KV + head).to(tl.int64) * (GROUP * D) + g[:, None] * D + d[None, :]
        tl.store(at_out, result, mask=(g < GROUP)[:, None] & within)
