# SPDX-License-Identifier: Apache-2.0
"""GPTQ: less error at the output than nearest rounding, for every qtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import packing, reference
from quanto.algorithms import GPTQ, Pipeline
from quanto.algorithms.refine import refine as fitted_once_more
from quanto.algorithms.statistics import Moments
from quanto.nn.slot import Slot
from quanto.quantizers import fit
from quanto.quantizers.spread import spread_parameters
from quanto.tensor.quantize import make_target


def _correlated(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width // 4, width, generator=generator)
    return torch.randn(tokens, width // 4, generator=generator) @ mix + 0.1 * torch.randn(
        tokens, width, generator=generator
    )


@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
def test_less_error_than_nearest(qtype: str) -> None:
    x = _correlated(256, 64)
    layer = nn.Sequential(nn.Linear(64, 32), nn.Identity()).eval()
    wanted = layer(x)
    nearest_, found = (quanto.quantized(layer, qtype, algorithm=a) for a in ("mse", None))
    quanto.freeze(nearest_)
    Pipeline(GPTQ(correct=0)).run(found, [x])
    assert found[0].frozen
    error, least = ((m(x) - wanted).square().mean() for m in (found, nearest_))
    assert error < 0.8 * least


def _definition(weight: torch.Tensor, x: torch.Tensor, original: torch.Tensor, step: GPTQ, slot: Slot) -> Any:
    """What the class says, in double precision, the inverse of what remains computed anew for each column."""
    w, x, original = weight.double(), x.double(), original.double()
    hessian, cross = x.T @ x / len(x), original.T @ x / len(x)
    damped = hessian + step.damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    w = w + step.correct * torch.linalg.solve(damped, (w @ (cross - hessian)).T).T
    target = make_target(slot.scheme, slot.scheme.block_size(tuple(w.shape)), torch.float32)
    parameters = fit(w.float(), target, damped.diagonal().float())
    scale, zero = spread_parameters(parameters, target, weight)
    assert zero is not None
    left = damped.diagonal().argsort(descending=True).tolist() if step.act_order else list(range(w.shape[1]))
    elements = torch.empty_like(weight)
    while left:
        i = left[0]
        inverse = torch.linalg.inv(damped[left][:, left])
        elements[:, i] = (
            (w[:, i] / scale[:, i] + zero[:, i]).round().clamp(target.qtype.qmin, target.qtype.qmax).float()
        )
        error = (w[:, i] - (elements[:, i] - zero[:, i]) * scale[:, i]) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return elements, parameters


@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"correct": 1.0, "damping": 0.2}, {"correct": 0.0}])
def test_equals_the_definition(options: dict[str, Any]) -> None:
    torch.manual_seed(2)  # of the weights; near to equal errors two implementations may choose different scales
    generator = torch.Generator().manual_seed(2)
    original = _correlated(300, 64) * (1 + 3 * torch.rand(64, generator=generator))
    x = original + torch.randn(300, 64, generator=generator)
    layer = quanto.quantize(nn.Linear(64, 24), "int4", group_size=32)
    weight, slot = layer.weight.detach(), layer._slots["weight"]
    found = Moments()
    found.add(x[:100], original[:100])
    found.add(x[100:], original[100:])
    found.finish()
    hessian = found.hessian.clone()
    step = GPTQ(refine=False, sweeps=0, **options)
    made = step.solve(weight, slot, found)
    elements, parameters = _definition(weight, x, original, step, slot)
    torch.testing.assert_close(made.parameters.scale.float(), parameters.scale.float(), rtol=1e-3, atol=0)
    codes = reference.decode(packing.unpack(made.codes, 4, 64), quanto.qint4, torch.float32)
    assert (codes != elements).float().mean() <= 0.01  # values in the middle of two codes
    assert torch.equal(found.hessian, hessian)  # of other layers too
    assert found.cross is not None
    step.solve(weight, slot, found, last=True)
    assert found.cross is None


def test_fitting_scales_once_more_and_sweeps_lose_less() -> None:
    x = _correlated(256, 64) * 2
    losses = {}
    for refine, sweeps in ((False, 0), (True, 0), (False, 2), (True, 2)):
        layer = quanto.quantize(nn.Linear(64, 96, bias=False), "int3", group_size=32)
        layer.load_state_dict({"weight": torch.randn(96, 64, generator=torch.Generator().manual_seed(3))})
        found = Moments()
        found.add(x)
        made = GPTQ(refine=refine, sweeps=sweeps).solve(layer.weight.detach(), layer._slots["weight"], found.finish())
        losses[refine, sweeps] = made.loss
    assert losses[True, 0] < 0.99 * losses[False, 0]
    assert losses[False, 2] < 0.95 * losses[False, 0]
    assert losses[True, 2] < 0.99 * losses[False, 2]
    assert losses[True, 2] < 0.95 * losses[True, 0]
    # what came last was the fit: another one has nothing to gain
    weight, slot, hessian = layer.weight.detach(), layer._slots["weight"], x.T @ x / len(x)
    hessian += 0.05 * hessian.diagonal().mean() * torch.eye(64)
    target = make_target(slot.scheme, (1, 32), torch.float32)
    elements = reference.decode(packing.unpack(made.codes, 3, 64), quanto.qint3, torch.float32)
    errors = []
    for p in (made.parameters, fitted_once_more(weight, elements, hessian, target, made.parameters)):
        scale, zero = spread_parameters(p, target, weight)
        error = (elements - zero) * scale - weight
        errors.append(float(((error @ hessian) * error).sum()))
    assert errors[1] > (1 - 1e-5) * errors[0]


@pytest.mark.parametrize("options", [{"act_order": False}, {"sequential": False}, {"correct": 0.0}, {"correct": 1.0}])
def test_options(options: dict[str, Any], tiny: Any, batches: list[torch.Tensor]) -> None:
    model, rounded, found = tiny(), tiny(), tiny()
    for m in (rounded, found):
        quanto.quantize(m, "int3", group_size=32, include="blocks.*")
    quanto.freeze(rounded)
    Pipeline(GPTQ(**options)).run(found, batches)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, rounded))
    assert error < 0.7 * least


def test_symmetric_and_short_groups() -> None:
    x = _correlated(64, 40)
    for options in (
        {"symmetric": True, "group_size": 32},
        {"zero_point": "int", "group_size": 32},
        {"granularity": "tensor"},
        {"block": (3, 16)},
    ):
        layer = quanto.quantize(nn.Sequential(nn.Linear(40, 7), nn.Identity()), "int4", **options)
        expected = layer[0].weight.detach().clone()
        Pipeline("gptq").run(layer, [x])
        assert (layer[0].weight.dequantize() - expected).abs().max() < 0.3


def test_dead_inputs_and_idle_layers() -> None:
    x = _correlated(64, 32)
    x[:, 5] = 0
    model = nn.ModuleDict({"used": nn.Linear(32, 8), "idle": nn.Linear(32, 8)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    quanto.quantize(model, "int4")
    Pipeline("gptq").run(model, [x])
    assert model["used"].frozen
    assert model["idle"].frozen
    assert model(x).isfinite().all()


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        GPTQ(damping=0)
    with pytest.raises(ValueError, match=r"correct must be in \[0, 1\], got 2"):
        GPTQ(correct=2)
    model = quanto.quantize(nn.Linear(8, 4), "int4")
    with pytest.raises(ValueError, match="NaN or infinity"):
        Pipeline("gptq").run(model, [torch.full((4, 8), torch.nan)])
