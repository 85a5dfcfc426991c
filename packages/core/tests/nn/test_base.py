# SPDX-License-Identifier: Apache-2.0
"""What every quantized module is: one object, two states, weights that answer as tensors and survive every cast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import quanto

G = torch.Generator().manual_seed(0)
X = torch.randn(5, 64, generator=G)
CASTS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype]] = {
    "half": (nn.Module.half, torch.float16),
    "bfloat16": (nn.Module.bfloat16, torch.bfloat16),
    "double": (nn.Module.double, torch.float64),
    "to": (lambda m: m.to(torch.float16), torch.float16),
    "to like": (lambda m: m.to(torch.empty(0, dtype=torch.float64)), torch.float64),
    "type": (lambda m: m.type(torch.float16), torch.float16),
}


def _layer(weights: str = "int8", activations: str | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    return quanto.quantize(nn.Linear(64, 32), weights, activations, **options)


# -- two states --------------------------------------------------------------------------------------------------------


def test_trainable_and_frozen() -> None:
    layer = _layer("int4")
    weight = layer.weight
    assert not layer.frozen
    assert isinstance(weight, nn.Parameter)
    assert "int4, trainable" in repr(layer)
    assert set(dict(layer.named_parameters())) == {"weight", "bias"}
    values = layer.effective().detach()
    quanto.freeze(layer)
    assert layer.frozen
    assert "int4, frozen" in repr(layer)
    assert set(dict(layer.named_parameters())) == {"weight_packed", "weight_scale", "weight_zero_point", "bias"}
    assert not any(p.requires_grad for n, p in layer.named_parameters() if n != "bias")
    assert torch.equal(layer.effective(), values)
    assert torch.equal(layer.weight.dequantize(), values)
    assert layer.effective(dtype=torch.float64).dtype == torch.float64
    assert layer.scheme == quanto.Scheme("int4")
    with pytest.raises(AttributeError, match="has no attribute 'wieght'"):
        _ = layer.wieght
    assert not hasattr(layer, "qweight")


def test_a_frozen_weight_cannot_be_assigned() -> None:
    layer = quanto.freeze(_layer())
    for value in (torch.zeros(32, 64), nn.Parameter(torch.zeros(32, 64)), None):
        with pytest.raises(
            AttributeError, match="weight of QLinear is frozen as int8; a value assigned to it would be"
        ):
            layer.weight = value
    layer.bias = nn.Parameter(torch.ones(32))
    layer.note = "other attributes are free"


def test_a_trainable_weight_may_be_replaced_before_freezing() -> None:
    layer = _layer()
    layer.weight = nn.Parameter(torch.randn(16, 128, dtype=torch.float64))
    layer.bias = None
    quanto.freeze(layer)
    assert layer.weight.shape == (16, 128)
    assert layer.weight.dtype == torch.float64


def test_one_parameter_read_in_two_ways_gets_codes_for_each() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(48, 32, bias=False)
            self.table = nn.Module()
            self.table.weight = self.linear.weight

    model: Any = Reads()
    values = model.linear.weight.detach().clone()
    rules = [("linear", "int8"), quanto.Rule("table", quanto.Scheme("int8"), ("weight.T",))]
    quanto.freeze(quanto.quantize(model, rules=rules))
    for module in (model.linear, model.table):
        assert module.weight.shape == (32, 48)
        assert (module.weight.dequantize() - values).abs().max() <= values.abs().max() / 255 * 1.001
    assert model.table.weight_packed.shape == (48, 32)


# -- casts and moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("weights", ["int8", "int4", "float8", "mxfp4", "nvfp4"])
def test_casts_touch_no_code_and_no_scale(weights: str, cast: str) -> None:
    convert, dtype = CASTS[cast]
    layer = quanto.freeze(_layer(weights))
    before = {n: p.clone() for n, p in layer.named_parameters() if n != "bias"}
    values = layer.weight.dequantize(torch.float64)
    assert convert(layer) is layer
    assert all(p.dtype == before[n].dtype for n, p in layer.named_parameters() if n != "bias")
    assert layer.bias.dtype == dtype
    assert layer.weight.dtype == dtype
    assert layer.weight_packed.data_ptr() != 0
    assert torch.equal(layer.weight.dequantize(torch.float64), values)
    assert layer(X.to(dtype)).dtype == dtype


def test_scales_of_activations_keep_their_dtype() -> None:
    layer = quanto.freeze(_layer("int8", "int8"))
    layer.input_scale, layer.output_scale = torch.tensor(0.1), torch.tensor(0.2)
    layer.half()
    assert (layer.input_scale.dtype, layer.output_scale.dtype) == (torch.float32, torch.float32)
    layer.to("meta")
    assert layer.input_scale.is_meta


def test_a_trainable_layer_is_cast_like_any_other() -> None:
    layer = _layer("float8").half()
    assert layer.weight.dtype == torch.float16
    quanto.freeze(layer)
    assert layer.weight_scale.dtype == torch.float16
    assert layer.weight.dtype == torch.float16


@pytest.mark.parametrize("weights", ["int8", "int4", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaving_for_meta_and_coming_back(weights: str, dtype: torch.dtype) -> None:
    layer = quanto.freeze(_layer(weights).to(dtype))
    x = X.to(dtype)
    expected, state = layer(x), {n: t.clone() for n, t in layer.state_dict().items()}
    moved = copy.deepcopy(layer).to("meta")
    assert all(t.is_meta for t in moved.state_dict().values())
    assert {n: (t.shape, t.dtype) for n, t in moved.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    moved.to_empty(device="cpu").load_state_dict(state)
    quanto.arrange(moved)
    assert torch.equal(moved(x), expected)
    again = copy.deepcopy(layer).to("meta")
    again.load_state_dict(state, assign=True)
    quanto.arrange(again)
    assert torch.equal(again(x), expected)


def test_sharing_memory_moves_the_codes() -> None:
    layer = quanto.freeze(_layer("int4")).share_memory()
    assert all(p.is_shared() for p in layer.parameters())
    assert layer.weight.dtype == torch.float32


# -- arranging ---------------------------------------------------------------------------------------------------------


def test_arranging_leaves_trainable_weights_alone() -> None:
    layer = _layer()
    weight = layer.weight
    layer.arrange()
    layer.arrange("canonical")
    assert layer.weight is weight


def test_a_request_says_what_the_layer_asks() -> None:
    request = quanto.freeze(_layer("int8", "int8")).request()  # type: ignore[operator]
    assert (request.op, request.activations, request.shape) == ("scaled_linear", "int8", (32, 64))
    request = quanto.freeze(_layer("int4")).request(dtype=torch.float16)  # type: ignore[operator]
    assert (request.op, request.activations, request.dtype, request.zero_point) == ("linear", "", torch.float16, "int")
    embedding: Any = quanto.freeze(quanto.quantize(nn.Embedding(8, 32), rules={"*": "int8"}))
    assert embedding.request().op == "embedding"


def test_another_dtype_gets_the_arrangement_that_its_kernel_wants() -> None:
    layer = quanto.freeze(quanto.quantize(nn.Linear(64, 32).to(torch.bfloat16), "int4", group_size=32))
    x, expected = X.to(torch.bfloat16), layer.weight.dequantize()
    before = layer(x)
    arranged = layer._slots["weight"].layout
    layer.float()
    wanted = quanto.kernels.choose(layer.request(), any_layout=True).spec.layout
    assert layer._slots["weight"].layout == wanted
    assert torch.equal(layer.weight.dequantize(torch.bfloat16), expected)
    layer.to(torch.bfloat16)
    assert layer._slots["weight"].layout == arranged
    assert torch.equal(layer(x), before)
