# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels in other processes, while this one measures those that are ready."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterable
from concurrent import futures

import torch

from ..runtime import compiling
from ..tables import Tile
from .problem import Operands, Problem

__all__ = ["Ahead", "compile_tile"]


class Ahead:
    """A pool that fills Triton's cache; `ready` waits for one tile."""

    def __init__(self, device: torch.device, workers: int | None = None) -> None:
        self._device = device
        count = max(1, min(16, (os.cpu_count() or 2) - 1)) if workers is None else workers
        self._pool = futures.ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
        self._jobs: dict[tuple[Problem, Tile], futures.Future[str]] = {}

    def submit(self, problem: Problem, tiles: Iterable[Tile]) -> None:
        """Compiles them one day; in the order of the calls."""
        for tile in tiles:
            self._jobs[problem, tile] = self._pool.submit(compile_tile, problem, tile, str(self._device))

    def ready(self, problem: Problem, tile: Tile, seconds: float) -> str | None:
        """Waits; returns why it can't be compiled, "" if it can, None if it took longer."""
        try:
            return self._jobs[problem, tile].result(timeout=max(seconds, 0))
        except futures.TimeoutError:  # TimeoutError itself from Python 3.11 on
            return None
        except futures.BrokenExecutor:
            return ""  # measuring compiles then, and says what is wrong

    def close(self) -> None:
        """Drops what was not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@functools.lru_cache(maxsize=2)
def _operands(problem: Problem, device: str) -> Operands:
    return problem.shapes(torch.device(device))


def compile_tile(problem: Problem, tile: Tile, device: str) -> str:
    """Compiles the kernel of a tile; returns why that failed, or ""."""
    try:
        with torch.cuda.device(device):
            with compiling() as work:
                _operands(problem, device).call(tile)
            for compile_one in work:
                compile_one()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
