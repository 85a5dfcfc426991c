# SPDX-License-Identifier: Apache-2.0
"""Twins registered by name, for classes of libraries that are not imported."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from quanto.nn import ModuleRegistry, QLinear


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `twin_of_doubled` that nothing imports until it is needed."""
    module = ModuleType("twin_of_doubled")

    class QDoubled(QLinear, Doubled):
        pass

    module.QDoubled = QDoubled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "twin_of_doubled", module)
    return module


class Doubled(nn.Linear):
    """As a model's own class would be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


NAME = f"{Doubled.__module__}.{Doubled.__qualname__}"


def test_a_named_twin_is_imported_when_a_model_has_its_class(library: ModuleType) -> None:
    registry = ModuleRegistry()
    registry.register(nn.Linear, QLinear)
    registry.register_by_name("a.library.that.IsNotThere", "nor.is:This")
    twin, reason = registry.find(Doubled(2, 2))
    assert twin is None
    assert "forward of its own" in reason
    registry.register_by_name(NAME, "twin_of_doubled:QDoubled", default=False)
    twin, _ = registry.find(Doubled(2, 2))
    assert twin is not None
    assert twin.quantized is library.QDoubled
    assert not twin.default
    assert registry.find(nn.Linear(2, 2))[0].quantized is QLinear  # type: ignore[union-attr]


def test_a_name_is_given_once() -> None:
    registry = ModuleRegistry()
    registry.register_by_name(NAME, "x:Y")
    with pytest.raises(ValueError, match=r"Doubled has the twin x:Y already"):
        registry.register_by_name(NAME, "z:Y")
