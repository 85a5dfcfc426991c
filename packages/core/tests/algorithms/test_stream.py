# SPDX-License-Identifier: Apache-2.0
"""Chains of blocks: found where most quantized weights lie, recorded as they are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import quanto
from quanto.algorithms.stream import calm, find_chain, find_shared, record


def test_finds_the_list_with_most_weights(tiny: Any) -> None:
    model = quanto.quantize(tiny(), "int8")
    assert [name for name, _ in find_chain(model)] == ["blocks.0", "blocks.1", "blocks.2"]
    lone = quanto.quantize(nn.Linear(8, 8), "int8")
    assert find_chain(lone) == [("", lone)]


def test_records_arguments_of_every_block(tiny: Any, batches: list[torch.Tensor]) -> None:
    model = quanto.quantize(tiny(), "int8")
    streams = record(model, find_chain(model), batches)
    assert streams is not None
    assert torch.equal(streams[0].values[3], model.embed(batches[3]))
    assert [len(s.others) for s in streams] == [8, 8, 8]
    assert streams[2].others[0] == ((), {"factor": 0.5})
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)


def test_a_block_called_twice_is_no_chain() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.blocks[1](self.blocks[0](self.blocks[0](x)))
            return y

    model = quanto.quantize(Twice(), "int8")
    assert record(model, find_chain(model), [torch.randn(2, 8)]) is None


def test_finds_what_several_blocks_use(tiny: Any) -> None:
    model = tiny()
    chain = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
    assert find_shared(model, chain) == frozenset()
    model.blocks[1].norm = model.blocks[0].norm
    model.blocks[2].norm.weight = model.norm.weight  # the parameter alone, of a norm outside of the chain
    assert find_shared(model, chain) == {model.blocks[0].norm, model.blocks[2].norm}


def test_no_part_of_a_model_fills_a_cache(tiny: Any) -> None:
    model = tiny()
    model.config, model.embed.config = SimpleNamespace(use_cache=False), SimpleNamespace(use_cache=True)
    model.train()
    with calm(model):
        assert not model.training
        assert not model.embed.config.use_cache
    assert model.training
    assert (model.config.use_cache, model.embed.config.use_cache) == (False, True)


def test_equal_arguments_are_kept_once(tiny: Any, batches: list[torch.Tensor]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = tiny().blocks
            self.embed = tiny().embed

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x, factor = self.embed(tokens), torch.full((1,), 0.5 if tokens.shape[0] == 4 else float(tokens[0, 0]))
            for block in self.blocks:
                (x,) = block(x, factor=factor)
            return x

    model = quanto.quantize(Masked(), "int8")
    other = [torch.full((2, 32), token) for token in range(7)]
    streams = record(model, find_chain(model), [*batches, *other, batches[0], other[6]])
    assert streams is not None
    factors = [[kwargs["factor"] for _, kwargs in stream.others] for stream in streams]
    assert [float(f) for f in factors[0]] == [0.5] * 8 + [0, 1, 2, 3, 4, 5, 6, 0.5, 6]
    assert len({id(f) for f in factors[0][:8]}) == 1
    assert factors[0][16] is factors[0][14]
    assert all(a is b for stream in factors for a, b in zip(stream, factors[0], strict=True))
