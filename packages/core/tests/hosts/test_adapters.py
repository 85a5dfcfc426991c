# SPDX-License-Identifier: Apache-2.0
"""Merging adapters, with a stand-in for PEFT's classes: the packages of integrations test it with PEFT itself."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

import quanto
from quanto.hosts.adapters import teach_tuners
from quanto.nn import QModule


class Layer(nn.Module):
    """An adapter layer that adds one to the weight."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.merged = base, False
        self.names: list[str] | None = None

    def get_base_layer(self) -> nn.Module:
        return self.base

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        self.base.weight.data += 1
        self.names = adapter_names
        self.merged = True

    def unmerge(self) -> None:
        self.base.weight.data -= 1
        self.merged = False


def test_merging_requantizes_and_unmerging_restores_the_codes() -> None:
    seen = []

    class Tuner:
        def inject_adapter(self, model: nn.Sequential) -> None:
            seen.append(type(model[0]))
            model[0] = Layer(model[0])

    teach_tuners(Tuner, Layer)
    teach_tuners(Tuner, Layer)  # once is enough
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(4, 4, 3))
    quanto.freeze(quanto.quantize(model, "int8"))
    before = model[0].weight.dequantize()
    Tuner().inject_adapter(model)
    assert seen == [nn.Conv2d]  # while PEFT looks for layers it knows
    assert isinstance(model[0].base, QModule)
    assert list(inspect.signature(model[0].merge).parameters) == ["safe_merge", "adapter_names"]
    model[0].merge(adapter_names=["a"])
    assert model[0].names == ["a"]
    assert (model[0].base.weight.dequantize() - before - 1).abs().max() < 0.02
    model[0].unmerge()
    assert torch.equal(model[0].base.weight.dequantize(), before)
