# SPDX-License-Identifier: Apache-2.0
"""Fixtures; and the folder `support` beside this file, for the tests to import from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "support"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder that holds the float model of that name, written once."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def save(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp(name)
            _build(name, dtype).save_pretrained(folder)
            made[name, dtype] = folder
        return made[name, dtype]

    return save


def _build(name: str, dtype: torch.dtype) -> torch.nn.Module:
    from tiny import build

    return build(name, dtype)
