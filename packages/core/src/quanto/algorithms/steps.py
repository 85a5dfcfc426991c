# SPDX-License-Identifier: Apache-2.0
"""Steps by name."""

from __future__ import annotations

from .autoround import AutoRound
from .awq import AWQ
from .gptq import GPTQ
from .rotate import Rotate
from .smooth import SmoothQuant
from .step import Step

__all__ = ["make", "steps"]

#: the steps that a name stands for, with their defaults.
steps: dict[str, type[Step]] = {step.name: step for step in (Rotate, SmoothQuant, AWQ, GPTQ, AutoRound)}


def make(name: str) -> Step:
    """A step with its defaults.

    Raises:
        ValueError: if there is none of that name, naming those that there are.
    """
    if name not in steps:
        raise ValueError(f"unknown step {name!r}; known: {', '.join(sorted(steps))}")
    return steps[name]()
