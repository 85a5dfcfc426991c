# SPDX-License-Identifier: Apache-2.0
"""The search: the fastest tile that computes the right thing, within its time."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from quanto_backend_cuda.tables import Tile, nearest
from quanto_backend_cuda.tune import search as module
from quanto_backend_cuda.tune.problem import Problem
from quanto_backend_cuda.tune.search import search

CPU = torch.device("cpu")
PROBLEM = Problem("linear", "int4", 128, 1, 32, 128, torch.float16)


class Ready:
    """Everything is compiled, but what `reasons` names."""

    def __init__(self, reasons: dict[Tile, str | None] | None = None) -> None:
        self.reasons = reasons or {}
        self.submitted: list[Problem] = []

    def submit(self, problem, tiles) -> None:
        self.submitted.append(problem)

    def ready(self, problem, tile, seconds) -> str | None:
        return self.reasons.get(tile, "")


class Operands:
    """Stands in for operands on a GPU: the result is whatever `results` says of a tile, else ones."""

    def __init__(self, results: dict[Tile, float] | None = None) -> None:
        self.out = torch.zeros(4)
        self.results = results or {}

    def call(self, tile: Tile) -> None:
        self.out.fill_(self.results.get(tile, 1.0))


TILES = [Tile(16, 16), Tile(32, 16), Tile(64, 16)]


@pytest.fixture
def _three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "candidates", lambda problem: TILES)
    monkeypatch.setattr(Problem, "operands", lambda self, device: Operands({TILES[1]: 3.0}))


@pytest.mark.usefixtures("_three")
def test_takes_the_fastest_and_skips_what_is_wrong_or_does_not_compile() -> None:
    now = nearest("linear", "int4", 1, 32, 128, CPU)
    times = {now: 9.0, TILES[0]: 5.0, TILES[1]: 1.0, TILES[2]: 2.0}  # the second computes something else
    compiled = Ready({TILES[2]: "OutOfResources: too much shared memory"})
    found = list(search([PROBLEM], CPU, 100, compiled, lambda operands, tile, device: times[tile]))
    assert compiled.submitted == [PROBLEM]
    assert len(found) == 1
    assert (found[0].tile, found[0].us, found[0].before) == (TILES[0], 5.0, 9.0)
    assert (found[0].measured, found[0].failed) == (2, 2)
    assert found[0].row() == {"m": 1, "n": 32, "k": 128, "tile": {"bn": 16, "bm": 16}}


@pytest.mark.usefixtures("_three")
def test_tiles_that_are_not_compiled_in_time_do_not_count_as_failed() -> None:
    found = list(search([PROBLEM], CPU, 100, Ready({TILES[0]: None}), lambda operands, tile, device: 1.0))
    assert found[0].failed == 1


@pytest.mark.usefixtures("_three")
def test_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # every look at it takes a second
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    problems = [PROBLEM, Problem("linear", "int4", 128, 2, 32, 128), Problem("linear", "int4", 128, 4, 32, 128)]
    found = list(search(problems, CPU, 9, Ready(), lambda operands, tile, device: 1.0))
    assert 1 <= len(found) < 3


def test_nothing_runs_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(operands, tile, device) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(module, "candidates", lambda problem: TILES)
    monkeypatch.setattr(Problem, "operands", lambda self, device: Operands())
    assert list(search([PROBLEM], CPU, 10, Ready(), broken)) == []
