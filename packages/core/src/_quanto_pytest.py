# SPDX-License-Identifier: Apache-2.0
"""Gives `pytest --pyargs quanto.testing` its options, and no other pytest run anything.

pytest reads a conftest's options only where it is told a path, not a package. So this is an entry point, which pytest
imports in every run: it must not import quanto, and lies outside of it because that would import torch.
"""

from __future__ import annotations

from typing import Any

__all__ = ["pytest_load_initial_conftests"]


def pytest_load_initial_conftests(early_config: Any, args: list[str]) -> None:
    """Loads the options where the suite is named on the command line."""
    if any(str(arg).startswith("quanto.testing") for arg in args):
        early_config.pluginmanager.import_plugin("quanto.testing.options")
