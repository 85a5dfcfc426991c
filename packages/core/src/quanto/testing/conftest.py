# SPDX-License-Identifier: Apache-2.0
"""One test per kernel, check and kind of request."""

from __future__ import annotations

import pytest

from .options import selected
from .run import devices, plan

__all__: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fills in `check, case` and `spec, on`."""
    if not {"check", "spec"} & set(metafunc.fixturenames):
        return
    specs, device = selected(metafunc.config)
    if "spec" in metafunc.fixturenames:
        metafunc.parametrize(
            "spec, on",
            [pytest.param(spec, tuple(devices(spec, device)), id=spec.name) for spec in specs],
        )
        return
    todo = [entry for spec in specs for on in devices(spec, device) for entry in plan(spec, on)]
    metafunc.parametrize(
        "check, case",
        [pytest.param(check, case, id=f"{case} on {case.first.device}: {check.name}") for check, case in todo],
    )
