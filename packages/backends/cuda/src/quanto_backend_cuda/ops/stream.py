# SPDX-License-Identifier: Apache-2.0
"""`linear` for few tokens on Hopper: the kernel that asks for the weight before the kernel ahead has ended.

Its blocks read the weight while the kernel ahead may still write. So a weight that was not seen before, or has changed
in place since, is read behind an ordinary kernel, which waits for all that came before.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import launch
from ..tables import Tile, nearest
from ..workspace import locks
from .trial import Trial, attempts
from .weights import Facts, aligned, facts, stretches

__all__ = ["CLUSTERS", "KERNEL", "TOKENS", "TRIAL", "prepare", "settle", "start", "stream", "takes"]

#: its tables.
KERNEL = "stream"
#: up to which it is the fastest.
TOKENS = 64
#: what is known of the kernel.
TRIAL = Trial("few tokens")
#: and of the same in clusters, which another version of Triton may start otherwise.
CLUSTERS = Trial("few tokens, in clusters,")
_KINDS = frozenset({"int8", "int4", "int3", "int2", "nf4", "fp4", "float8_e4m3fn", "float8_e5m2"})
# By the id of a weight's codes: these, and the versions of its tensors that were read behind an ordinary kernel.
_seen: dict[int, tuple[weakref.ref[Tensor], tuple[int, ...]]] = {}


def takes(f: Facts, size: int, dtype: torch.dtype, zero: Tensor | None, scale: Tensor) -> bool:
    """Whether the kernel knows such a tiled weight with `size` columns, and such activations."""
    small = zero is None or zero.element_size() == 1
    return f.kind in _KINDS and small and size % 128 == 0 and stretches(f, dtype, zero, scale)


def stream(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, f: Facts, out: Tensor, qtype: str, block: Sequence[int]
) -> bool:
    """Runs the kernel on contiguous tensors, weights tiled; False if it can't be used, or another was faster there."""
    best = nearest(KERNEL, qtype, x.shape[0], out.shape[1], x.shape[1], x.device)
    if best.elsewhere:
        return False
    codes, scale, zero, shared = weight
    settle(out, codes, scale, zero)
    given = (aligned(codes), aligned(scale), None if zero is None else aligned(zero), shared)
    rows = aligned(x)
    (m, size), n = x.shape, out.shape[1]
    for trial, tile, cluster in attempts(CLUSTERS, TRIAL, best, best.clustered(m, n, size // 128), x.device):
        kind = _kind(x, weight, bias, f, n, tile, cluster)
        starts = functools.partial(start, rows, given, bias, f, out, tile, cluster)
        if trial.run(kind, starts, x, weight, bias, out, qtype, block):
            return True
    return False


def _kind(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, f: Facts, n: int, tile: Tile, cluster: int
) -> tuple[Any, ...]:
    """What makes another kernel of it, or lets it meet an edge."""
    _, scale, zero, shared = weight
    m, chunks = x.shape[0], x.shape[1] // 128
    ragged = (m % tile.bm > 0, n % tile.bn > 0, chunks % tile.kw > 0)
    split = cluster if cluster > 1 else tile.splits(m, n, chunks) > 1
    parts = (zero is not None, shared is not None, None if bias is None else bias.dtype, scale.dtype, x.dtype)
    return (f, tile, ragged, split, parts, x.device.index)


def prepare(weight: Sequence[Any], qtype: str, block: Sequence[int], size: int) -> None:
    """Begins to compile the kernel that one token, and no bias, will want of a tiled weight with `size` columns.

    Nothing is read of the weight, and nothing raised.
    """
    codes, scale, zero, _ = weight
    f, device = facts(qtype, block, size), codes.device
    if not TRIAL.serves(device) or not takes(f, size, scale.dtype, zero, scale):
        return
    if torch.cuda.is_current_stream_capturing():
        return
    n = codes.shape[0]
    best = nearest(KERNEL, qtype, 1, n, size, device)
    if best.elsewhere:
        return
    x, out = (torch.empty(1, width, dtype=scale.dtype, device=device) for width in (size, n))
    # weights of the same types and sizes that take no memory
    given = [None if t is None else t.new_empty((1,) * t.ndim).expand(t.shape) for t in weight]
    trial, tile, cluster = next(attempts(CLUSTERS, TRIAL, best, best.clustered(1, n, size // 128), device))
    kind = _kind(x, given, None, f, n, tile, cluster)
    trial.prepare(kind, functools.partial(start, x, given, None, f, out, tile, cluster), device)


def settle(out: Tensor, codes: Tensor, *rest: Tensor | None) -> None:
    """Puts an ordinary kernel between whatever wrote a weight and its first reader.

    A tensor made in inference mode counts no changes, nor does one that is changed through `.data`: such changes are
    safe behind any kernel but one that itself lets the next begin early.

    Args:
        out: overwritten.
        codes: of the weight.
        *rest: its scales and zero points.
    """
    versions = tuple(0 if t is None or t.is_inference() else t._version for t in (codes, *rest))
    key = id(codes)
    found = _seen.get(key)
    if found is None or found[0]() is not codes or found[1] != versions:
        out.zero_()
        _seen[key] = (weakref.ref(codes, lambda gone: _forget(key, gone)), versions)


def _forget(key: int, gone: weakref.ref[Tensor]) -> None:
    if key in _seen and _seen[key][0] is gone:  # the id may have been given away by now
        del _seen[key]


def start(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, f: Facts, out: Tensor, tile: Tile, cluster: int | None = None
) -> None:
    """Starts the kernel, in clusters of so many blocks; default: as the tile has it there."""
    from ..kernels.cluster import room
    from ..kernels.stream import stream as kernel

    codes, scale, zero, shared = weight
    m, size = x.shape
    n = codes.shape[0]
    chunks = size // 128
    down, across = -(-m // tile.bm), -(-n // tile.bn)
    cluster = tile.clustered(m, n, chunks) if cluster is None else cluster
    splits = cluster if cluster > 1 else tile.splits(m, n, chunks)
    partial = counters = None
    if cluster > 1 and not getattr(kernel, "clusters", False):
        raise RuntimeError("this version of Triton starts no clusters")
    if splits > 1 and cluster == 1:
        partial = torch.empty(down * across * splits * tile.bn * tile.bm, dtype=torch.float32, device=x.device)
        counters = locks(x.device, down * across)
    launch(
        kernel, (across, splits // cluster, down), x, codes.view(torch.uint8), scale, zero, shared, bias, out, partial,
        counters, m, n, size, chunks, scale.shape[-1], splits, KIND=f.kind, GROUP=f.group, BN=tile.bn, BM=tile.bm,
        KW=tile.kw, STAGES=tile.stages, PDL=True, CLUSTER=cluster,
        EXTRA=room(cluster, tile.bn, tile.bm) if cluster > 1 else 0, num_warps=tile.warps, launch_pdl=True,
    )  # fmt: skip
