# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token to a short cache: a block of threads for each query, keys and values in its registers.

Bound: latency. What a block waits for is asked for at once, and nothing but sums goes through shared memory: tensor
cores would want keys and values there, a microsecond of copies for a product that takes a third of that without them.
Queries of a group read the same keys, one from memory and the others from the L2. All that was in the cache before is
brought there while the kernel ahead still runs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attend import rotated, seen_of
from .dependent import launch_dependents, prefetch, wait_for_kernel_ahead

__all__ = ["attend_short"]


@triton.jit
def _two(words, HALF: tl.constexpr):
    """Both halves of words, in float32. As words they take half the registers until they are wanted."""
    if tl.bfloat16 == HALF:
        return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
    else:
        low, high = words.to(tl.int16).to(HALF, bitcast=True), (words >> 16).to(tl.int16).to(HALF, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit(do_not_specialize=["L"])
def attend_short(
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
    scale,
    L,
    KV,
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
    BD: tl.constexpr,
    BL: tl.constexpr,
    ADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    """`softmax(query @ key.T * scale + mask) @ value` of up to BL positions, in float32.

    Arguments are those of `attend`; BD and BL are powers of two that hold D and L.
    """
    one = tl.program_id(0)
    text, nth = (one // (KV * GROUP)).to(tl.int64), (one % (KV * GROUP)).to(tl.int64)
    head, member = nth // GROUP, nth % GROUP
    d, p, i = tl.arange(0, BD), tl.arange(0, BL), tl.arange(0, BD // 2)
    inside = d < D
    keys = key + text * k_text + head * k_head
    values = value + text * v_text + head * v_head
    masks = mask
    if mask is not None:
        masks = mask + text * m_text + nth * m_head
    if PDL:
        # The mask may be that of the token before: a guess at what will be read, of which each query has a part.
        guess = p < L
        if mask is not None:
            guess = seen_of(masks + p, guess, ADDED, ".cg")[1]
        for sector in tl.static_range(0, D, 16):
            mine = guess & (sector // 16 % GROUP == member)
            prefetch(keys + p * k_at + sector, mine)
            prefetch(values + p * v_at + sector, mine)
        wait_for_kernel_ahead()
    seen = p < L
    said = 0.0
    if mask is not None:
        said, seen = seen_of(masks + p, seen, ADDED, "")
    wanted = seen
    if new_key is not None:
        new = tl.load(position)
        wanted = seen & (p != new)
    here = wanted[:, None] & (i < D // 2)[None, :]
    k_words, v_words = keys.to(tl.pointer_type(tl.int32)), values.to(tl.pointer_type(tl.int32))
    k = tl.load(k_words + (p * (k_at // 2))[:, None] + i[None, :], mask=here, other=0)
    v = tl.load(v_words + (p * (v_at // 2))[:, None] + i[None, :], mask=here, other=0)
    if PDL:
        launch_dependents()
    q_at = text * q_text + nth * q_head
    if new_key is not None:
        c = tl.load(cos + text * c_text + d, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + text * c_text + d, mask=inside, other=0.0).to(tl.float32)
        q = rotated(query, q_at, c, s, d, inside, D).to(tl.float32)
        new_k = rotated(new_key, text * nk_text + head * nk_head, c, s, d, inside, D)
        new_v = tl.load(new_value + text * nv_text + head * nv_head + d, mask=inside, other=0.0)
        fits = inside & (new + d * 0 >= 0) & (new + d * 0 < L) & (member + d * 0 == 0)
        tl.store(keys + new * k_at + d, new_k, mask=fits)
        tl.store(values + new * v_at + d, new_v, mask=fits)
    else:
        q = tl.load(query + q_at + d, mask=inside, other=0.0).to(tl.float32)
    q_low, q_high = tl.split(tl.reshape(q, [BD // 2, 2]))
    k_low, k_high = _two(k, key.dtype.element_ty)
    scores = tl.sum(k_low * q_low[None, :] + k_high * q_high[None, :], 1)
    if new_key is not None:
        scores = tl.where(p == new, tl.sum(q * new_k.to(tl.float32), 0), scores)
    scores = scores * scale
    if ADDED:
        scores += said.to(tl.float32)  # type: ignore[attr-defined]
    scores = tl.where(seen, scores, float("-inf"))
    most = tl.max(scores, 0)
    shares = tl.exp(scores - tl.where(most == float("-inf"), 0.0, most))
    v_low, v_high = _two(v, key.dtype.element_ty)
    low, high = tl.sum(shares[:, None] * v_low, 0), tl.sum(shares[:, None] * v_high, 0)
    acc = tl.reshape(tl.join(low, high), [BD])
    if new_key is not None:
        acc += tl.sum(tl.where(p == new, shares, 0.0), 0) * new_v.to(tl.float32)
    result = acc / tl.sum(shares, 0)
    tl.store(out + one.to(tl.int64) * D + d, result.to(out.dtype.element_ty), mask=inside)
