# SPDX-License-Identifier: Apache-2.0
"""The tests that `pytest --pyargs quanto.testing` collects."""

from __future__ import annotations

import pytest

from ..kernels import KernelSpec
from .cases import Case, cases, refusals
from .checks import Check, Disagreement

__all__: list[str] = []


def test_kernel_takes_something(spec: KernelSpec, on: tuple[str, ...]) -> None:
    """A kernel that refuses everything the suite asks is not tested at all, which must not look like success."""
    if not on:
        pytest.skip(f"this machine has no {spec.device} device")
    for device in on:
        if not cases(spec, device):
            reason = refusals(spec, device)
            if reason.startswith("needs compute capability"):
                pytest.skip(reason)
            pytest.fail(f"{spec.name} refuses everything the suite asks on {device}: it {reason}", pytrace=False)


def test_kernel(check: Check, case: Case) -> None:
    """One check of one kernel, over all requests of one kind."""
    sentence = None
    try:
        check.run(case)
    except Disagreement as error:
        sentence = str(error)
    if sentence is not None:
        pytest.fail(f"{case.spec.name} ({case.spec.origin}) fails {check.name}\n{sentence}", pytrace=False)
