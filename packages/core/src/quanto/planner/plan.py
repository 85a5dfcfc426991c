# SPDX-License-Identifier: Apache-2.0
"""`plan`: rules for `quanto.quantize` that spend a budget where it counts."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..eval.picture import curve
from ..scheme import Rule, Scheme
from .allocation import Curve, solve
from .fisher import Objective
from .layers import find_layers
from .sensitivity import Sensitivity, sensitivity
from .speed import layer_seconds
from .words import describe

__all__ = ["CANDIDATES", "Plan", "plan"]

#: what a layer may become where the caller does not say
CANDIDATES: tuple[Scheme, ...] = (
    Scheme("int2", group_size=64),
    Scheme("int3"),
    Scheme("int4"),
    Scheme("int4", group_size=32),
    Scheme("int8"),
)


@dataclass(frozen=True)
class Plan:
    """Which layer gets which scheme; printing it gives each layer's losses and the trade-off, with a chart.

    Attributes:
        sensitivity: what was measured.
        choices: index of the candidate of each layer.
        tradeoff: the least loss for every budget.
        budget: in words.
        per_weight: cost of the curve to bits per weight; None where the budget is one of time.
    """

    sensitivity: Sensitivity
    choices: tuple[int, ...]
    tradeoff: Curve
    budget: str
    per_weight: float | None = None

    @property
    def rules(self) -> list[Rule]:
        """For `quanto.quantize(model, rules=plan.rules)`, one for each layer."""
        s = self.sensitivity
        return [
            Rule(glob.escape(name), s.candidates[choice]) for name, choice in zip(s.layers, self.choices, strict=True)
        ]

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales and zero points included."""
        return sum(row[c] for row, c in zip(self.sensitivity.bits, self.choices, strict=True)) / self._weights

    @property
    def loss(self) -> float:
        """The sum of the layers' losses: what is expected, not what was measured together."""
        return sum(row[c] for row, c in zip(self.sensitivity.losses, self.choices, strict=True))

    @property
    def _weights(self) -> int:
        return sum(self.sensitivity.weights)

    def again(self, *, bits: float) -> Plan:
        """The plan for another average of bits, from the same measurements.

        Raises:
            ValueError: if this plan's budget is one of time, or no choice of candidates is within the new one.
        """
        if self.per_weight is None:
            raise ValueError("a plan for time has no curve of bits; call quanto.plan(…, cache=…) again")
        choices = self.tradeoff.within(bits * self._weights)
        return replace(self, choices=tuple(choices), budget=f"at most {bits:.4g} bits per weight")

    def uniform(self) -> list[tuple[Scheme, float, float]]:
        """For each candidate, as if all layers got it: itself, bits per weight and loss."""
        s = self.sensitivity
        sums = [(sum(row[i] for row in s.bits), sum(row[i] for row in s.losses)) for i in range(len(s.candidates))]
        return [(scheme, bits / self._weights, loss) for scheme, (bits, loss) in zip(s.candidates, sums, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        s = self.sensitivity
        rules = {n: s.candidates[c].to_dict() for n, c in zip(s.layers, self.choices, strict=True)}
        return {
            "budget": self.budget,
            "bits": self.bits,
            "loss": self.loss,
            "convention": s.convention,
            "rules": rules,
            "uniform": [{"scheme": u.to_dict(), "bits": b, "loss": v} for u, b, v in self.uniform()],
            "curve": [{"cost": c, "loss": v} for c, v in self.tradeoff.points()],
        }

    def to_toml(self) -> str:
        """The rules as a file for `quanto quantize --rules`."""
        lines = [f"# {self.budget}: {self.bits:.3f} bits per weight, expected loss {self.loss:.4g}"]
        for table in self._tables():
            # numbers, texts, lists and truth are written in TOML as in JSON
            lines += ["", "[[rules]]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps({"rules": self._tables()}, indent=1) + "\n"

    def _tables(self) -> list[dict[str, Any]]:
        return [{"pattern": rule.pattern, **rule.scheme.to_dict()} for rule in self.rules if rule.scheme is not None]

    def __str__(self) -> str:
        return describe(self)

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Writes the trade-off to a picture: the planned curve, uniform schemes and this plan.

        Raises:
            ValueError: if matplotlib is not installed.
        """
        scale = self.per_weight
        points = self.tradeoff.points()
        marks = [] if scale is None else [(bits, loss, str(c)) for c, bits, loss in self.uniform()]
        if scale is not None:
            marks.append((self.bits, self.loss, "this plan"))
        label = "seconds" if scale is None else "bits per weight, scales and zero points included"
        x = [cost * (scale or 1) for cost, _ in points]
        curve(x, [loss for _, loss in points], marks, (label, f"loss: {self.sensitivity.convention}"), path)


def plan(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    bits: float | None = None,
    size: int | None = None,
    loss: float | None = None,
    seconds: float | None = None,
    candidates: Sequence[Scheme | str] = CANDIDATES,
    exclude: str | Sequence[str] = (),
    objective: Objective | None = None,
    cache: str | os.PathLike[str] | None = None,
    tokens: int = 1,
    calibrated: bool = False,
    progress: bool | None = None,
) -> Plan:
    """Decides which layer gets which scheme, under one budget.

    ```python
    found = quanto.plan(model, batches, bits=3.5)
    quanto.freeze(quanto.quantize(model, rules=found.rules))
    ```

    Args:
        model: floating; not changed.
        data: batches; see `quanto.planner.sensitivity`. None judges by the weights alone.
        bits: stored bits per weight on average, over the layers planned, scales and zero points included.
        size: bytes of these layers.
        loss: what may be lost, in the unit of the sensitivities; the smallest model within it is planned.
        seconds: for `tokens` rows through all these layers, by the kernels of this machine.
        candidates: schemes or their names; what is measured is rounding by each one's own algorithm.
        exclude: globs of layers to leave floating.
        objective: for models that return no logits.
        cache: a JSON file that keeps the sensitivities; another budget then costs nothing.
        tokens: for `seconds`.
        calibrated: whether rounding is measured as GPTQ does it with the data, for a plan that a pipeline follows.
        progress: whether to show progress bars; None shows them on a terminal.

    Raises:
        ValueError: if not exactly one budget is given, or no choice of candidates is within it.
    """
    budgets = {"bits": bits, "size": size, "loss": loss, "seconds": seconds}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one budget of bits, size, loss and seconds, got {', '.join(given) or 'none'}")
    found = sensitivity(
        model,
        data,
        candidates,
        exclude=exclude,
        objective=objective,
        cache=cache,
        calibrated=calibrated,
        progress=progress,
    )
    weights = sum(found.weights)
    if seconds is not None:
        layers = find_layers(model, [exclude] if isinstance(exclude, str) else exclude)
        timed = solve(layer_seconds(layers, found.candidates, tokens), found.losses)
        return Plan(found, tuple(timed.within(seconds)), timed, f"{seconds:.4g} s for {tokens} tokens")
    solved = solve(found.bits, found.losses)
    if loss is not None:
        return Plan(found, tuple(solved.reaching(loss)), solved, f"loss of at most {loss:.4g}", 1 / weights)
    words = f"at most {bits:.4g} bits per weight" if bits is not None else f"at most {size:,} bytes"
    limit = bits * weights if bits is not None else 8.0 * (size or 0)
    try:
        choices = solved.within(limit)
    except ValueError:
        least = sum(map(min, found.bits))
        raise ValueError(
            f"{words} is below the smallest candidates: {least / weights:.4g} bits per weight, {least // 8:,} bytes"
        ) from None
    return Plan(found, tuple(choices), solved, words, 1 / weights)
