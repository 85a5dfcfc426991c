# SPDX-License-Identifier: Apache-2.0
"""Finds the best tile of each problem within a bound of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..ops.trial import agrees
from ..tables import Tile, nearest
from .candidates import candidates
from .problem import Operands, Problem
from .timing import replayed

__all__ = ["Found", "search", "time_tile"]


@dataclass(frozen=True)
class Found:
    """What became of a problem.

    Attributes:
        problem: what was measured.
        before: microseconds with the tile that the tables had; None where it does not run.
        tile, us: the best one.
        measured, failed: how many tiles ran, and how many did not compile, not start or compute something else.
    """

    problem: Problem
    before: float | None
    tile: Tile
    us: float
    measured: int
    failed: int

    def row(self) -> dict[str, Any]:
        """As tables have it."""
        p = self.problem
        return {"m": 1 << (p.m - 1).bit_length(), "n": p.n, "k": p.k, "tile": self.tile.to_dict()}


class Compiled(Protocol):
    """`quanto_backend_cuda.tune.compiling.Ahead`, or what stands in for it."""

    def submit(self, problem: Problem, tiles: Sequence[Tile]) -> None: ...

    def ready(self, problem: Problem, tile: Tile, seconds: float) -> str | None: ...


def time_tile(operands: Operands, tile: Tile, device: torch.device) -> float:
    """Microseconds."""
    return replayed(operands.calls(tile), device)


def search(
    problems: Sequence[Problem],
    device: torch.device,
    seconds: float,
    compiled: Compiled,
    measure: Callable[[Operands, Tile, torch.device], float] = time_tile,
) -> Iterator[Found]:
    """Measures the candidates of each problem, and what the tables say first.

    Args:
        problems: in the order of their importance; those that time does not reach are left out.
        device: where they run.
        seconds: the bound; the last measurement may end a little later.
        compiled: compiles ahead.
        measure: microseconds of a tile.

    Yields:
        One result per problem with candidates.
    """
    end = time.monotonic() + seconds
    plan = []
    for problem in problems:
        tiles = candidates(problem)
        if tiles:
            now = nearest(problem.kernel, problem.qtype, problem.m, problem.n, problem.k, device)
            plan.append((problem, now, list(dict.fromkeys([now, *tiles]))))
    for problem, _, tiles in plan:
        compiled.submit(problem, tiles)
    for i, (problem, now, tiles) in enumerate(plan):
        if time.monotonic() >= end:
            return
        share = 1 / (len(plan) - i)
        found = _best(problem, now, tiles, device, (end, share), compiled, measure)
        if found is not None:
            yield found


def _best(
    problem: Problem,
    now: Tile,
    tiles: list[Tile],
    device: torch.device,
    bound: tuple[float, float],
    compiled: Compiled,
    measure: Callable[[Operands, Tile, torch.device], float],
) -> Found | None:
    end, share = bound
    until = end
    operands = problem.operands(device)
    times: dict[Tile, float] = {}
    expected: torch.Tensor | None = None
    failed = 0
    for tile in tiles:
        if times and time.monotonic() >= until:
            break
        reason = compiled.ready(problem, tile, until - time.monotonic())
        if not times:  # the pool has started: what is left is shared from here on
            until = time.monotonic() + (end - time.monotonic()) * share
        if reason is None:
            continue  # not compiled in time
        try:
            if reason:
                raise RuntimeError(reason)
            operands.out.fill_(float("nan"))
            operands.call(tile)
            got = operands.out.clone()
            if expected is not None and agrees(got, expected) is False:
                raise RuntimeError("computes something else")
            times[tile] = measure(operands, tile, device)
            expected = got if expected is None else expected
        except Exception:  # no room for its stages, most likely; a tile that can't run is no tile
            failed += 1
    if not times:
        return None
    best = min(times, key=lambda tile: times[tile])
    return Found(problem, times.get(now), best, times[best], len(times), failed)
