# SPDX-License-Identifier: Apache-2.0
"""Steps by name."""

from __future__ import annotations

from quanto.algorithms import Step
from quanto.algorithms.steps import make, steps


def test_every_name_makes_its_step() -> None:
    for name, kind in steps.items():
        step = make(name)
        assert isinstance(step, Step)
        assert type(step) is kind
        assert step.name == name
