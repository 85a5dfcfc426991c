# SPDX-License-Identifier: Apache-2.0
"""An optimizer that holds a replaced weight stops, and no other does."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import quanto
from quanto.nn import frozen
from quanto.nn.frozen import guard_orphan


def _stepped(*parameters: nn.Parameter) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_every_optimizer_stops(kind: type[torch.optim.Optimizer]) -> None:
    orphan = nn.Parameter(torch.ones(2, 3))
    optimizer = kind([orphan], lr=0.1)  # type: ignore[call-arg]
    guard_orphan(orphan)
    assert not orphan.requires_grad
    assert orphan.grad is None
    with pytest.raises(RuntimeError, match=r"float weight of shape \(2, 3\) that quanto\.freeze has replaced"):
        optimizer.step(lambda: torch.zeros(()))


def test_one_replaced_weight_among_others_is_enough() -> None:
    kept, replaced = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    both, one = _stepped(kept, replaced), _stepped(kept)
    guard_orphan(replaced)
    before = kept.detach().clone()
    with pytest.raises(RuntimeError, match="Build a new optimizer"):
        both.step()
    assert torch.equal(kept, before), "it stops before it changes anything"
    kept.grad = torch.ones(2)
    one.step()
    assert not torch.equal(kept, before)


def test_weights_that_were_not_trained_are_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(2), requires_grad=False)
    guard_orphan(parameter)
    assert id(parameter) not in frozen._orphans
    torch.optim.SGD([parameter], lr=0.1).step()


def test_what_is_gone_is_forgotten() -> None:
    parameter = nn.Parameter(torch.ones(2))
    key = id(parameter)
    guard_orphan(parameter)
    assert frozen._orphans.get(key) is parameter
    del parameter
    gc.collect()
    assert key not in frozen._orphans


def test_training_again_after_dequantize() -> None:
    model = quanto.freeze(quanto.quantize(nn.Sequential(nn.Linear(4, 4)), "int8"))
    quanto.dequantize(model)
    before = model[0].weight.detach().clone()  # type: ignore[index]
    _stepped(model[0].weight)  # type: ignore[index]
    assert not torch.equal(model[0].weight, before)  # type: ignore[index]
