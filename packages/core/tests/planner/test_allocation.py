# SPDX-License-Identifier: Apache-2.0
"""The knapsack against trying everything."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quanto.planner.allocation import solve

NUMBERS = st.floats(0.01, 10)
LAYERS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=3), min_size=1, max_size=4)


def price(table: list[list[float]], choices: tuple[int, ...] | list[int]) -> float:
    return sum(row[c] for row, c in zip(table, choices, strict=True))


@settings(max_examples=40, deadline=None)
@given(LAYERS, st.floats(0, 1))
def test_optimal_up_to_the_resolution(layers: list[list[tuple[float, float]]], share: float) -> None:
    costs = [[c for c, _ in layer] for layer in layers]
    losses = [[v for _, v in layer] for layer in layers]
    low, high = sum(map(min, costs)), sum(map(max, costs))
    budget = low + share * (high - low) + 1e-9
    curve = solve(costs, losses)
    every = list(itertools.product(*(range(len(row)) for row in costs)))
    found = curve.within(budget)
    assert price(costs, found) <= budget
    tight = budget - curve.unit * len(costs)  # each layer is rounded up by less than a step
    best = min((price(losses, c) for c in every if price(costs, c) <= tight), default=math.inf)
    assert price(losses, found) <= best + 1e-9


@settings(max_examples=40, deadline=None)
@given(LAYERS, st.floats(0, 1))
def test_cheapest_for_a_loss(layers: list[list[tuple[float, float]]], share: float) -> None:
    costs = [[c for c, _ in layer] for layer in layers]
    losses = [[v for _, v in layer] for layer in layers]
    low, high = sum(map(min, losses)), sum(map(max, losses))
    limit = low + share * (high - low) + 1e-9
    curve = solve(costs, losses)
    found = curve.reaching(limit)
    assert price(losses, found) <= limit + 1e-9
    every = itertools.product(*(range(len(row)) for row in costs))
    best = min(price(costs, c) for c in every if price(losses, c) <= limit)
    assert price(costs, found) <= best + curve.unit * len(costs) + 1e-9


def test_the_curve_falls() -> None:
    points = solve([[1, 2, 4], [1, 3, 9]], [[9, 3, 1], [8, 2, 0]]).points(50)
    assert [loss for _, loss in points] == sorted((loss for _, loss in points), reverse=True)
    assert points[-1][1] == 1


@pytest.mark.parametrize(
    ("costs", "losses", "message"),
    [
        ([], [], "one number"),
        ([[1]], [[1, 2]], "one number"),
        ([[1]], [[math.nan]], "finite"),
        ([[-1]], [[1]], "not neg"),
        ([[1] * 128], [[1] * 128], "at most 127 choices"),
    ],
)
def test_bad_tables(costs: list[list[float]], losses: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(costs, losses)


def test_budgets_that_nothing_meets() -> None:
    curve = solve([[1, 2]], [[2, 1]])
    with pytest.raises(ValueError, match=r"cheapest choices cost 1, the budget is 0\.5"):
        curve.within(0.5)
    with pytest.raises(ValueError, match="least loss"):
        curve.reaching(0.5)
