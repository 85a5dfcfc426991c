# SPDX-License-Identifier: Apache-2.0
"""`attend`: attention of one new token to a static cache, one kernel that lets the next product begin early.

`rotate_and_attend` is the same kernel, which rotates query and key and writes the cache, too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..runtime import dependent_launch, import_triton, interpreted, launch, sm_count
from ..workspace import locks
from .define import NAMESPACE

__all__ = ["attend", "define_attend", "rotate_and_attend"]

_SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor"
_ROTATES = (
    "(Tensor query, Tensor new_key, Tensor new_value, Tensor cos, Tensor sin, Tensor position, Tensor(a!) key, "
    "Tensor(b!) value, Tensor? mask, float scale) -> Tensor"
)
_HALVES = (torch.float16, torch.bfloat16)
# Positions of a block of threads: a second block to a head of keys costs 1.5 us, as much as 200 positions.
_LEAST, _MOST = 256, 4096
# Elements of keys, and of values, that a block of eight warps holds at once.
_AT_ONCE = 256 * 128


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The operator.

    Args:
        query: float16 or bfloat16 `[texts, heads, 1, features]`; queries of a group are neighbours.
        key, value: of its dtype, `[texts, heads of keys, length, features]`.
        mask: boolean, true where a position is seen, or of a floating dtype, added to the scores;
            `[texts or 1, heads or 1, 1, length]`; or None.
        scale: of the scores.

    Returns:
        `[texts, 1, heads, features]`, contiguous; NaN for a query that sees nothing.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, naming the argument.
    """
    _check(query, key, value, mask)
    return _start(query, key, value, mask, scale, None)


def rotate_and_attend(
    query: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Rotates query and new_key (RoPE, halves with each other), writes the cache at a position, and attends to it.

    Args:
        query: float16 or bfloat16 `[texts, heads, 1, features]`, of an even number of features.
        new_key, new_value: `[texts, heads of keys, 1, features]`.
        cos, sin: `[texts or 1, 1, 1, features]`.
        position: int64, one element; where none such is in the cache, nothing is written.
        key, value: the cache, whose last dimension is contiguous; written in place.
        mask, scale: as `attend` takes them.

    Returns:
        As `attend`.

    Raises:
        ValueError: if shapes, dtypes, strides or devices do not fit, naming the argument.
    """
    _check(query, key, value, mask)
    texts, _, _, size = query.shape
    if size % 2:
        raise ValueError(f"query must have an even number of features, got {size}")
    for name, t in (("key", key), ("value", value)):
        if t.stride(-1) != 1:
            raise ValueError(f"{name} must have contiguous features, its strides are {t.stride()}")
    shape = (texts, key.shape[1], 1, size)
    for name, t, shapes in (
        ("new_key", new_key, (shape,)),
        ("new_value", new_value, (shape,)),
        ("cos", cos, ((texts, 1, 1, size), (1, 1, 1, size))),
        ("sin", sin, (cos.shape,)),
    ):
        if tuple(t.shape) not in shapes or t.dtype != query.dtype or t.device != query.device:
            raise ValueError(f"{name} is {t.dtype} {list(t.shape)} on {t.device}, query {list(query.shape)}")
    if position.numel() != 1 or position.dtype != torch.int64 or position.device != query.device:
        raise ValueError(
            f"position must be one int64, got {position.dtype} {list(position.shape)} on {position.device}"
        )
    cos, sin = cos.expand(texts, -1, -1, -1), sin.expand(texts, -1, -1, -1)
    if cos.stride(0) != sin.stride(0) or cos.stride(-1) != 1 or sin.stride(-1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    return _start(query, key, value, mask, scale, (new_key, new_value, cos, sin, position))


def _start(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, new: tuple[Tensor, ...] | None
) -> Tensor:
    import_triton()
    from ..kernels.attend import attend as kernel

    texts, heads, _, size = query.shape
    count, length = key.shape[1:3]
    out = query.new_empty(texts, 1, heads, size)
    if not out.numel():
        return out
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    group = heads // count
    wide, high = max(1 << (size - 1).bit_length(), 16), max(1 << (group - 1).bit_length(), 16)
    pdl = dependent_launch(query.device)
    chunk = _chunk(length, texts * count, query.device)
    splits = max(-(-length // chunk), 1)
    step, warps = 64, 4
    if (pdl or interpreted()) and chunk * wide <= _AT_ONCE:
        step, warps = chunk, 8
    partial = counters = None
    if splits > 1:
        shape = texts * count * splits * high * (wide + 2)
        partial = torch.empty(shape, dtype=torch.float32, device=query.device)
        counters = locks(query.device, texts * count)
    added = mask is not None and mask.dtype != torch.bool
    strides = (0, 0)
    if mask is not None:
        mask = (mask if added else mask.view(torch.uint8)).expand(texts, -1, -1, -1)
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        strides = (mask.stride(0), mask.stride(1) if mask.shape[1] > 1 else 0)
    given: tuple[Any, ...] = (None,) * 5
    new_strides: tuple[int, ...] = (0,) * 5
    if new is not None:
        k, v, cos, sin, position = (t if t.ndim < 4 or t.stride(-1) == 1 else t.contiguous() for t in new)
        given = (k, v, cos, sin, position)
        new_strides = (*k.stride()[:2], *v.stride()[:2], cos.stride(0))
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    if step == chunk >= length and _short(key, value, texts * heads):
        from ..kernels.attend_short import attend_short

        step = min(step, max(1 << (length - 1).bit_length(), 64))
        launch(
            attend_short, (texts * heads,), query, *given, key, value, mask, out, scale, length, count,
            *query.stride()[:2], *new_strides, *key.stride()[:3], *value.stride()[:3], *strides, D=size, GROUP=group,
            BD=wide, BL=step, ADDED=added, PDL=pdl, num_warps=8, **options,
        )  # fmt: skip
        return out
    launch(
        kernel, (texts * count, splits), query, *given, key, value, mask, out, partial, counters, scale, length, count,
        splits, *query.stride()[:2], *new_strides, *key.stride()[:3], *value.stride()[:3], *strides, D=size,
        GROUP=group, BG=high, BD=wide, BL=step, CHUNK=chunk, ADDED=added, SHARED=strides[1] == 0, WIDE=interpreted(),
        PDL=pdl, num_warps=warps, **options,
    )  # fmt: skip
    return out


def _short(key: Tensor, value: Tensor, queries: int) -> bool:
    """Whether a block may have a query alone: each finds a multiprocessor, and features are pairs that lie as words."""
    if queries > sm_count(key.device) and not interpreted():
        return False
    return all(t.data_ptr() % 4 == 0 and not any(n % 2 for n in (t.shape[-1], *t.stride()[:3])) for t in (key, value))


def _chunk(length: int, pairs: int, device: torch.device) -> int:
    """Positions per block of threads, a power of two, such that the blocks fill the device, or each has enough."""
    blocks = max(sm_count(device) // pairs, 1)
    wanted = -(-length // blocks)
    return min(max(1 << (wanted - 1).bit_length(), _LEAST), _MOST)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    if query.ndim != 4 or query.shape[2] != 1 or query.dtype not in _HALVES:
        raise ValueError(f"query must be halves [texts, heads, 1, features], got {query.dtype} {list(query.shape)}")
    texts, heads, _, size = query.shape
    for name, t in (("key", key), ("value", value)):
        if t.dtype != query.dtype or t.device != query.device:
            raise ValueError(f"{name} is {t.dtype} on {t.device}, query {query.dtype} on {query.device}")
        if t.ndim != 4 or t.shape[0] != texts or t.shape[3] != size or t.shape != key.shape:
            raise ValueError(f"{name} is {list(t.shape)}, query {list(query.shape)} and key {list(key.shape)}")
    if not key.shape[1] or heads % key.shape[1]:
        raise ValueError(f"key has {key.shape[1]} heads, of which query's {heads} are no multiple")
    if mask is None:
        return
    if mask.device != query.device or (mask.dtype != torch.bool and not mask.is_floating_point()):
        raise ValueError(f"mask must be boolean or floating on {query.device}, got {mask.dtype} on {mask.device}")
    wanted = ((1, texts), (1, heads), (1,), (key.shape[2],))
    if mask.ndim != 4 or any(n not in w for n, w in zip(mask.shape, wanted, strict=True)):
        raise ValueError(f"mask is {list(mask.shape)} for {texts} texts, {heads} heads and {key.shape[2]} positions")


@functools.cache
def define_attend() -> dict[str, Any]:
    """Defines the operators, once, by name; Inductor is not shown the kernel, which begins early."""

    def fake(query: Tensor, key: Tensor, *_: Any) -> Tensor:
        return query.new_empty(query.shape[0], 1, *query.shape[1::2])

    found = {}
    for name, function, schema, mutated in (
        ("attend", attend, _SCHEMA, ()),
        ("rotate_and_attend", rotate_and_attend, _ROTATES, ("key", "value")),
    ):
        operator = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=mutated, schema=schema)
        operator.register_fake(fake)
        found[name] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return found
