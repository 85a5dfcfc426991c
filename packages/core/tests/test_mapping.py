# SPDX-License-Identifier: Apache-2.0
"""The quantization map: data that describes a model, distrusted when it is read, and enough to rebuild it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.mapping import Entry, apply_map
from quanto.nn import QModule, QParameters

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A linear layer, a raw parameter read transposed, a norm and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.experts = nn.Module()
        self.experts.down = nn.Parameter(torch.randn(2, 64, 32))
        self.norm = nn.LayerNorm(32)
        self.one = nn.Linear(32, 32, bias=False)
        self.two = nn.Linear(32, 32, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x).relu() @ self.experts.down[1]
        return self.two(self.one(self.norm(x)))


def _float(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Model().eval()


def _trainable(seed: int = 0) -> Any:
    rules = [quanto.Rule("experts", quanto.Scheme("int4", group_size=32), ("down.T",)), ("linear", "int8")]
    return quanto.quantize(_float(seed), "int8", "int8", rules=rules)


def _frozen(seed: int = 0) -> Any:
    model = _trainable(seed)
    with quanto.Calibration(), torch.no_grad():
        model(X)
    return quanto.freeze(model)


def _y(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(X)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_it_says_all_there_is_to_say() -> None:
    described = quanto.quantization_map(_frozen())
    assert set(described) == {"linear", "experts", "norm", "one", "two"}
    assert described["linear"] == {
        "scheme": {"weights": "int8"},
        "parameters": {"weight": {"arrangement": "rows", "block_size": [1, 64], "dtype": "float32", "shape": [64, 64]}},
    }
    assert described["experts"] == {
        "scheme": {"weights": "int4", "group_size": 32},
        "parameters": {
            "down": {"arrangement": "transposed", "block_size": [1, 1, 32], "dtype": "float32", "shape": [2, 64, 32]}
        },
        "raw": True,
    }
    assert described["norm"] == {"scheme": {"weights": "int8", "activations": "int8"}, "parameters": {}}
    assert json.loads(json.dumps(described)) == described
    assert quanto.quantization_map(_float()) == {}
    assert quanto.quantization_map(_trainable()) == described, "freezing changes nothing of it"


# -- rebuilding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("source", [_trainable, _frozen])
def test_requantize_rebuilds_the_model(source: Callable[[int], nn.Module], meta: bool) -> None:
    model = source(1)
    with torch.device("meta" if meta else "cpu"):
        fresh: Any = Model().eval()
    layer = fresh.linear
    described = json.loads(json.dumps(quanto.quantization_map(model)))
    state = copy.deepcopy(model.state_dict())
    assert quanto.requantize(fresh, state, described) is fresh
    assert fresh.linear is layer
    assert torch.equal(_y(fresh), _y(model))
    assert quanto.quantization_map(fresh) == described
    assert fresh.one is not fresh.two
    name = "weight_packed" if fresh.one.frozen else "weight"
    assert fresh.one.get_parameter(name) is fresh.two.get_parameter(name)
    assert isinstance(fresh.experts, QParameters)


@pytest.mark.parametrize("assign", [None, False, True])
def test_tensors_are_copied_or_taken(assign: bool | None) -> None:
    model, fresh = _frozen(1), _float()
    state = copy.deepcopy(model.state_dict())
    bias = fresh.linear.bias
    quanto.requantize(fresh, state, quanto.quantization_map(model), assign=assign)
    taken = fresh.linear.bias.data_ptr() == state["linear.bias"].data_ptr()
    assert taken is bool(assign)
    assert fresh.linear.bias is bias, "the parameter is the same object either way"
    state["linear.bias"].zero_()
    assert (fresh.linear.bias == 0).all().item() is bool(assign)


def test_a_map_is_applied_to_a_quantized_model() -> None:
    model = _trainable()
    described = quanto.quantization_map(_trainable())
    described["linear"]["scheme"] = {"weights": "float8_e4m3fn"}
    apply_map(model, described)
    assert model.linear.scheme == quanto.Scheme("float8_e4m3fn")
    frozen = _frozen()
    with pytest.raises(ValueError, match="module 'linear': it is frozen as int8, the map says float8_e4m3fn"):
        apply_map(frozen, described)
    del described["linear"]
    with pytest.raises(ValueError, match="module 'linear' is quantized in the model and not in the map"):
        apply_map(frozen, described)


def test_entries_without_parameters_describe_any_module() -> None:
    model = _float()
    apply_map(model, {"linear": {"scheme": {"weights": "int4"}}, "one": {"scheme": {"weights": "int4"}}})
    assert {n for n, m in model.named_modules() if isinstance(m, QModule)} == {"linear", "one"}


def _change(*path: Any, value: Any) -> Callable[[dict], None]:
    def change(described: dict) -> None:
        for key in path[:-1]:
            described = described[key]
        described[path[-1]] = value

    return change


BAD: dict[str, tuple[Callable[[dict], None], str]] = {
    "no such module": (
        _change("lineal", value={"scheme": {"weights": "int8"}}),
        "'lineal': the model has no such module",
    ),
    "no twin": (_change("", value={"scheme": {"weights": "int8"}}), "it is quantized in the map, but Model has no"),
    "shape": (
        _change("linear", "parameters", "weight", "shape", value=[64, 32]),
        r"shape of weight is \[64, 64\] in the",
    ),
    "block": (_change("linear", "parameters", "weight", "block_size", value=[1, 32]), "block_size of weight"),
    "arrangement": (_change("linear", "parameters", "weight", "arrangement", value="flatten"), "arrangement of weight"),
    "other parameters": (_change("norm", "parameters", value={"weight": None}), "'weight': must be an object of"),
    "too many": (
        _change(
            "one",
            "parameters",
            "bias",
            value={"arrangement": "rows", "block_size": [], "dtype": "float32", "shape": []},
        ),
        "its quantized parameters are weight; the map says bias, weight",
    ),
    "raw and not": (
        _change("experts", "raw", value=False),
        "it is quantized in the map, but Module has no quantized twin",
    ),
    "raw parameter": (
        lambda d: d["experts"]["parameters"].__setitem__("up", d["experts"]["parameters"].pop("down")),
        "Module has no parameter 'up'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_map_that_does_not_fit_changes_nothing(name: str) -> None:
    change, sentence = BAD[name]
    model, source = _float(), _frozen()
    described = quanto.quantization_map(source)
    change(described)
    before = {n: id(p) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=sentence):
        quanto.requantize(model, source.state_dict(), described)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert not any(isinstance(m, QModule) for m in model.modules())
    quanto.requantize(model, source.state_dict(), quanto.quantization_map(source))
    assert torch.equal(_y(model), _y(source))


def test_raw_and_twin_are_not_confused() -> None:
    described = quanto.quantization_map(_trainable())
    described["experts"]["raw"], described["linear"]["raw"] = False, True
    for name in ("experts", "linear"):
        with pytest.raises(ValueError, match=f"module '{name}': raw parameters are quantized in one of map and model"):
            apply_map(_trainable(), {name: described[name]})


# -- reading -----------------------------------------------------------------------------------------------------------

PARAMETER = {"arrangement": "rows", "block_size": [1, 64], "dtype": "float32", "shape": [64, 64]}


def test_a_sound_entry() -> None:
    entry = Entry.parse({"scheme": {"weights": "int8"}, "parameters": {"weight": PARAMETER}, "raw": True})
    assert (entry.scheme, entry.parameters, entry.raw) == (quanto.Scheme("int8"), {"weight": PARAMETER}, True)
    assert Entry.parse({"scheme": {"weights": "int8"}}).parameters is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "must be an object with an object scheme"),
        ({"scheme": "int8"}, "must be an object with an object scheme"),
        ({"scheme": {"weights": "int8"}, "color": 1}, "unknown fields 'color'"),
        ({"scheme": {"weights": "int8", "color": 1}}, "unknown scheme fields color"),
        ({"scheme": {"weights": "int99"}}, "int99"),
        ({"scheme": {"weights": 8}}, "a qtype is a name"),
        ({"scheme": {"weights": "int8"}, "parameters": []}, "parameters must be an object"),
        ({"scheme": {"weights": "int8"}, "raw": 1}, "raw must be true or false"),
        ({"scheme": {"weights": "int8"}, "raw": True}, "raw must be true or false, and needs parameters"),
        ({"scheme": {"weights": "int8"}, "raw": True, "parameters": {}}, "needs parameters"),
    ],
)
def test_entries_are_not_trusted(data: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Entry.parse(data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "float8"}, "dtype must be one of float64, float32, float16, bfloat16, got 'float8'"),
        ({"dtype": ["float32"]}, "dtype must be one of"),
        ({"arrangement": "diagonal"}, "arrangement must be one of rows, flatten, transposed_flatten, transposed, got"),
        ({"shape": [64, -1]}, "shape must be an array of integers from 0"),
        ({"shape": [64, 2**63]}, "shape must be an array"),
        ({"shape": [64, True]}, "shape must be an array"),
        ({"shape": "64"}, "shape must be an array"),
        ({"block_size": [1, 0]}, "block_size must be an array of integers from 1"),
        ({"color": 1}, "must be an object of arrangement, block_size, dtype, shape"),
    ],
)
def test_parameters_are_not_trusted(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'weight': {sentence}"):
        Entry.parse({"scheme": {"weights": "int8"}, "parameters": {"weight": {**PARAMETER, **change}}})
