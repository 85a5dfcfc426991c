# SPDX-License-Identifier: Apache-2.0
"""Environments in which the plugins of these folders are installed, as their users would have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fresh_environment import FreshEnvironment
from tree import ROOT

HERE = Path(__file__).parent

# Begins a program that collects its results in `found`; every warning is noted, repeated ones too.
BEGIN = """
import json, warnings
warnings.simplefilter("ignore")  # torch says that there is no numpy
import torch
noted = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *rest, **more: noted.append(str(message))
import quanto
from quanto.plugins import plugins
torch.manual_seed(0)
found = {"warnings": noted}
"""
END = """
from dataclasses import asdict
found["plugins"] = {record.name: asdict(record) for record in plugins.records}
print()
print(json.dumps(found))
"""


class Machine:
    """A fresh environment with plugins in it; what a program in it finds comes back as data."""

    def __init__(self, environment: FreshEnvironment) -> None:
        self.environment = environment
        self.run, self.scripts = environment.run, environment.scripts

    def find(self, program: str, *arguments: str | Path, **variables: str) -> dict[str, Any]:
        """Runs a program that fills `found`; warnings and records of plugins are added to it."""
        printed = self.run("-c", BEGIN + program + END, *arguments, OMP_NUM_THREADS="1", **variables)
        return json.loads(printed.splitlines()[-1])  # type: ignore[no-any-return]


Make = Callable[..., Machine]


@pytest.fixture(scope="session")
def machine_with(build_wheel: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes an environment with quanto-core and the plugins of some folders."""

    def make(*folders: str) -> Machine:
        environment = FreshEnvironment(tmp_path_factory.mktemp("machine") / "environment")
        wheels = [build_wheel(ROOT / "packages" / "core"), *(build_wheel(HERE / folder) for folder in folders)]
        environment.install(*wheels, extras=["cli", "testing"])
        return Machine(environment)

    return make


@pytest.fixture(scope="session")
def good(machine_with: Make) -> Machine:
    """With the example and the integration."""
    return machine_with("example", "integration")


@pytest.fixture(scope="session")
def bad(machine_with: Make) -> Machine:
    """With the example and all broken plugins."""
    return machine_with("example", "broken/modules", "broken/fork", "broken/liar")
