# SPDX-License-Identifier: Apache-2.0
"""What `quanto.quantize` refuses before it changes anything, and what it leaves floating with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.nn import QModule


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.GRU(64, 64), nn.Sequential(nn.Linear(64, 8), nn.ReLU()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "int8", "include": ["0", "head"]}, ValueError, "include='head' matches no module"),
        ({"weights": "int8", "rules": {"gone*": "int4"}}, ValueError, r"rule 'gone\*' matches no module"),
        ({"weights": "int8", "exclude": 5}, TypeError, "exclude must be a glob or several, got 5"),
        ({"weights": "int8", "include": [0]}, TypeError, "include must hold globs, got 0"),
        ({"weights": "int4", "algorithm": "gptqq"}, ValueError, "unknown algorithm 'gptqq'; known: absmax"),
        ({"weights": "int8", "rules": {"2.0": quanto.Scheme("int4", algorithm="x")}}, ValueError, "algorithm 'x'"),
        ({"rules": ["0"]}, TypeError, "rules must hold Rules or pairs of a pattern and a scheme, got '0'"),
        ({"rules": [(0, "int8")]}, TypeError, "pattern must be a glob, a regular expression or a callable, got 0"),
        ({"rules": [quanto.Rule(0, "int8")]}, TypeError, "a callable, got 0"),
        ({"rules": {"0": 8}}, TypeError, "the rule '0' must give a scheme, its name or None, got 8"),
        ({}, ValueError, "say what to quantize to"),
    ],
)
def test_refused_before_anything_changes(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = _model()
    with pytest.raises(error, match=message):
        quanto.quantize(model, **options)
    assert not any(isinstance(m, QModule) for m in model.modules())


def test_lazy_modules_need_a_batch_first() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LazyLinear(8))
    with pytest.raises(ValueError, match="1 is lazy: run one batch"):
        quanto.quantize(model, "int8")
    assert type(model[0]) is nn.Linear
    model(torch.ones(1, 64))
    quanto.freeze(quanto.quantize(model, "int8"))
    assert isinstance(model[1], QModule)


@pytest.mark.parametrize("verb", [quanto.quantize, quanto.freeze, quanto.dequantize])
def test_what_is_no_module_is_named(verb: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got str"):
        verb("model")


def test_a_rule_for_a_module_without_a_twin_is_explained() -> None:
    model = quanto.quantize(_model(), rules={"1": "int8", "2*": "int8"})
    notes = {layer.name: layer.note for layer in quanto.explain(model).layers}
    assert "GRU" in notes["1"]
    assert set(notes) == {"1", "2.0"}  # neither the container nor the activation function


def test_all_weights_that_stay_floating_are_explained() -> None:
    layers = {"rows": nn.Embedding(8, 64), "gru": nn.GRU(64, 64), "norm": nn.BatchNorm1d(64), "last": nn.Linear(64, 8)}
    notes = {layer.name: layer.note for layer in quanto.explain(quanto.quantize(nn.ModuleDict(layers), "int8")).layers}
    assert notes["rows"] == "stays floating: Embedding is quantized only where a rule or an include names it"
    assert notes["gru"] == "stays floating: GRU has no quantized twin"
    assert "norm" not in notes
    assert "stays" not in notes["last"]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_not_floating_are_left(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.ones(8, 8).to(dtype), requires_grad=False)
    quanto.freeze(quanto.quantize(model, "int8"))
    notes = {layer.name: layer.note for layer in quanto.explain(model).layers}
    assert f"its weight is {dtype}" in notes["0"]
    assert model[0].weight.dtype == dtype
    with pytest.raises(ValueError, match=f"rule for '0': its weight is {dtype}"):
        quanto.quantize(model, rules=[quanto.Rule("0", quanto.Scheme("int8"), ("weight",))])


def test_freezing_nothing_points_to_the_reasons() -> None:
    model = quanto.quantize(nn.Sequential(nn.Embedding(8, 64)), "int8")
    with pytest.raises(ValueError, match=r"no module is quantized.*quanto.explain"):
        quanto.freeze(model)
