# SPDX-License-Identifier: Apache-2.0
"""Raw parameters of modules that have no twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quanto
from quanto.nn import QParameters


class Experts(nn.Module):
    """Fused weights `[experts, out, in]` and `[experts, in, out]`, read by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 32, 64))
        self.down = nn.Parameter(torch.randn(3, 32, 16))
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.linear(x, self.up[e]).relu() @ self.down[e] for e in range(3)]).sum(0) * self.scale


RULE = quanto.Rule("experts", quanto.Scheme("int8"), ("up", "down.T"))


def _model(rule: quanto.Rule = RULE) -> Any:
    torch.manual_seed(0)
    return quanto.quantize(nn.ModuleDict({"experts": Experts()}), rules=[rule])


def test_trainable_parameters_are_read_as_plain_floats() -> None:
    experts = _model()["experts"]
    assert isinstance(experts, QParameters)
    assert type(experts).__name__ == "QExperts"
    experts(torch.ones(2, 64)).sum().backward()
    assert all(p.grad is not None for p in experts.parameters())


def test_frozen_parameters_are_quantized_tensors() -> None:
    experts = quanto.freeze(_model())["experts"]  # type: ignore[index]
    assert set(dict(experts.named_parameters())) == {"up_packed", "up_scale", "down_packed", "down_scale", "scale"}
    assert (experts.up.shape, experts.down.shape) == ((3, 32, 64), (3, 32, 16))
    assert experts.up_scale.shape == (3, 32, 1)
    assert experts.down_scale.shape == (3, 16, 1), "a scale per output, which is the last dimension here"
    x = torch.randn(2, 64, requires_grad=True)
    experts(x).sum().backward()
    assert x.grad is not None
    assert experts.scale.grad is not None
    assert type(quanto.dequantize(experts)) is Experts


@pytest.mark.parametrize("name", ["sideways", "forward", "training"])
def test_a_parameter_that_is_not_there_is_named(name: str) -> None:
    rule = quanto.Rule("experts", quanto.Scheme("int8"), (name,))
    with pytest.raises(ValueError, match=f"rule for 'experts': Experts has no parameter '{name}'"):
        _model(rule)


def test_excluded_modules_stay() -> None:
    model = nn.ModuleDict({"experts": Experts()})
    quanto.quantize(model, rules=[RULE], exclude="exp*")
    assert type(model["experts"]) is Experts


def test_quantizing_again() -> None:
    model = _model()
    again = quanto.Rule("experts", quanto.Scheme("int4", group_size=16), ("up", "down.T"))
    quanto.quantize(model, rules=[again])
    assert model["experts"].scheme.weights == "int4", "before freezing the scheme changes"
    quanto.freeze(model)
    x = torch.randn(2, 64)
    expected = model["experts"](x)
    quanto.quantize(model, rules=[RULE])
    assert model["experts"].scheme.weights == "int4", "afterwards it stays"
    assert torch.equal(model["experts"](x), expected)
