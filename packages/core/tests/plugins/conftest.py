# SPDX-License-Identifier: Apache-2.0
"""Plugins that exist for a test only, and a manager that finds no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import quanto.plugins
from quanto.kernels import kernels
from quanto.nn import modules
from quanto.plugins import PluginManager, hookimpl, manager, plugins
from quanto.qtypes import qtypes
from quanto.quantizers import quantizers
from quanto.serialization.formats import formats


@dataclass
class Entry:
    """An entry point that gives what it is told to; `loads` counts how often it was asked."""

    name: str
    plugin: Any
    dist: Any = None
    value: str = "somewhere:plugin"
    loads: list[int] = field(default_factory=list)

    def load(self) -> Any:
        self.loads.append(1)
        if isinstance(self.plugin, BaseException):
            raise self.plugin
        return self.plugin


@pytest.fixture
def entry() -> Callable[..., Entry]:
    """Makes an entry point of the distribution `quanto-test 1.2`."""

    def build(name: str, plugin: Any = None, distribution: str | None = "quanto-test") -> Entry:
        dist = None if distribution is None else SimpleNamespace(name=distribution, version="1.2")
        return Entry(name, plugin, dist)

    return build


@pytest.fixture
def plugin() -> Callable[..., ModuleType]:
    """Makes a plugin out of hooks by name; `api=None` leaves its declaration out."""

    def build(api: Any = 1, **hooks: Callable[..., None]) -> ModuleType:
        made = ModuleType("test_plugin")
        if api is not None:
            made.QUANTO_API = api  # type: ignore[attr-defined]
        for name, hook in hooks.items():
            setattr(made, name, hookimpl(specname=name)(hook))
        return made

    return build


def contents() -> list[dict[Any, Any]]:
    """Copies of every table that plugins write into."""
    tables = (qtypes, quantizers, modules.twins, modules.named, formats, kernels.specs, kernels.layouts, kernels.calls)
    return [dict(table) for table in tables]


@pytest.fixture
def snapshot() -> Callable[[], list[dict[Any, Any]]]:
    """Takes copies of every table that plugins write into."""
    return contents


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PluginManager]]:
    """Loads entry points, and no built-ins, into a manager of their own; afterwards the tables are as they were."""
    plugins.load()
    saved = contents()
    monkeypatch.setattr(quanto.plugins, "builtin", ModuleType("nothing"))

    def run(*entries: Entry) -> PluginManager:
        monkeypatch.setattr(manager, "entry_points", lambda group: list(entries) if group == "quanto" else [])
        made = PluginManager()
        assert made.load()
        return made

    yield run
    kernels.specs, kernels.layouts = saved[5], saved[6]
    for table, before in zip((qtypes, quantizers, modules.twins, modules.named, formats), saved, strict=False):
        table.clear()
        table.update(before)
    kernels.calls.clear()
    kernels.calls.update(saved[7])
    kernels._forget()
