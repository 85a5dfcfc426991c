# SPDX-License-Identifier: Apache-2.0
"""Tied tensors are found by identity or memory, never by value, and tied again."""

from __future__ import annotations

import copy

import torch
from torch import nn

import quanto
from quanto.ties import retie, untie


class Tied(nn.Module):
    """An embedding whose weight is the head's, a module under two names, and a shared buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.first = self.second = nn.Linear(8, 8)
        self.register_buffer("one", torch.ones(3))
        self.register_buffer("two", self.one)


def test_untying_names_each_tensor_once() -> None:
    model = Tied()
    tensors, aliases = untie(model.state_dict())
    assert list(tensors) == ["one", "embedding.weight", "first.weight", "first.bias"]
    assert aliases == {
        "two": "one",
        "head.weight": "embedding.weight",
        "second.weight": "first.weight",
        "second.bias": "first.bias",
    }
    assert tensors["embedding.weight"].data_ptr() == model.head.weight.data_ptr()
    assert set(tensors) | set(aliases) == set(model.state_dict())


def test_memory_decides_not_values() -> None:
    a = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": a,
        "the same memory": a.view(3, 4),
        "equal": a.clone(),
        "a part": a[:2],
        "another shape": a.view(4, 3),
        "other strides": a.as_strided((3, 4), (1, 3)),
        "another dtype": a.view(torch.int32),
        "again": a.detach(),
    }
    tensors, aliases = untie(state)
    assert aliases == {"the same memory": "a", "again": "a"}
    assert list(tensors) == [name for name in state if name not in aliases]
    assert all(tensors[name] is state[name] for name in tensors)


def test_tensors_without_memory_are_tied_by_identity() -> None:
    for options in ({"device": "meta"}, {}):
        size = 3 if options else 0  # an empty tensor has no memory either
        shared, other = torch.empty(size, **options), torch.empty(size, **options)
        tensors, aliases = untie({"x": shared, "y": other, "z": shared})
        assert aliases == {"z": "x"}
        assert list(tensors) == ["x", "y"]


def _loosen(model: Tied) -> None:
    model.head.weight = nn.Parameter(torch.zeros(10, 8))
    model.two = torch.zeros(3)


def test_retying_makes_one_object() -> None:
    model = Tied()
    aliases = untie(model.state_dict())[1]
    _loosen(model)
    retie(model, aliases)
    assert model.head.weight is model.embedding.weight
    assert model.two is model.one
    assert model.second is model.first
    assert untie(model.state_dict())[1] == aliases


def test_retying_codes() -> None:
    model = quanto.freeze(quanto.quantize(Tied(), "int8"))
    aliases = untie(model.state_dict())[1]
    assert {"second.weight_packed", "second.weight_scale", "second.bias"} <= set(aliases)
    model.second = copy.deepcopy(model.first)
    retie(model, aliases)
    assert model.second is not model.first
    for name in ("weight_packed", "weight_scale", "bias"):
        assert model.second._parameters[name] is model.first._parameters[name]


def test_names_the_model_does_not_have_are_passed_over() -> None:
    model = Tied()
    weight = model.head.weight
    retie(model, {"head.weight": "nowhere.weight", "nowhere.weight": "head.weight", "head.bias": "first.bias"})
    retie(model, {"head.weight": "embedding.other", "embedding.other": "head.weight"})
    assert model.head.weight is weight
    assert model.head.bias is None
    assert not hasattr(model.embedding, "other")
