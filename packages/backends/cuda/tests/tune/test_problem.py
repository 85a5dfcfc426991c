# SPDX-License-Identifier: Apache-2.0
"""Operands to measure with are those of real weights, so that every tile computes the same from them."""

from __future__ import annotations

import pytest
import torch

from quanto_backend_cuda.tables import Tile
from quanto_backend_cuda.tune.problem import Problem
from quanto_backend_cuda.tune.timing import COLD, copies_for


@pytest.mark.parametrize("qtype", ["int4", "int3", "int2", "nf4", "mxfp4", "int8", "float8_e4m3fn", "float8_e5m2"])
def test_tiles_compute_the_same(device: str, qtype: str) -> None:
    problem = Problem("linear", qtype, {"int4": 128, "nf4": 128, "mxfp4": 32}.get(qtype, 0), 2, 32, 384, torch.bfloat16)
    operands = problem.operands(torch.device(device), copies=1)
    results = []
    for tile in (Tile(16, 16, stages=2), Tile(16, 2, 8, stages=2), Tile(16, 16, stages=2, blocks=6)):
        operands.out.fill_(float("nan"))
        operands.call(tile)
        results.append(operands.out.float())
    assert 0.01 < results[0].abs().max() < 100
    for other in results[1:]:
        assert (other - results[0]).abs().max() <= 1e-2 * results[0].abs().max()


@pytest.mark.parametrize("qtype", ["int8", "float8_e4m3fn", "int4"])
def test_tiles_compute_the_same_from_quantized_activations(device: str, qtype: str) -> None:
    problem = Problem("scaled", qtype, 0, 3, 32, 256, torch.bfloat16)
    operands = problem.operands(torch.device(device), copies=2)
    assert len(operands.calls(Tile(16, 16))) == 2
    tiles = [Tile(16, 16, stages=2), Tile(16, 4, 4, stages=2)]
    tiles += [] if qtype == "int4" else [Tile(32, 16, 0, stages=2), Tile(32, 16, 0, stages=2, swap=True)]
    results = []
    for tile in tiles:
        operands.out.fill_(float("nan"))
        operands.call(tile)
        results.append(operands.out.float())
    assert 0.01 < results[0].abs().max() < 100
    for other in results[1:]:
        assert (other - results[0]).abs().max() <= 1e-2 * results[0].abs().max()


def test_copies_fill_the_caches() -> None:
    problem = Problem("linear", "int4", 128, 1, 4096, 4096)
    assert problem.nbytes == 4096 * (2048 + 64)
    assert copies_for(problem.nbytes) * problem.nbytes >= COLD
    assert copies_for(COLD * 4) == 2


def test_names_itself() -> None:
    assert str(Problem("linear", "int4", 128, 1, 64, 128)) == "linear int4 64x128, 1 token"
