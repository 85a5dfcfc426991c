# SPDX-License-Identifier: Apache-2.0
"""Which tile a kernel runs with: tables of measured problems, and the nearest one to the problem at hand.

A table is a JSON file of `quanto_backend_cuda/configs`, named after the GPU; `quanto tune` writes one for this machine,
which then comes first. Nothing is tuned at first use.
"""

from __future__ import annotations

import functools
import json
import math
import os
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

__all__ = ["Tile", "gpu_name", "nearest", "read_user_table", "slug", "table_for", "user_table"]

#: whose table serves qtypes that have none.
_LIKE = {
    "float8_e5m2": "float8_e4m3fn",
    "float8_e4m3fn": "int8",
    "mxfp8": "int8",
    "mxfp4": "nf4",
    "nvfp4": "nf4",
    "fp4": "nf4",
    "nf4": "int4",
    "int3": "int4",
    "int2": "int4",
    "int8": "int4",
}


# The second and third size of a grid of CUDA.
_GRID = 65535


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut.

    Attributes:
        bn, bm: rows of the weight and tokens per block of threads.
        kw: stretches of the input dimension per tile (few tokens); 0: another kernel, or cuBLAS, is faster.
        warps, stages: of Triton.
        blocks: how many blocks of threads the GPU should get; the input dimension is split until it has them.
        on_weight: scale the weight instead of the product.
        swap, bk: of the product of two quantized operands.
        tma: read tiles through tensor descriptors.
        ahead: pieces of the weight (tiles of 16 x 128, or 512 bytes of a row) to fetch into the L2 while the kernel
            before still runs; a power of two.
        cluster: the most blocks of threads that share a tile as a cluster; 1: they do so through memory.
        stripe: tiles of tokens whose blocks are neighbours, where tiles are dealt in stripes.
    """

    bn: int
    bm: int
    kw: int = 1
    warps: int = 4
    stages: int = 4
    blocks: int = 0
    on_weight: bool = False
    swap: bool = False
    bk: int = 128
    tma: bool = False
    ahead: int = 0
    stripe: int = 8
    cluster: int = 1

    def to_dict(self) -> dict[str, Any]:
        """What is not the default, as tables have it; the two sizes always."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if name in ("bn", "bm") or value != _DEFAULTS[name]}

    def within(self, n: int) -> Tile:
        """This tile, or one so tall that a grid has room for `n` rows of a weight."""
        return self if -(-n // self.bn) <= _GRID else replace(self, bn=128, kw=1, bm=max(self.bm, 16), ahead=0)

    @property
    def elsewhere(self) -> bool:
        """Whether another kernel, or cuBLAS, is faster there."""
        return self.kw == 0

    def splits(self, m: int, n: int, chunks: int) -> int:
        """Pieces of the input dimension: enough for `blocks` blocks of threads, none of them empty."""
        tiles = -(-n // self.bn) * -(-m // self.bm)
        units = -(-chunks // self.kw)
        want = max(1, min(round(self.blocks / tiles), units, 64))
        each = -(-units // want)
        return -(-units // each)

    def clustered(self, m: int, n: int, chunks: int) -> int:
        """Blocks of threads of the cluster that shares a tile: at most those wanted for it, each with work; or 1."""
        tiles = -(-n // self.bn) * -(-m // self.bm)
        units = -(-chunks // self.kw)
        want = min(round(self.blocks / tiles), units)
        if self.cluster < 2 or want < 2:
            return 1
        size = min(1 << (want.bit_length() - 1), self.cluster)
        return size if -(-units // -(-units // size)) == size else 1


_DEFAULTS = {f.name: f.default for f in fields(Tile)}


def user_table() -> Path:
    """Where `quanto tune` writes."""
    base = os.environ.get("QUANTO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quanto"
    return Path(base) / "cuda-tiles.json"


def slug(name: str) -> str:
    """A GPU's name as a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _shipped() -> dict[str, Any]:
    folder = files(__package__) / "configs"
    return {f.name.removesuffix(".json"): f for f in folder.iterdir() if f.name.endswith(".json")}


@functools.cache
def table_for(gpu: str) -> dict[str, list[dict[str, Any]]]:
    """The rows for a GPU by kernel and qtype: its own, else those of the GPU whose name shares most words with it."""
    words = set(slug(gpu).split("-"))
    shipped = _shipped()
    ranked = sorted(shipped, key=lambda s: (-len(words & set(s.split("-"))), s))
    rows: dict[str, list[dict[str, Any]]] = json.loads(shipped[ranked[0]].read_text()) if ranked else {}
    mine = user_table()
    found = read_user_table(mine).get(slug(gpu), {})
    return {**rows, **{key: [*first, *rows.get(key, [])] for key, first in found.items()}}


def read_user_table(path: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What `quanto tune` wrote: rows by GPU and by kernel and qtype; nothing if there is no such file.

    Raises:
        ValueError: if the file holds something else, naming it.
    """
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(path.read_text(encoding="utf-8"))
        for rows in (rows for keys in found.values() for rows in keys.values()):
            for row in rows:
                Tile(**row["tile"]), math.log2(row["m"]), math.log2(row["n"]), math.log2(row["k"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a table of tiles ({error}); delete it, or run quanto tune again") from error
    return found


def _chain(rows: dict[str, list[dict[str, Any]]], kernel: str, qtype: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a kernel and qtype, then, of higher rank, those of qtypes that serve where it was not measured."""
    found: list[tuple[int, dict[str, Any]]] = []
    name: str | None = qtype
    rank = 0
    while name is not None:
        found += [(rank, row) for row in rows.get(f"{kernel}/{name}", [])]
        name, rank = _LIKE.get(name), rank + 1
    return found


@functools.cache
def gpu_name(index: int) -> str:
    """What the driver calls a GPU."""
    return torch.cuda.get_device_name(index)


@functools.lru_cache(maxsize=4096)
def nearest(kernel: str, qtype: str, m: int, n: int, k: int, device: torch.device) -> Tile:
    """The tile measured best for the nearest problem.

    Args:
        kernel: `"linear"`, `"stream"`, `"specialized"`, `"scaled"` or `"product"`.
        qtype: of the weight.
        m, n, k: tokens, rows and columns; m is rounded up to a power of two, so that few kernels are compiled.
        device: where it runs.
    """
    rows = table_for(gpu_name(device.index or 0) if device.type == "cuda" else "")
    known = _chain(rows, kernel, qtype)
    if not known:
        raise LookupError(f"no configuration for {kernel} of {qtype}")
    m = 1 << (m - 1).bit_length()

    def distance(ranked: tuple[int, dict[str, Any]]) -> tuple[float, int, float]:
        rank, row = ranked
        return abs(math.log2(row["m"] / m)), rank, abs(math.log2(row["n"] / n)) + abs(math.log2(row["k"] / k))

    _, best = min(known, key=distance)
    return Tile(**best["tile"]).within(n)
