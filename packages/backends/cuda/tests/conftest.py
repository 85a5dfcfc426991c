# SPDX-License-Identifier: Apache-2.0
"""Where the kernels run: on a GPU if there is one, else in Triton's interpreter, which must be chosen before import."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE == "cuda":  # every test runs there, so that `-m gpu` means all of them
        for item in items:
            item.add_marker(pytest.mark.gpu)
        return
    skip = pytest.mark.skip(reason="needs a GPU; the interpreter ran what it can")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE
