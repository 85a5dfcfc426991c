# SPDX-License-Identifier: Apache-2.0
"""Times candidates in turns, so that a noisy neighbour hits all alike, and keeps the best turn of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .candidate import Built, Candidate
from .ceilings import Reader
from .plan import Plan
from .problem import Problem

__all__ = ["Entrant", "measure"]


@dataclass
class Entrant:
    """A candidate that was built, and what is known about its speed."""

    candidate: Candidate
    built: Built
    per_token: dict[int, float] = field(default_factory=dict)  # seconds a token at the last size, by threads
    error: tuple[float, float] | None = None


@dataclass
class _Turn:
    entrant: Entrant
    calls: list[Callable[[], Any]]
    best: float = float("inf")
    spent: float = 0
    at: int = 0

    def run(self, seconds: float) -> None:
        """One batch: each copy once, or as many as fit in some seconds. One call before it is not counted."""
        expected = self.best if self.best < float("inf") else 0.0
        start = time.perf_counter()
        if expected < 0.05:
            self._next()()
            if not expected:
                expected = time.perf_counter() - start
        count = max(1, min(len(self.calls), int(seconds / max(expected, 1e-7))))
        chosen = [self._next() for _ in range(count)]
        begin = time.perf_counter()
        for call in chosen:
            call()
        end = time.perf_counter()
        self.best = min(self.best, (end - begin) / count)
        self.spent += end - start

    def _next(self) -> Callable[[], Any]:
        self.at = (self.at + 1) % len(self.calls)
        return self.calls[self.at]


@torch.no_grad()
def measure(
    entrants: list[Entrant], problem: Problem, tokens: int, threads: int, plan: Plan, reader: Reader
) -> list[dict[str, Any]]:
    """Rows of results, one for each entrant; the first numbers also give the error of each.

    Bandwidth is read in the same rounds: its best walk is the ceiling of these rows.
    """
    torch.set_num_threads(threads)
    turns, rows, read = [], [], 0.0
    inputs: dict[torch.dtype, Tensor] = {}
    for entrant in entrants:
        candidate = entrant.candidate
        expected = entrant.per_token.get(threads, 0) * tokens
        if expected > plan.slow:
            rows.append(_row(entrant, problem, tokens, threads, None, f"about {expected:.0f} s a call: not measured"))
            continue
        x = inputs.setdefault(candidate.activations, problem.x(tokens, candidate.activations))
        try:
            calls = entrant.built.calls(x, threads)
            if entrant.error is None and tokens > 1:
                entrant.error = _error(entrant.built, x, calls[0]())
        except Exception as error:  # of a peer: its own business, reported
            if candidate.source == "quanto":
                raise
            rows.append(_row(entrant, problem, tokens, threads, None, f"{type(error).__name__}: {error}"[:200]))
            continue
        turns.append(_Turn(entrant, calls))
    for _ in range(plan.rounds_for(tokens)):
        read = max(read, reader.best(threads))
        for turn in turns:
            if turn.spent < plan.budget:
                turn.run(0.15)
    for turn in turns:
        turn.entrant.per_token[threads] = turn.best / tokens
        rows.append(
            _row(turn.entrant, problem, tokens, threads, turn.best, getattr(turn.entrant.built, "remark", ""))
            | {"read_gbs": read / 1e9}
        )
    between = sum(t.entrant.built.nbytes * len(t.calls) for t in turns) + reader.bytes
    return [row | {"mb_between_uses": between >> 20} for row in rows]


def _error(built: Built, x: Tensor, result: Any) -> tuple[float, float]:
    """Root mean square and largest of the error against float64, in units of sqrt(sum(x² w²)) of each output."""
    y, w, wide = built.output(result).double(), built.weight, x.double()
    error = (y - wide @ w.T).abs() / (wide.square() @ w.T.square()).sqrt().clamp_min(1e-30)
    return float(error.square().mean().sqrt()), float(error.max())


def _row(
    entrant: Entrant, problem: Problem, tokens: int, threads: int, seconds: float | None, note: str
) -> dict[str, Any]:
    candidate, error = entrant.candidate, entrant.error or (None, None)
    return {
        "source": candidate.source,
        "name": candidate.name,
        "weights": candidate.weights,
        "compute": candidate.compute,
        "activations": str(candidate.activations).removeprefix("torch."),
        "n": problem.n,
        "k": problem.k,
        "tokens": tokens,
        "threads": threads,
        "us": None if seconds is None else seconds * 1e6,
        "bytes": entrant.built.nbytes,
        "gbs": None if seconds is None else entrant.built.nbytes / seconds / 1e9,
        "gflops": None if seconds is None else 2 * tokens * problem.n * problem.k / seconds / 1e9,
        "error_rms": error[0],
        "error_max": error[1],
        "note": note,
    }
