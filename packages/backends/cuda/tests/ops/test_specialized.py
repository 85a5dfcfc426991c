# SPDX-License-Identifier: Apache-2.0
"""The kernel for many tokens: how its tiles are dealt, what it takes, and that no Triton can make it wrong unseen."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import specialized
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.ops.weights import facts
from quanto_backend_cuda.tables import Tile

SIZES = [(112, 32, 132, 132), (64, 224, 132, 132), (448, 32, 132, 132), (1792, 32, 132, 132), (1, 1, 132, 132),
         (132, 8, 132, 132), (133, 1, 132, 132), (5, 3, 4, 0), (7, 40, 1, 132)]  # fmt: skip


class Block:
    """What a kernel asks of its language, for one block of threads."""

    def __init__(self, index: int, count: int) -> None:
        self.program_id, self.num_programs, self.minimum = lambda axis: index, lambda axis: count, min
        self.where = lambda condition, yes, no: yes if condition else no


@pytest.mark.parametrize(("tiles", "chunks", "blocks", "wanted"), SIZES)
def test_every_stretch_of_every_tile_has_one_block(
    tiles: int, chunks: int, blocks: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quanto_backend_cuda.kernels import pieces as kernels

    whole, rest, sharers = specialized.shares(tiles, chunks, blocks, wanted)
    assert whole + rest == tiles
    assert sharers <= blocks
    done: Counter[tuple[int, int]] = Counter()
    slots: dict[int, set[int]] = {}
    for p in range(blocks):
        monkeypatch.setattr(kernels, "gl", Block(p, blocks))
        for j in range(kernels.pieces.fn(whole, rest, sharers, chunks)):
            tile, begin, end = kernels.piece.fn(j, whole, rest, sharers, chunks)
            assert 0 <= begin < end <= chunks
            done.update((tile, c) for c in range(begin, end))
            if end - begin < chunks:  # where its sums lie until the last block adds them
                mine = tile - whole
                slots.setdefault(tile, set()).add(2 * p + mine - p * rest * chunks // sharers // chunks)
    assert done == Counter({(tile, c): 1 for tile in range(tiles) for c in range(chunks)})
    for tile, mine in slots.items():
        units, nth = rest * chunks, tile - whole
        first, last = (nth * chunks * sharers + sharers - 1) // units, ((nth + 1) * chunks * sharers - 1) // units
        assert mine == {2 * p + nth - p * units // sharers // chunks for p in range(first, last + 1)}


def test_tiles_are_cut_where_that_pays() -> None:
    assert specialized.shares(64, 224, 132, 132) == (0, 64, 128), "two blocks at each of a few tiles"
    assert specialized.shares(112, 32, 132, 132) == (112, 0, 1), "most of the GPU is busy: nobody shares"
    assert specialized.shares(448, 32, 132, 132) == (396, 52, 104)
    assert specialized.shares(1792, 32, 132, 132) == (1716, 76, 132), "uneven parts, where many blocks would idle"
    assert specialized.shares(512, 32, 132, 132) == (512, 0, 1)


def test_shared_tiles_are_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a layer of another shape meets with the same tile."""
    monkeypatch.setattr(specialized, "sm_count", lambda device: 132)
    tile, meta = Tile(128, 256, blocks=132), torch.device("meta", 7)
    alone, shared = (
        specialized.dealt(m, n, k, tile, meta) for m, n, k in ((1024, 14336 // 2, 4096), (1024, 2048, 28672))
    )
    assert alone.rest == 0
    assert shared.rest > 0
    f = facts("int4", [1, 128], 4096)
    kinds = set()
    for n, k in ((7168, 4096), (2048, 28672)):
        x, out = torch.empty(1024, k, device=meta, dtype=torch.half), torch.empty(1024, n, device=meta)
        kinds.add(specialized._kind(x, (x, x, None, None), None, f, out, tile, 1))
    assert len(kinds) == 2


def test_clusters_are_of_two_blocks_at_each_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specialized, "sm_count", lambda device: 132)
    tile, meta = Tile(128, 128, blocks=132, cluster=2), torch.device("meta", 8)
    for m, k, size, why in (
        (256, 4096, 2, "64 tiles"),
        (256, 4000, 2, "the halves need not be equal"),
        (256, 128, 1, "nothing to share"),
        (128, 4096, 1, "four blocks at each"),
        (512, 4096, 1, "most of the GPU is busy: nobody shares"),
    ):
        assert specialized.dealt(m, 4096, k, tile, meta).cluster == size, why
    assert specialized.dealt(256, 4096, 4096, Tile(128, 128, blocks=132), meta).cluster == 1
    # a cluster is what Triton starts side by side: its blocks have the same tile
    d = specialized.dealt(256, 4096, 4096, tile, meta)
    from quanto_backend_cuda.kernels import pieces as kernels

    for p in range(d.blocks):
        monkeypatch.setattr(kernels, "gl", Block(p, d.blocks))
        assert kernels.pieces.fn(d.whole, d.rest, d.sharers, d.chunks) == 1
        assert kernels.piece.fn(0, d.whole, d.rest, d.sharers, d.chunks)[0] == p // 2


@pytest.mark.parametrize(
    ("qtype", "options", "size", "taken"),
    [
        ("int4", {"symmetric": True}, 512, True),
        ("int4", {"symmetric": False}, 512, True),
        ("nf4", {}, 512, True),
        ("int8", {}, 264, True),
        ("int8", {}, 260, False),  # the copy engine wants rows of a multiple of 16 bytes
        ("int4", {"group_size": 32}, 512, False),
        ("int3", {}, 512, False),
        ("mxfp4", {}, 512, False),
        ("int8", {"symmetric": False}, 512, False),
    ],
)
def test_takes(qtype: str, options: dict[str, Any], size: int, taken: bool) -> None:
    w = quanto.quantize_tensor(torch.randn(16, size, dtype=torch.bfloat16), qtype, **options)
    f = facts(qtype, list(w.block_size), size)
    assert specialized.takes(f, size, torch.bfloat16, w.zero_point, w.scale) is taken
    assert not specialized.takes(f, size, torch.float32, w.zero_point, w.scale)


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch, device: str) -> Any:
    monkeypatch.setattr(specialized, "TRIAL", Trial("many tokens", postpones=True))
    w = quanto.quantize_tensor(torch.randn(32, 128, device=device).half(), "int4")
    tensors = TILED.pack((w.codes, w.scale, w.zero_point, None), "int4", w.block_size, 128)
    x = torch.randn(70, 128, device=device).half()
    f = facts("int4", list(w.block_size), 128)
    right = x @ w.dequantize(torch.float16).t()

    def call(answer: torch.Tensor | Exception) -> tuple[bool, torch.Tensor]:
        def start(*arguments: Any) -> None:
            if isinstance(answer, Exception):
                raise answer
            arguments[4].copy_(answer)

        monkeypatch.setattr(specialized, "start", start)
        out = torch.full((70, 32), float("nan"), device=device).half()
        return specialized.specialized(x, tensors, None, f, out, "int4", list(w.block_size)), out

    def same(got: torch.Tensor, want: torch.Tensor) -> bool:
        return bool(((got - want).abs() <= 2e-3 * want.abs().max()).all())

    return SimpleNamespace(call=call, right=right, same=same)


def test_the_first_call_is_answered_while_the_kernel_compiles(problem: Any) -> None:
    taken, out = problem.call(problem.right + 1)
    assert taken
    assert problem.same(out, problem.right)
    assert not specialized.TRIAL.checked


def test_a_right_call_is_believed(problem: Any, recwarn: pytest.WarningsRecorder) -> None:
    for _ in range(2):
        assert problem.call(problem.right)[0]
    taken, out = problem.call(problem.right + 1)
    assert taken, "only one call is compared"
    assert (out == problem.right + 1).all()
    assert not recwarn.list


def test_a_wrong_call_is_the_last(problem: Any) -> None:
    wrong = problem.right.clone()
    wrong[-1, -1] += problem.right.abs().max()
    problem.call(wrong)
    with pytest.warns(UserWarning, match="computes something else for int4 of 32x128 and 70 tokens"):
        assert not problem.call(wrong)[0]
    assert specialized.TRIAL.refused


def test_what_triton_refuses_is_said_once(problem: Any) -> None:
    error = AttributeError("at 1:2\nno async_load")
    assert problem.call(error)[0], "the first call has its answer all the same"
    with pytest.warns(UserWarning, match="Triton refuses it: AttributeError: no async_load"):
        assert not problem.call(error)[0]
    assert specialized.TRIAL.refused
