# SPDX-License-Identifier: Apache-2.0
"""The second-order loss against divergences that are measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.planner.fisher import drawn_targets
from quanto.planner.sensitivity import sensitivity


def test_it_foretells_the_divergence_of_a_classifier(task) -> None:
    batches = [task.batch(512, seed)[0] for seed in range(100, 108)]
    found = sensitivity(task.model, batches, ["int4", "int3"])
    assert found.layers == ("0", "2", "4", "6", "8")
    for layer, name in enumerate(found.layers):
        for index, qtype in enumerate(("int4", "int3")):
            model = quanto.freeze(quanto.quantized(task.model, rules={name: qtype}))
            x = torch.cat(batches)
            p, q = (m(x).log_softmax(-1) for m in (task.model, model))
            true = (p.exp() * (p - q)).sum(-1).mean().item()
            assert found.losses[layer][index] == pytest.approx(true, rel=0.5), (name, qtype)


def test_layers_that_are_not_linear_are_measured_by_their_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    batches = [torch.randn(1, 3, 6, 6) for _ in range(400)]
    found = sensitivity(model, batches, ["int4", "int2"])
    quantized = quanto.freeze(quanto.quantized(model, rules={"0": "int2"}))
    x = torch.cat(batches)
    p, q = (m(x).log_softmax(-1) for m in (model, quantized))
    true = (p.exp() * (p - q)).sum(-1).mean().item()
    assert found.losses[0][1] == pytest.approx(true, rel=0.6)
    assert found.losses[0][0] < found.losses[0][1] / 4


def test_the_model_is_left_as_it_was(task) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 3)).train()
    model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    sensitivity(model, [torch.randn(5, 4)], ["int8"])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_targets_are_drawn_from_the_predictions() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(20000, 3)
    loss, count = drawn_targets()(logits, None)
    assert count == 20000
    entropy = -sum(p * torch.tensor(p).log().item() for p in (0.2, 0.5, 0.3))
    assert loss.item() / count == pytest.approx(entropy, rel=0.02)


def test_an_objective_serves_models_without_logits() -> None:
    model = nn.Linear(4, 1)
    found = sensitivity(
        nn.Sequential(model, nn.Flatten(0)),
        [torch.randn(6, 4)],
        ["int8", "int2"],
        objective=lambda out, inputs: (out.square().sum(), len(out)),
    )
    assert found.losses[0][0] < found.losses[0][1]
    with pytest.raises(ValueError, match="no logits"):
        sensitivity(nn.Sequential(model, nn.Flatten(0)), [torch.randn(6, 4)], ["int8"])


def test_gradients_of_the_user_stay_and_inputs_may_be_named() -> None:

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    data = [torch.randn(32, 16)]
    model(data[0]).sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    losses = sensitivity(model, data, ["int4"]).losses
    for parameter, grad in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, grad)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layers[2](input=torch.relu(self.layers[0](input=x)))
            return y

    assert sensitivity(Wrapped(), data, ["int4"]).losses == losses
