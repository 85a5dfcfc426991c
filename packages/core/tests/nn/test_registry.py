# SPDX-License-Identifier: Apache-2.0
"""Which twin a module gets, twins registered by name, and the change of class itself."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

import quanto
from quanto.nn import ModuleRegistry, QLinear, modules
from quanto.nn.registry import convert, restore


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


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Bilinear(2, 2, 2), "Bilinear has no quantized twin"),
        (lambda: Doubled(2, 2), "Doubled has a forward of its own"),
        (lambda: nn.Embedding(4, 4, max_norm=1.0), "max_norm edits its weight in place"),
        (lambda: nn.Embedding(4, 4, sparse=True), "sparse gradients are not supported"),
        (lambda: nn.EmbeddingBag(4, 4, max_norm=1.0), "max_norm edits"),
        (lambda: spectral_norm(nn.Linear(4, 4)), "its weight is computed by a hook, not a parameter"),
    ],
)
def test_each_refusal_has_a_reason(build: Callable[[], nn.Module], reason: str) -> None:
    twin, found = modules.find(build())
    assert twin is None
    assert reason in found
    assert "quanto" not in type(quanto.quantize(nn.Sequential(build()), rules={"*": "int8"})[0]).__module__  # type: ignore[index]


# -- changing the class ------------------------------------------------------------------------------------------------


class Named(nn.Linear):
    """A subclass that computes what its base does."""


def test_classes_are_made_once_and_pickled_by_their_parts() -> None:
    one, two = (convert(Named(2, 2), QLinear) for _ in range(2))
    assert type(one) is type(two)
    assert type(one).__bases__ == (QLinear, Named)
    assert type(convert(nn.Linear(2, 2), QLinear)) is QLinear
    one.init_quantized(quanto.Scheme("int8"))
    again = pickle.loads(pickle.dumps(one))
    assert type(again) is type(one)
    assert torch.equal(again.weight, one.weight)


def test_restoring_leaves_no_trace() -> None:
    layer = nn.Linear(4, 4)
    before = set(layer.__dict__), set(layer._buffers), set(layer._parameters)
    quanto.quantize(layer, "int8", "int8")
    quanto.freeze(layer)
    value = layer.weight.dequantize()  # type: ignore[operator]
    assert restore(layer) is layer  # type: ignore[arg-type]
    assert type(layer) is nn.Linear
    assert (set(layer.__dict__), set(layer._buffers), set(layer._parameters)) == before
    assert torch.equal(layer.weight, value)
    assert layer.weight.requires_grad
