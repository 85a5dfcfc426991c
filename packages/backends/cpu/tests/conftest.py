# SPDX-License-Identifier: Apache-2.0
"""Every test of a kernel runs on each instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

import quanto_backend_cpu

settings.register_profile("cpu", max_examples=30, deadline=None)
settings.load_profile("cpu")


@pytest.fixture(params=quanto_backend_cpu.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set in use."""
    with quanto_backend_cpu.use(request.param):
        yield request.param
