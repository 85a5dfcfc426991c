# SPDX-License-Identifier: Apache-2.0
"""Learned scales: nearer to the float model's predictions, with the same codes; never further away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quanto
from quanto.algorithms import Pipeline, Tune


def _divergence(model: nn.Module, wanted: nn.Module, batches: list[torch.Tensor]) -> float:
    with torch.no_grad():
        pairs = [(model(b).log_softmax(-1).flatten(0, 1), wanted(b).log_softmax(-1).flatten(0, 1)) for b in batches]
    return sum(float(F.kl_div(a, b, log_target=True, reduction="batchmean")) for a, b in pairs)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"norms": False}])
def test_nearer_predictions_with_the_same_codes(
    options: dict[str, Any], tiny: Any, batches: list[torch.Tensor]
) -> None:
    scheme = {k: v for k, v in options.items() if k == "symmetric"}
    tune = Tune(20, 1e-2, **{k: v for k, v in options.items() if k == "norms"})
    model, rounded, found = tiny(), tiny(), tiny()
    for m in (rounded, found):
        quanto.quantize(m, "int2", group_size=32, **scheme)
    Pipeline().run(rounded, batches)
    Pipeline(tune).run(found, batches)
    for key, value in rounded.state_dict().items():
        if key.endswith("_packed"):
            assert torch.equal(value, found.state_dict()[key]), key
    moved = not torch.equal(found.blocks[0].norm.weight, model.blocks[0].norm.weight)
    assert moved == options.get("norms", True)
    assert all(p.requires_grad for m in found.modules() if isinstance(m, nn.RMSNorm) for p in m.parameters())
    assert _divergence(found, model, batches) < 0.85 * _divergence(rounded, model, batches)


def test_keeps_the_start_where_nothing_is_better(tiny: Any, batches: list[torch.Tensor]) -> None:
    rounded, found = (quanto.quantize(tiny(), "int8") for _ in range(2))
    Pipeline().run(rounded, batches)
    Pipeline(Tune(1, rate=10.0)).run(found, batches)
    state = found.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in rounded.state_dict().items())


def test_one_in_eight_is_held_back(tiny: Any, batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    judged: list[int] = []
    loss = Tune._loss

    def noted(self: Tune, model: nn.Module, teacher: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        which = trained if torch.is_grad_enabled() else judged
        which.append(next(i for i, b in enumerate(batches) if b is batch))
        return loss(self, model, teacher, batch)

    monkeypatch.setattr(Tune, "_loss", noted)
    Pipeline(Tune(2)).run(quanto.quantize(tiny(), "int4"), batches)
    assert sorted(trained) == sorted(2 * [1, 2, 3, 4, 5, 6, 7])
    assert set(judged) == {0}


def test_models_without_logits(batches: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    x = [torch.randn(32, 32) for _ in range(4)]
    with torch.no_grad():
        wanted = [model(batch) for batch in x]
    one, other = (quanto.quantized(model, "int2", group_size=16) for _ in range(2))
    Pipeline().run(one, x)
    Pipeline(Tune(10, 1e-2, loss="square")).run(other, x)
    with torch.no_grad():
        before, after = (sum((m(b) - w).square().mean() for b, w in zip(x, wanted, strict=True)) for m in (one, other))
    assert after < 0.9 * before


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1 and rate positive, got 0"):
        Tune(0)
    with pytest.raises(ValueError, match="loss must be 'divergence' or 'square', got 'nll'"):
        Tune(loss="nll")
