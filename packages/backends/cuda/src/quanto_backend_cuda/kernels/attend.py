# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token to a cache: queries that share keys side by side, positions dealt to blocks of threads.

Bound: latency while the cache is short, the bytes of keys and values that are seen after that. A static cache is mostly
empty, and what a block does not see is not read. Where a block's positions fit one step, the mask itself says which
they are: keys and values are asked for at once, and only then the next kernel may begin, whose weight would else come
first. The kernel may rotate query and key (RoPE) and write key and value to the cache before; it then has the new
position in registers, and waits for no write.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import launch_dependents, prefetch, wait_for_kernel_ahead

__all__ = ["attend", "rotated", "seen_of"]


@triton.jit
def _step(q, k, v, m, there, most, total, acc, scale, ADDED: tl.constexpr, WIDE: tl.constexpr):
    """Some positions more; `there` says which of them exist, m what the mask holds for them, or None."""
    if WIDE:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k)) * scale
    if m is not None:
        scores = scores + m.to(tl.float32) if ADDED else tl.where(m != 0, scores, float("-inf"))
    scores = tl.where(there[None, :], scores, float("-inf"))
    higher = tl.maximum(most, tl.max(scores, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    shares = tl.exp(scores - shift[:, None])
    fade = tl.exp(most - shift)
    total = total * fade + tl.sum(shares, 1)
    acc = tl.dot(shares.to(v.dtype), v, acc * fade[:, None])
    return higher, total, acc


@triton.jit
def _alone(q, k, v, masks, at, known, scale, ADDED: tl.constexpr):
    """The sums of one position, at which each query has a mask, or None; for queries to which it is known."""
    most = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    if masks is not None:
        said, known = seen_of(masks + at, known, ADDED, "")
        if ADDED:
            most += said.to(tl.float32)
    total = tl.where(known, 1.0, 0.0)
    return tl.where(known, most, float("-inf")), total, total[:, None] * v.to(tl.float32)[None, :]


@triton.jit
def _after(x):
    """The same halves, which Triton does not use before what was asked for above has been asked for."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=False, pack=2)


@triton.jit
def seen_of(mask, there, ADDED: tl.constexpr, CACHE: tl.constexpr):
    """What a mask holds where positions are `there`, and which of them are seen.

    Args:
        CACHE: "", or ".cg" for what others may still write, which then does not stay in the first level.
    """
    said = tl.load(mask, mask=there, other=float("-inf") if ADDED else 0, cache_modifier=CACHE)
    return said, said != float("-inf") if ADDED else said != 0


@triton.jit
def rotated(x, at, cos, sin, d, inside, D: tl.constexpr):
    """Features d of `x + at`, rotated: each half with the other. In float32, rounded once."""
    other = tl.where(d < D // 2, d + D // 2, d - D // 2)
    a = tl.load(x + at + d, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + other, mask=inside, other=0.0).to(tl.float32)
    return (a * cos + tl.where(d < D // 2, -b, b) * sin).to(x.dtype.element_ty)


@triton.jit(do_not_specialize=["L", "splits"])
def attend(
    query,
    new_key,
    new_value,
    cos,
    sin,
    position,
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
    nk_text,
    nk_head,
    nv_text,
    nv_head,
    c_text,
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
    SHARED: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """`softmax(query @ key.T * scale + mask) @ value` by an online softmax; the last block to arrive adds the parts.

    Args:
        query: `[texts, heads, D]`; key, value: `[texts, KV, L, D]`; the last dimension of each is contiguous.
        new_key, new_value: `[texts, KV, D]`, written to key and value at position, an int64; or None.
        cos, sin: `[texts, D]`, by which query and new_key are rotated before; or None, with new_key.
        mask: bytes, 0 where a position is not seen, or numbers to add (`ADDED`), `[texts, heads, L]`; or None.
        out: contiguous, as query.
        partial: float32, `BG * (BD + 2)` for each block of threads, locks: int32 zeros, one per head of keys; or None.
        GROUP: queries per head of keys, BG and BD powers of two that hold them and D; CHUNK: positions per block, in
            steps of BL.
        SHARED: whether all heads have one mask.
        WIDE: multiply in float32, for the interpreter.
    """
    pair = tl.program_id(0)
    split = tl.program_id(1)
    text, head = (pair // KV).to(tl.int64), (pair % KV).to(tl.int64)
    g, d, p = tl.arange(0, BG), tl.arange(0, BD), tl.arange(0, BL)
    heads = head * GROUP + tl.minimum(g, GROUP - 1)
    within = (d < D)[None, :]
    begin = split * CHUNK
    keys = key + text * k_text + head * k_head + p[:, None] * k_at + d[None, :]
    values = value + text * v_text + head * v_head + p[:, None] * v_at + d[None, :]
    q_at = text * q_text + heads[:, None] * q_head
    rows = mask
    masks = mask
    if mask is not None:
        rows = mask + text * m_text + heads * m_head
        masks = rows[:, None]
    if PDL:
        if CHUNK == BL and partial is None:
            # The mask may be that of the token before, and only says what will be read, most likely.
            soon = p < L
            if mask is not None and SHARED:
                soon = seen_of(mask + text * m_text + p, soon, ADDED, ".cg")[1]
            for sector in tl.static_range(0, D, 16):
                prefetch(key + text * k_text + head * k_head + p * k_at + sector, soon)
                prefetch(value + text * v_text + head * v_head + p * v_at + sector, soon)
        wait_for_kernel_ahead()
        if CHUNK != BL:
            launch_dependents()
    stop = tl.minimum(begin + CHUNK, L)
    if mask is not None and SHARED:
        at = begin + tl.arange(0, CHUNK)
        first, seen = seen_of(mask + text * m_text + at, at < L, ADDED, "")
        if CHUNK != BL:
            stop = tl.minimum(tl.max(tl.where(seen, at + 1, begin)), stop)
    new = -1
    new_k = None
    new_v = None
    if new_key is not None:
        new = (tl.load(position) - begin).to(tl.int32)
        c = tl.load(cos + text * c_text + d, mask=d < D, other=0.0).to(tl.float32)
        s = tl.load(sin + text * c_text + d, mask=d < D, other=0.0).to(tl.float32)
        new_k = rotated(new_key, text * nk_text + head * nk_head, c, s, d, d < D, D)
        new_v = tl.load(new_value + text * nv_text + head * nv_head + d, mask=d < D, other=0.0)
        q = rotated(query, q_at, c[None, :], s[None, :], d[None, :], within, D)
        here = (d < D) & (new + d * 0 >= 0) & (new + d * 0 < tl.minimum(CHUNK, L - begin))
        tl.store(key + text * k_text + head * k_head + (begin + new) * k_at + d, new_k, mask=here)
        tl.store(value + text * v_text + head * v_head + (begin + new) * v_at + d, new_v, mask=here)
    else:
        q = tl.load(query + q_at + d[None, :], mask=within, other=0.0)
    most = tl.full([BG], float("-inf"), tl.float32)
    total = tl.zeros([BG], tl.float32)
    acc = tl.zeros([BG, BD], tl.float32)
    if CHUNK == BL:
        there = (begin + p < stop) & (p != new)
        m = None
        if mask is not None:
            if SHARED:
                there = there & seen
                m = first[None, :]
            else:
                m = tl.load(masks + begin + p[None, :], mask=there[None, :], other=0)
        k = tl.load(keys + begin * k_at, mask=there[:, None] & within, other=0.0)
        v = tl.load(values + begin * v_at, mask=there[:, None] & within, other=0.0)
        if PDL:
            launch_dependents()
            k = _after(k)
        if new_key is not None:
            known = (g * 0 + new >= 0) & (g * 0 + new < stop - begin)
            most, total, acc = _alone(q, new_k, new_v, rows, begin + new, known, scale, ADDED)
        most, total, acc = _step(q, k, v, m, there, most, total, acc, scale, ADDED, WIDE)
    else:
        if new_key is not None:
            known = (g * 0 + new >= 0) & (g * 0 + new < stop - begin)
            most, total, acc = _alone(q, new_k, new_v, rows, begin + new, known, scale, ADDED)
        for start in tl.range(begin, stop, BL, num_stages=3):
            there = (start + p < stop) & (start - begin + p != new)
            m = None
            if mask is not None:
                m = tl.load(masks + start + p[None, :], mask=there[None, :], other=0)
            k = tl.load(keys + start * k_at, mask=there[:, None] & within, other=0.0)
            v = tl.load(values + start * v_at, mask=there[:, None] & within, other=0.0)
            most, total, acc = _step(q, k, v, m, there, most, total, acc, scale, ADDED, WIDE)
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
        at_out = out + (text * KV + head) * (GROUP * D) + g[:, None] * D + d[None, :]
        tl.store(at_out, result, mask=(g < GROUP)[:, None] & within)
