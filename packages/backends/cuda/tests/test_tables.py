# SPDX-License-Identifier: Apache-2.0
"""The choice of tiles."""

from __future__ import annotations

import json
import math

import pytest
import torch

from quanto_backend_cuda import tables
from quanto_backend_cuda.ops.weights import KINDS
from quanto_backend_cuda.tables import Tile, nearest, table_for

CPU = torch.device("cpu")
KERNELS = {
    "linear": sorted(KINDS),
    "scaled": ["int8", "int4", "float8_e4m3fn"],
    "stream": ["int8", "int4", "int3", "int2", "nf4"],
    "specialized": ["int8", "int4", "int2", "nf4"],
    "product": ["int8", "float8_e4m3fn"],
}


@pytest.fixture(autouse=True)
def _no_user_table(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("QUANTO_CACHE", str(tmp_path))
    table_for.cache_clear()
    nearest.cache_clear()
    yield
    table_for.cache_clear()
    nearest.cache_clear()


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_shipped_tile_is_one_that_triton_can_make(kernel: str) -> None:
    for name in tables._shipped():
        rows = json.loads(tables._shipped()[name].read_text())
        for key in (k for k in rows if k.startswith(f"{kernel}/")):
            for row in rows[key]:
                t = Tile(**row["tile"])
                assert all(math.log2(v).is_integer() for v in (t.bn, t.bm, t.warps, t.bk))
                few = t.kw * t.bm < 16 and t.kw > 0 and kernel in ("linear", "scaled")
                assert not few, f"{key} {row}: tensor cores take no fewer than 16 columns"
                assert t.bm <= 1 << (row["m"] - 1).bit_length() + 4


@pytest.mark.parametrize("tokens", [1, 7, 16, 33, 300, 5000])
@pytest.mark.parametrize(("n", "k"), [(16, 128), (1024, 4096), (128256, 4096), (8192, 28672)])
def test_every_problem_has_a_tile_whose_splits_are_not_empty(tokens: int, n: int, k: int) -> None:
    for kernel, qtypes in KERNELS.items():
        for qtype in qtypes:
            tile = nearest(kernel, qtype, tokens, n, k, CPU)
            chunks = -(-k // tile.bk)
            splits = tile.splits(tokens, n, chunks) if tile.kw else 1
            units = math.ceil(chunks / max(tile.kw, 1))
            each = math.ceil(units / splits) * max(tile.kw, 1)
            assert splits >= 1
            assert each * (splits - 1) < chunks


def test_unknown_gpu_gets_the_most_similar_one() -> None:
    assert table_for("NVIDIA H100 PCIe") == table_for("NVIDIA H100 80GB HBM3") == table_for("Some New GPU")


def test_the_users_rows_come_first_and_the_shipped_ones_stay() -> None:
    row = {"m": 1, "n": 4096, "k": 4096, "tile": {"bn": 512, "bm": 16}}
    tables.user_table().write_text(json.dumps({"nvidia-h100": {"linear/int4": [row], "linear/mxfp8": [row]}}))
    shipped = table_for("other")
    assert table_for("NVIDIA H100")["linear/int4"] == [row, *shipped["linear/int4"]]
    assert table_for("NVIDIA H100")["linear/mxfp8"] == [row]
    assert table_for("NVIDIA H100")["scaled/int8"] == shipped["scaled/int8"]


def test_what_was_not_measured_is_as_a_like_qtype(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(m: int, bn: int, n: int = 64) -> dict[str, object]:
        return {"m": m, "n": n, "k": 64, "tile": {"bn": bn, "bm": 16}}

    rows = {"linear/int2": [row(1, 16)], "linear/int4": [row(1, 32), row(64, 64, 128), row(64, 128)]}
    monkeypatch.setattr(tables, "table_for", lambda gpu: rows)
    assert nearest("linear", "int2", 1, 64, 64, CPU).bn == 16
    assert nearest("linear", "int2", 60, 64, 64, CPU).bn == 128
    assert nearest("linear", "int2", 60, 128, 64, CPU).bn == 64
    assert nearest("linear", "int3", 1, 64, 64, CPU).bn == 32
    with pytest.raises(LookupError, match="scaled of int2"):
        nearest("scaled", "int2", 1, 64, 64, CPU)


def test_grids_have_room_for_tall_weights() -> None:
    assert Tile(8, 1, 16).within(65535 * 8) == Tile(8, 1, 16)
    assert Tile(8, 1, 16).within(65535 * 8 + 1) == Tile(128, 16)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"a": {"linear/int4": [{"m": 1}]}}', '{"a": {"b": [{"m": 1, "n": 1, "k": 1, "tile": {"x": 1}}]}}'],
)
def test_a_broken_user_table_is_named(text: str) -> None:
    tables.user_table().write_text(text)
    with pytest.raises(ValueError, match=r"cuda-tiles\.json"):
        table_for("NVIDIA H100")


def test_tiles_are_written_without_their_defaults() -> None:
    tile = Tile(16, 2, 8, blocks=264)
    assert tile.to_dict() == {"bn": 16, "bm": 2, "kw": 8, "blocks": 264}
    assert Tile(**tile.to_dict()) == tile


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 9, 16, 17, 33, 64])
@pytest.mark.parametrize(("n", "k"), [(16, 128), (1024, 4096), (4096, 14336), (14336, 4096), (8192, 28672)])
def test_rings_fit_in_the_shared_memory_of_hopper(tokens: int, n: int, k: int) -> None:
    for qtype, row in (("int8", 128), ("float8_e5m2", 128), ("int4", 64), ("nf4", 64), ("int3", 48), ("int2", 32)):
        t = nearest("stream", qtype, tokens, n, k, CPU)
        if t.kw:
            assert t.bm >= tokens, f"{qtype}: the weight is read more than once"
            scales = 2 * (2 if qtype == "nf4" else 1)
            assert t.stages * t.kw * (t.bn * (row + scales) + t.bm * 256) + t.bn * t.bm * 4 * (t.kw > 1) <= 227 << 10
    for qtype in ("int8", "float8_e4m3fn", "float8_e5m2"):
        t = nearest("product", qtype, 129 + tokens, n, k, CPU)
        assert t.stages * (t.bn + t.bm) * 128 + t.bm * min(t.bn, 16384 // t.bm) * 2 + 1024 <= 227 << 10


def test_clusters_have_as_many_blocks_as_are_wanted_each_with_work() -> None:
    tile = Tile(128, 16, blocks=264, cluster=8)
    assert tile.clustered(16, 4096, 32) == 8
    assert tile.clustered(16, 14336, 32) == 2
    assert tile.clustered(16, 6144, 32) == 4
    assert tile.clustered(16, 28672, 32) == 1, "tiles enough"
    assert tile.clustered(16, 1024, 32) == 8, "no more than a cluster has"
    assert tile.clustered(16, 4096, 1) == 1, "nothing to share"
    assert tile.clustered(16, 4096, 9) == 1, "eight blocks, of which three would have nothing"
    assert Tile(128, 16, blocks=264).clustered(16, 4096, 32) == 1
    assert Tile(128, 16, blocks=264, cluster=0).clustered(16, 4096, 32) == 1, "a table may be written by hand"
    assert Tile(128, 16, blocks=264, cluster=2).clustered(16, 14336, 32) == 2
