# SPDX-License-Identifier: Apache-2.0
"""One choice for each layer under a budget: the multiple-choice knapsack problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Curve", "solve"]

_UNITS = 2**15  # steps of the budget; a layer's cost is rounded up to the next, what that leaves is spent afterwards
_CHOICES = torch.iinfo(torch.int8).max


@dataclass(frozen=True)
class Curve:
    """The least loss for every budget, by dynamic programming over `_UNITS` steps of it.

    Attributes:
        costs: `costs[layer][choice]`.
        losses: `losses[layer][choice]`.
        unit: cost of a step.
        least: float64 `[steps]`, the least loss within that many steps; infinite where nothing fits.
        picks: int8 `[layers, steps]`, the choice of each layer at the optimum of the layers up to it.
    """

    costs: tuple[tuple[float, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    unit: float
    least: Tensor
    picks: Tensor

    def within(self, budget: float) -> list[int]:
        """The choices of least loss that cost no more than the budget.

        Raises:
            ValueError: if no choices do.
        """
        cheapest = sum(map(min, self.costs))
        if budget < cheapest:
            raise ValueError(f"the cheapest choices cost {cheapest:.6g}, the budget is {budget:.6g}")
        step = min(int(budget / self.unit), len(self.least) - 1)
        starts = [[row.index(min(row)) for row in self.costs]]
        if math.isfinite(self.least[step]):
            starts.append(self._trace(step))
        # A budget that is exactly the cost of equal choices is missed where costs are rounded up.
        starts += [[i] * len(self.costs) for i in range(min(map(len, self.costs)))]
        fitting = [self._spend(s, budget) for s in starts if _sum(self.costs, s) <= budget]
        return min(fitting, key=lambda choices: _sum(self.losses, choices))

    def reaching(self, loss: float) -> list[int]:
        """The cheapest choices that lose no more.

        Raises:
            ValueError: if no choices do.
        """
        least = sum(map(min, self.losses))
        if loss < least:
            raise ValueError(f"the least loss of these candidates is {least:.6g}, the budget is {loss:.6g}")
        fits = (self.least <= loss).nonzero().flatten()
        return self._trace(int(fits[0])) if len(fits) else [row.index(min(row)) for row in self.losses]

    def points(self, count: int = 200) -> list[tuple[float, float]]:
        """Cost and loss along the curve."""
        steps = torch.linspace(0, len(self.least) - 1, count).long().unique().tolist()
        return [(s * self.unit, self.least[s].item()) for s in steps if math.isfinite(self.least[s])]

    def _trace(self, step: int) -> list[int]:
        choices = []
        for layer in range(len(self.costs) - 1, -1, -1):
            choice = int(self.picks[layer, step])
            choices.append(choice)
            step -= _steps(self.costs[layer][choice], self.unit)
        return choices[::-1]

    def _spend(self, choices: list[int], budget: float) -> list[int]:
        """Spends what rounding up has left, where it saves most for its cost."""
        choices = list(choices)
        left = budget - _sum(self.costs, choices)
        while True:
            best, gain = None, 0.0
            for layer, now in enumerate(choices):
                for choice, (cost, loss) in enumerate(zip(self.costs[layer], self.losses[layer], strict=True)):
                    saved, more = self.losses[layer][now] - loss, cost - self.costs[layer][now]
                    if saved > 0 and more <= left and saved / max(more, self.unit * 1e-3) > gain:
                        best, gain = (layer, choice, more), saved / max(more, self.unit * 1e-3)
            if best is None:
                return choices
            choices[best[0]], left = best[1], left - best[2]


def solve(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> Curve:
    """Solves for all budgets at once.

    Args:
        costs: positive, for each layer those of its choices; at most 127 of them.
        losses: alike.

    Raises:
        ValueError: if the shapes differ, there are more choices, or a number is not finite.
    """
    if (
        len(costs) != len(losses)
        or not costs
        or any(len(c) != len(v) or not c for c, v in zip(costs, losses, strict=True))
    ):
        raise ValueError("costs and losses must have one number for each choice of each layer")
    if not all(math.isfinite(n) for row in (*costs, *losses) for n in row) or any(n < 0 for row in costs for n in row):
        raise ValueError("costs and losses must be finite, and costs not negative")
    if max(map(len, costs)) > _CHOICES:
        raise ValueError(f"at most {_CHOICES} choices for a layer, got {max(map(len, costs))}")
    unit = sum(map(max, costs)) / _UNITS or 1.0
    size = _UNITS + len(costs) + 1
    least = torch.zeros(size, dtype=torch.float64)
    picks = torch.zeros(len(costs), size, dtype=torch.int8)
    for layer, (prices, damages) in enumerate(zip(costs, losses, strict=True)):
        following = torch.full_like(least, torch.inf)
        for choice, (price, damage) in enumerate(zip(prices, damages, strict=True)):
            shift = _steps(price, unit)
            reached = torch.full_like(least, torch.inf)
            reached[shift:] = least[: size - shift] + damage
            better = reached < following
            picks[layer][better] = choice
            following = torch.where(better, reached, following)
        least = following
    return Curve(tuple(map(tuple, costs)), tuple(map(tuple, losses)), unit, least, picks)


def _sum(table: Sequence[Sequence[float]], choices: Sequence[int]) -> float:
    return sum(row[c] for row, c in zip(table, choices, strict=True))


def _steps(cost: float, unit: float) -> int:
    return math.ceil(cost / unit - 1e-9)
