# SPDX-License-Identifier: Apache-2.0
"""Steps by name."""

from __future__ import annotations

from quanto.algorithms import Pipeline, Step
from quanto.algorithms.steps import make, presets, steps


def test_every_name_makes_its_step() -> None:
    for name, kind in steps.items():
        (step,) = make(name)
        assert isinstance(step, Step)
        assert type(step) is kind
        assert step.name == name


def test_presets_are_several_steps() -> None:
    assert not set(presets) & set(steps)
    for name, members in presets.items():
        assert [step.name for step in make(name)] == list(members)
        assert [step.name for step in Pipeline("smooth", name).steps] == ["smooth", *members]
