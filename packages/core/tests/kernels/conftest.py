# SPDX-License-Identifier: Apache-2.0
"""Registries and kernels to try things on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quanto import reference
from quanto.kernels import KernelRegistry, KernelSpec, references
from quanto.weight import CANONICAL, make_key

Make = Callable[..., KernelSpec]


@pytest.fixture
def registry() -> KernelRegistry:
    """A registry of its own, with the references."""
    made = KernelRegistry()
    references.register(made)
    return made


@pytest.fixture
def make() -> Make:
    """Makes a kernel of `linear`, right unless another function is given, that claims int8 on the CPU."""

    def build(name: str = "test.kernel", **claims: Any) -> KernelSpec:
        defaults: dict[str, Any] = {"op": "linear", "device": "cpu", "fn": reference.linear, "qtypes": {"int8"}}
        return KernelSpec(name=name, **(defaults | claims))

    return build


@pytest.fixture
def key() -> Callable[..., str]:
    """Makes the key of a symmetric weight of 32 rows and 64 columns."""

    def build(qtype: str = "int8", block: tuple[int, ...] = (1, 64), layout: str = CANONICAL) -> str:
        return make_key(qtype, block, (32, 64), torch.empty(0), None, layout)

    return build
