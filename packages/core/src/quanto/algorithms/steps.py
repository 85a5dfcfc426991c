# SPDX-License-Identifier: Apache-2.0
"""Steps by name."""

from __future__ import annotations

from .autoround import AutoRound
from .awq import AWQ
from .gptq import GPTQ
from .low_rank import LowRank
from .rotate import Rotate
from .smooth import SmoothQuant
from .step import Step
from .tune import Tune

__all__ = ["make", "presets", "steps"]

#: the steps that a name stands for, with their defaults.
steps: dict[str, type[Step]] = {step.name: step for step in (Rotate, SmoothQuant, AWQ, GPTQ, AutoRound, LowRank, Tune)}

#: names that stand for several steps.
presets: dict[str, tuple[str, ...]] = {"best": ("gptq", "autoround", "tune")}


def make(name: str) -> list[Step]:
    """The step of a name, or the steps of a preset, with their defaults.

    Raises:
        ValueError: if there is none of that name, naming those that there are.
    """
    names = presets.get(name, (name,))
    if unknown := [n for n in names if n not in steps]:
        raise ValueError(f"unknown step {unknown[0]!r}; known: {', '.join(sorted({*steps, *presets}))}")
    return [steps[n]() for n in names]
