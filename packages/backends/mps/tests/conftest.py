# SPDX-License-Identifier: Apache-2.0
"""Where the kernels run: on an Apple GPU if there is one, else as C++ in place of what torch would compile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from metal_shim import Shim

METAL = torch.backends.mps.is_available()
DEVICE = "mps" if METAL else "cpu"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


def pytest_configure(config: pytest.Config) -> None:
    if not METAL:
        sanitized = os.environ.get("QUANTO_MPS_SANITIZE")  # tests/native/run.py, which loads the sanitizer first
        folder = Path(sanitized or config.cache.mkdir("metal-shim"))
        torch.mps.compile_shader = Shim(folder, SANITIZE if sanitized else ()).compile_shader


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if METAL:
        for item in items:
            item.add_marker(pytest.mark.mac)
        return
    skip = pytest.mark.skip(reason="needs an Apple GPU; the shim ran what it can")
    for item in items:
        if item.get_closest_marker("mac"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE
