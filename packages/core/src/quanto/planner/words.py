# SPDX-License-Identifier: Apache-2.0
"""A plan in plain lines: what each layer gets, and the trade-off as a table with a chart beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["describe"]

_WIDTH = 40  # characters of the chart
_STEP = 0.5  # bits between the points of the planned curve


def describe(plan: Plan) -> str:
    """The layers, then the trade-off, each as aligned lines of ASCII."""
    return "\n".join([*_layers(plan), "", *_tradeoff(plan)])


def _layers(plan: Plan) -> list[str]:
    s = plan.sensitivity
    rows = [("layer", "weights", "planned", *(str(c) for c in s.candidates))]
    for name, count, losses, chosen in zip(s.layers, s.weights, s.losses, plan.choices, strict=True):
        marked = (f"{loss:.1e}{'*' if i == chosen else ' '}" for i, loss in enumerate(losses))
        rows.append((name, f"{count:,}", str(s.candidates[chosen]), *marked))
    return [*_aligned(rows, left=(0, 2)), f"* planned; the columns are losses: {s.convention}"]


def _tradeoff(plan: Plan) -> list[str]:
    """Uniform schemes, the planned curve and the plan by their size; the chart's axis is logarithmic."""
    name = f"this plan: {plan.budget}"
    points = [(bits, loss, f"all as {scheme}", "o") for scheme, bits, loss in plan.uniform()]
    if plan.per_weight is not None:
        sizes = [bits for bits, *_ in points]
        first, last = math.ceil(min(sizes) / _STEP), math.floor(max(sizes) / _STEP)
        planned = [plan.again(bits=n * _STEP) for n in range(first, last + 1)]
        # a curve, not a list of all: what is as large as the plan itself, or as another point, is left out
        points += [(p.bits, p.loss, "planned", ".") for p in planned if abs(p.bits - plan.bits) > _STEP / 4]
    points = sorted([*points, (plan.bits, plan.loss, name, "*")])
    losses = [loss for _, loss, _, _ in points if loss > 0]
    low, high = (math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))) if losses else (0, 1)
    high = max(high, low + 1)
    axis = f"10^{low}".ljust(_WIDTH - len(f"10^{high}")) + f"10^{high}"
    rows = [("", "bits", "loss", axis)]
    for bits, loss, label, mark in points:
        place = (math.log10(loss) - low) / (high - low) if loss > 0 else 0.0
        rows.append((label, f"{bits:.3f}", f"{loss:.4g}", " " * round(place * (_WIDTH - 1)) + mark))
    return _aligned(rows, left=(0, 3))


def _aligned(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Columns two blanks apart, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
