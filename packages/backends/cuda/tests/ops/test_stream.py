# SPDX-License-Identifier: Apache-2.0
"""The kernel for few tokens: what it takes, and when a weight is read behind an ordinary kernel."""

from __future__ import annotations

import copy
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import stream
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.ops.weights import facts
from quanto_backend_cuda.tables import Tile


@pytest.mark.parametrize(
    ("qtype", "options", "size", "taken"),
    [
        ("int4", {"symmetric": True}, 512, True),
        ("int4", {"symmetric": False}, 512, True),
        ("nf4", {}, 512, True),
        ("int8", {}, 512, True),
        ("int8", {}, 320, False),  # whole stretches of 128 columns
        ("int4", {"group_size": 32}, 512, False),
        ("int3", {}, 512, True),
        ("int2", {"symmetric": False}, 512, True),
        ("mxfp4", {}, 512, False),
        ("int8", {"symmetric": False}, 512, False),
    ],
)
def test_takes(qtype: str, options: dict[str, Any], size: int, taken: bool) -> None:
    w = quanto.quantize_tensor(torch.randn(16, size, dtype=torch.bfloat16), qtype, **options)
    f = facts(qtype, list(w.block_size), size)
    assert stream.takes(f, size, torch.bfloat16, w.zero_point, w.scale) is taken
    assert not stream.takes(f, size, torch.float32, w.zero_point, w.scale)


def test_weights_are_settled_once_for_each_version() -> None:
    out = torch.ones(1, 16)

    def settled(codes: torch.Tensor, scale: torch.Tensor) -> bool:
        out.fill_(1)
        stream.settle(out, codes, scale, None)
        return bool((out == 0).all())

    codes, scale = torch.zeros(16, 64, dtype=torch.uint8), torch.ones(16, 1)
    assert settled(codes, scale)
    assert not settled(codes, scale)
    codes += 1
    assert settled(codes, scale)
    scale *= 2
    assert settled(codes, scale), "the scales are read ahead, too"
    assert not settled(codes, scale)
    assert settled(copy.deepcopy(codes), scale), "another tensor"
    gc.collect()
    count = len(stream._seen)
    del codes
    gc.collect()
    assert len(stream._seen) == count - 1


@pytest.fixture
def problem(device: str) -> Any:
    """16 tokens, a tiled weight, its block, and the result."""
    w = quanto.quantize_tensor(torch.randn(256, 512, dtype=torch.bfloat16, device=device), "int8")
    weight = TILED.pack((w.codes, w.scale, w.zero_point, None), "int8", w.block_size, 512)
    x = torch.randn(16, 512, dtype=torch.bfloat16, device=device)
    return x, weight, list(w.block_size), x @ w.dequantize(torch.bfloat16).t()


@pytest.mark.parametrize(("qtype", "options"), [("int4", {"symmetric": True}), ("int8", {}), ("mxfp4", {})])
def test_what_one_token_wants_is_prepared_as_a_weight_is_tiled(
    qtype: str, options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[Any] = []
    trial = Trial("tests")
    monkeypatch.setattr(trial, "serves", lambda device: True)
    monkeypatch.setattr(trial, "prepare", lambda kind, start, device: kinds.append(kind))
    monkeypatch.setattr(trial, "run", lambda kind, *_: kinds.append(kind) or True)
    monkeypatch.setattr(stream, "TRIAL", trial)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    w = quanto.quantize_tensor(torch.randn(256, 512, dtype=torch.bfloat16, device=device), qtype, **options)
    block = list(w.block_size)
    weight = TILED.pack((w.codes, w.scale, w.zero_point, None), qtype, w.block_size, 512)
    kinds.clear()
    stream.prepare(weight, qtype, block, 512)
    if qtype == "mxfp4":  # which the kernel does not take
        assert kinds == []
        return
    x = torch.randn(1, 512, dtype=torch.bfloat16, device=device)
    assert stream.stream(x, weight, None, facts(qtype, block, 512), x.new_empty(1, 256), qtype, block)
    assert len(kinds) == 2
    assert kinds[0] == kinds[1]


def test_without_clusters_the_same_tiles_run(
    problem: Any, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said once, at the line that called."""
    x, weight, block, right = problem
    tried = []

    def start(*given: Any) -> None:
        out, tile, cluster = given[-3:]
        tried.append((tile.cluster, cluster))
        if cluster > 1:
            raise RuntimeError("this version of Triton starts no clusters")
        out.copy_(right)

    monkeypatch.setattr(Trial, "serves", lambda self, device: not self.refused)
    monkeypatch.setattr(stream, "TRIAL", Trial("tests"))
    monkeypatch.setattr(stream, "CLUSTERS", Trial("tests, in clusters,"))
    monkeypatch.setattr(stream, "nearest", lambda *_: Tile(128, 16, blocks=8, cluster=2))
    monkeypatch.setattr(stream, "start", start)
    for _ in range(3):
        out = torch.full_like(right, float("nan"))
        assert stream.stream(x, weight, None, facts("int8", block, 512), out, "int8", block)
        assert torch.equal(out, right)
    assert tried[0] == (2, 2)
    assert set(tried[1:]) == {(1, 1)}, "never again in clusters"
    assert [(Path(said.filename), "no clusters" in str(said.message)) for said in recwarn] == [(Path(__file__), True)]


def test_every_split_has_work() -> None:
    for chunks in (1, 9, 32, 112, 224):
        for tile in (Tile(8, 1, 8), Tile(64, 16, blocks=528), Tile(128, 16, blocks=264)):
            splits = tile.splits(1, 4096, chunks)
            each = math.ceil(math.ceil(chunks / tile.kw) / splits) * tile.kw
            assert (splits - 1) * each < chunks <= splits * each
