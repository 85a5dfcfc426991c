# SPDX-License-Identifier: Apache-2.0
"""What the markers mean on this machine, for every test of the repository."""

from __future__ import annotations

import sys

import pytest


def _reasons() -> dict[str, str]:
    """For each marker whose tests cannot run here, the sentence that says why."""
    reasons = {}
    if sys.platform != "darwin":
        reasons["mac"] = "needs an Apple machine"
    import torch  # only where a marker asks: the tests of the tree's rules do not need it

    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA or ROCm device, and a torch built for it"
    return reasons


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    if not any(item.get_closest_marker(name) for item in items for name in ("gpu", "mac")):
        return
    for name, reason in _reasons().items():
        for item in items:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
