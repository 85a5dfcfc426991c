# SPDX-License-Identifier: Apache-2.0
"""`linear` for many tokens on Hopper: the kernel with specialized warps, where Triton has Gluon for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import launch, sm_count
from ..tables import Tile, nearest
from ..workspace import locks
from .stream import settle
from .trial import Trial, attempts
from .weights import Facts, raw_scale, stretches

__all__ = ["CLUSTERS", "KERNEL", "TOKENS", "TRIAL", "dealt", "shares", "specialized", "start", "takes"]

#: its tables.
KERNEL = "specialized"
#: from which on it is the fastest.
TOKENS = 65
_KINDS = frozenset({"int8", "int4", "int2", "nf4", "fp4", "float8_e4m3fn", "float8_e5m2"})
# Of tiles that do not fill the GPU once more: above, cutting them costs more than the multiprocessors that idle.
_WORTH_CUTTING = 0.6
#: what is known of the kernel.
TRIAL = Trial("many tokens", postpones=True)
#: and of the same in clusters, which another version of Triton may start otherwise.
CLUSTERS = Trial("many tokens, in clusters,", postpones=True)


def takes(f: Facts, size: int, dtype: torch.dtype, zero: Tensor | None, scale: Tensor) -> bool:
    """Whether the kernel knows such a tiled weight with `size` columns, and such activations."""
    return f.kind in _KINDS and size % 8 == 0 and stretches(f, dtype, zero, scale)


def specialized(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, f: Facts, out: Tensor, qtype: str, block: Sequence[int]
) -> bool:
    """Runs the kernel on contiguous tensors, weights tiled; False if it can't be used."""
    m, size = x.shape
    best = nearest(KERNEL, qtype, m, out.shape[1], size, x.device)
    settle(out, *weight[:3])
    most = dealt(m, out.shape[1], size, best, x.device).cluster
    for trial, tile, cluster in attempts(CLUSTERS, TRIAL, best, most, x.device):
        kind = _kind(x, weight, bias, f, out, tile, cluster)
        starts = functools.partial(start, x, weight, bias, f, out, tile, cluster)
        if trial.run(kind, starts, x, weight, bias, out, qtype, block):
            return True
    return False


def _kind(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, f: Facts, out: Tensor, tile: Tile, cluster: int
) -> tuple[Any, ...]:
    """What makes another kernel of it, or lets it meet an edge."""
    _, scale, zero, shared = weight
    ragged = (x.shape[0] % tile.bm > 0, out.shape[1] % tile.bn > 0, x.shape[1] % 128 > 0)
    parts = (zero is not None, shared is not None, None if bias is None else bias.dtype, scale.dtype, x.dtype)
    cut = 2 if cluster > 1 else dealt(x.shape[0], out.shape[1], x.shape[1], tile, x.device).rest > 0
    return (f, tile, ragged, cut, parts, x.device.index)


@functools.lru_cache(maxsize=64)
def _layout(rows: int, columns: int, dtype: torch.dtype) -> Any:
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout.get_default_for([rows, columns], gl.float16 if dtype == torch.float16 else gl.bfloat16)


def shares(tiles: int, chunks: int, blocks: int, wanted: int) -> tuple[int, int, int]:
    """How tiles are dealt to `blocks` blocks of threads.

    Args:
        tiles: of the result; chunks: stretches of 128 columns of each.
        wanted: how many blocks may share the tiles that do not fill the GPU once more; 0: none does.

    Returns:
        Tiles that one block takes alone, the number of those that are shared, and by how many blocks.
    """
    rest = tiles % blocks
    if rest == 0:
        return tiles, 0, 1
    wanted = min(wanted, blocks)
    parts = min(wanted // rest, chunks)
    if parts >= 2:  # equal ones: a third block at a tile costs more than a few idle ones
        return tiles - rest, rest, parts * rest
    if rest < wanted <= rest * chunks and tiles > rest and rest <= _WORTH_CUTTING * blocks:
        return tiles - rest, rest, wanted
    return tiles, 0, 1


class Dealt(NamedTuple):
    """Tiles of a result, `down` times `across`, each of `chunks` stretches; how they are shared, by how many blocks.

    Where each tile has two blocks, and these may be a cluster, `cluster` is 2, else 1.
    """

    down: int
    across: int
    chunks: int
    whole: int
    rest: int
    sharers: int
    blocks: int
    cluster: int


@functools.lru_cache(maxsize=1024)
def dealt(m: int, n: int, size: int, tile: Tile, device: torch.device) -> Dealt:
    """How the tiles of `m` tokens and `n` rows of `size` columns are dealt on the device."""
    chunks = -(-size // 128)
    down, across = -(-m // tile.bm), -(-n // tile.bn)
    most = sm_count(device)
    whole, rest, sharers = shares(down * across, chunks, most, tile.blocks)
    blocks = min(most, max(whole, sharers if rest else 0))
    cluster = 2 if tile.cluster > 1 and whole == 0 and sharers == 2 * rest == blocks else 1
    return Dealt(down, across, chunks, whole, rest, sharers, blocks, cluster)


def start(
    x: Tensor, weight: Sequence[Any], bias: Tensor | None, f: Facts, out: Tensor, tile: Tile, cluster: int | None = None
) -> None:
    """Starts the kernel, in clusters of so many blocks; default: as the tile has it there."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from ..kernels.cluster import room_of_halves
    from ..kernels.specialized import specialized as kernel

    codes, scale, zero, shared = weight
    n = codes.shape[0]
    d = dealt(x.shape[0], n, x.shape[1], tile, x.device)
    cluster = d.cluster if cluster is None else cluster
    partial = counters = None
    if cluster > 1 and not getattr(kernel, "clusters", False):
        raise RuntimeError("this version of Triton starts no clusters")
    if d.rest and cluster == 1:
        partial = torch.empty(2 * d.sharers * tile.bn * tile.bm, dtype=torch.float32, device=x.device)
        counters = locks(x.device, 2 * d.rest)
    views = [(x, tile.bm, 64), (out, tile.bm, tile.bn // 2)]
    a, b = (TensorDescriptor.from_tensor(t, [r, c], _layout(r, c, t.dtype)) for t, r, c in views)
    launch(
        kernel, (d.blocks // cluster,), a, codes.view(torch.uint8), raw_scale(scale)[0], zero, shared, bias, b, partial,
        counters, n, d.chunks, scale.shape[-1], d.down, d.across, d.whole, d.rest, d.sharers, KIND=f.kind,
        GROUP=f.group, STAGES=tile.stages, STRIPE=tile.stripe, CLUSTER=cluster,
        EXTRA=room_of_halves(tile.bn, tile.bm) if cluster > 1 else 0, num_warps=4, launch_pdl=True,
    )  # fmt: skip
