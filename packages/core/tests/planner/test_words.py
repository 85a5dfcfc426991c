# SPDX-License-Identifier: Apache-2.0
"""A plan in words: every layer with what it gets, and the trade-off with marks where the losses are."""

from __future__ import annotations

import math

import quanto
from quanto.planner.allocation import solve
from quanto.planner.plan import Plan
from quanto.planner.sensitivity import Sensitivity

SCHEMES = (quanto.Scheme("int2", group_size=64), quanto.Scheme("int4"), quanto.Scheme("int8"))
BITS = ((2_000, 4_000, 8_000), (20_000, 40_000, 80_000))
LOSSES = ((1e-1, 1e-2, 1e-4), (3.0, 3e-1, 0.0))


def made(choices: tuple[int, ...], per_weight: float | None = 1 / 11_000) -> Plan:
    found = Sensitivity(("a", "layers.1.b"), (1_000, 10_000), SCHEMES, LOSSES, BITS, "nats")
    return Plan(found, choices, solve(BITS, LOSSES), "at most 4 bits per weight", per_weight)


def test_each_layer_says_what_it_gets_and_what_else_would_cost() -> None:
    lines = str(made((0, 1))).splitlines()
    assert lines[0].split() == ["layer", "weights", "planned", "int2", "g64", "int4", "int8"]
    assert lines[1].split() == ["a", "1,000", "int2", "g64", "1.0e-01*", "1.0e-02", "1.0e-04"]
    assert lines[2].split() == ["layers.1.b", "10,000", "int4", "3.0e+00", "3.0e-01*", "0.0e+00"]
    assert lines[3].endswith("losses: nats")


def test_the_chart_has_marks_in_order_of_size_where_the_losses_are() -> None:
    chart = str(made((0, 1))).split("\n\n")[1].splitlines()
    rows = [line for line in chart[1:] if line]
    bits = [
        float(line.replace("int2 g64", "").replace("int4", "").replace("int8", "").split("per weight")[-1].split()[-3])
        for line in rows
    ]
    assert bits == sorted(bits)
    start = chart[0].index("10^")
    plan = next(line for line in rows if line.startswith("this plan"))
    assert plan.endswith("*")
    low, high = -4, 1  # of the least loss above zero and the largest
    place = (math.log10(0.4) - low) / (high - low)
    assert plan.index("*") - start == round(place * 39)
    assert sum(line.endswith("o") for line in rows) == 3
    assert any(line.startswith("planned") for line in rows)
    assert max(map(len, chart)) <= start + 40


def test_a_plan_for_time_has_no_curve() -> None:
    assert "\nplanned" not in str(made((0, 1), None)).split("\n\n")[1]
