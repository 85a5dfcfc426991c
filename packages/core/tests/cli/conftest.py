# SPDX-License-Identifier: Apache-2.0
"""Command lines with chosen plugins; without the extra `cli`, only what must hold without it is collected."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quanto.plugins import PluginManager, PluginRecord, builtin, hookimpl

INSTALLED = find_spec("typer") is not None and find_spec("rich") is not None
collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if not INSTALLED and p.name != "test_main.py"]


@pytest.fixture
def manager_with() -> Callable[..., PluginManager]:
    """Makes a manager of its own: core, and plugins that have nothing but a command hook."""

    def make(**hooks: Callable[[Any], None]) -> PluginManager:
        manager = PluginManager()
        manager._loaded = True  # nothing but what follows
        manager.pm.register(builtin, name="quanto-core")
        for name, hook in hooks.items():
            plugin = ModuleType(name)
            plugin.register_commands = hookimpl(hook)  # type: ignore[attr-defined]
            manager.pm.register(plugin, name=name)
            manager.records.append(PluginRecord(name, f"{name}-package 1.0", "loaded"))
        return manager

    return make
