# SPDX-License-Identifier: Apache-2.0
"""Built packages and fresh environments, for the tests that need them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fresh_environment import FreshEnvironment
from tree import packages


@pytest.fixture(scope="session")
def build_wheel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Build the distribution in a folder, without isolation; by way of its sdist, so that this is complete too."""
    built: dict[Path, Path] = {}

    def build(folder: Path) -> Path:
        if folder not in built:
            out = tmp_path_factory.mktemp("dist")
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            assert done.returncode == 0, f"building {folder} failed:\n{done.stdout}{done.stderr}"
            assert list(out.glob("*.tar.gz")), "no sdist"
            (built[folder],) = out.glob("*.whl")
        return built[folder]

    return build


@pytest.fixture(scope="session")
def wheels(build_wheel: Callable[[Path], Path]) -> dict[str, Path]:
    """The wheel of every package of this repository, by distribution name."""
    return {package.distribution: build_wheel(package.folder) for package in packages()}


@pytest.fixture
def fresh_environment(tmp_path: Path) -> FreshEnvironment:
    """An empty environment; `install(*wheels)` fills it."""
    return FreshEnvironment(tmp_path / "environment")
