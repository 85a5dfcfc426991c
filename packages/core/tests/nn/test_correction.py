# SPDX-License-Identifier: Apache-2.0
"""Low-rank corrections: the best of their rank, part of what the layer computes, saves and gives back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quanto
from quanto.nn import correction


def _layer(rank: int | None, weights: str = "int3", activations: str | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    return quanto.freeze(quanto.quantize(nn.Linear(48, 24), weights, activations, rank=rank, **options))


def test_is_the_best_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    error, x = torch.randn(20, 30, generator=generator), torch.randn(100, 30, generator=generator)
    x[:, :5] *= 10
    hessian = x.T @ x / 100
    down, up = correction.find(error, 4)
    singular = torch.linalg.svdvals(error)
    torch.testing.assert_close((error - up @ down).square().sum(), singular[4:].square().sum(), rtol=1e-4, atol=1e-4)
    weighted = correction.find(error, 4, hessian)
    lost = [((error - u @ d) @ x.T).square().sum() for d, u in ((down, up), weighted)]
    least = torch.linalg.svdvals(error @ x.T)[4:].square().sum()
    torch.testing.assert_close(lost[1], least, rtol=1e-3, atol=1e-3)
    assert lost[1] < lost[0]


@pytest.mark.parametrize("activations", [None, "int8"])
def test_is_part_of_what_the_layer_computes(activations: str | None, tmp_path: Path) -> None:
    plain, layer = (_layer(rank, activations=activations) for rank in (None, 8))
    torch.manual_seed(0)
    weight = nn.Linear(48, 24).weight.detach()
    x = torch.randn(5, 48)
    expected = plain(x) + x @ (layer.correction_out @ layer.correction_in).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    before, after = ((m.effective() - weight).square().sum() for m in (plain, layer))
    assert after < 0.6 * before
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    quanto.save(layer, tmp_path)
    loaded = quanto.load(tmp_path, nn.Linear(48, 24))
    assert torch.equal(loaded(x), layer(x))
    half = copy.deepcopy(layer).bfloat16()
    assert half.correction_in.dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=0.05, atol=0.05)
    values = layer.effective()
    floating = quanto.dequantize(layer)
    assert set(floating.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(floating.weight, values)


def test_a_trained_correction_stays() -> None:
    layer = quanto.quantize(nn.Linear(48, 24), "int3", rank=4)
    with torch.no_grad():
        layer.correction_in.normal_()
        layer.correction_out.normal_()
    x, up = torch.randn(5, 48), layer.correction_out.clone()
    y = layer(x)
    quanto.freeze(layer)
    assert torch.equal(layer.correction_out, up)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)


def test_rank_is_at_most_the_layers_and_only_linear_layers_have_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 6))
    quanto.freeze(quanto.quantize(model, "int8", rank=100))
    assert {n for n in model.state_dict() if "correction" in n} == {"2.correction_in", "2.correction_out"}
    assert model[2].correction_in.shape == (6, 16)


def test_compiles_and_passes_gradients() -> None:
    layer, x = _layer(8), torch.randn(5, 48, requires_grad=True)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.effective().sum(0).expand(5, 48), rtol=1e-4, atol=1e-4)
    assert F.linear(x, layer.effective(), layer.bias).allclose(layer(x), atol=1e-4)


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="rank must be a positive integer, got 0"):
        quanto.Scheme("int4", rank=0)
