# SPDX-License-Identifier: Apache-2.0
"""Fixtures; and the folder `support` beside this file, for the tests to import from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "support"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder that holds the float model of that name, written once."""
    made: dict[str, Path] = {}

    def save(name: str) -> Path:
        from tiny import build

        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            build(name).save_pretrained(made[name])
        return made[name]

    return save
