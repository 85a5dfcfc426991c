# SPDX-License-Identifier: Apache-2.0
"""Rotations are orthogonal, and a rotated model computes what it did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import Pipeline, Rotate
from quanto.algorithms.rotate import hadamard, rotation


@pytest.mark.parametrize("size", [1, 2, 64, 48, 576])
def test_orthogonal(size: int) -> None:
    q = rotation(size)
    torch.testing.assert_close(q @ q.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not torch.equal(rotation(size, 1), q) or size < 4
    if size & (size - 1) == 0:
        torch.testing.assert_close(q.abs(), torch.full_like(q, size**-0.5), rtol=1e-12, atol=0)


def test_hadamard_sizes() -> None:
    with pytest.raises(ValueError, match="size must be a power of two, got 12"):
        hadamard(12)


def _llama(tied: bool, bias: bool = False) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, True)])
def test_computes_the_same(tied: bool, bias: bool) -> None:
    model = _llama(tied, bias)
    tokens = torch.randint(0, 100, (2, 16))
    with torch.no_grad():
        before = model(tokens).logits
        weight = model.model.layers[0].mlp.up_proj.weight.clone()
        Rotate().prepare(model)
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, weight)
    assert (model.model.norm.weight == 1).all()


def test_in_a_pipeline_before_gptq() -> None:
    model = _llama(True)
    tokens = torch.randint(0, 100, (2, 16))
    before = model(tokens).logits
    quanto.quantize(model, "int8", exclude=["lm_head"])
    Pipeline("rotate", "gptq").run(model, [tokens])
    assert model.model.layers[0].mlp.up_proj.frozen
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0.02 * float(before.abs().max()))


def test_refuses_other_architectures(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"needs a decoder built as Llama is: TinyModel has no model.layers"):
        Rotate().prepare(tiny())
    model = _llama(False)
    model.model.layers[1].mlp.extra = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"model.layers.1 has mlp.extra too"):
        Rotate().prepare(model)
    del model.model.layers[1].mlp.extra, model.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match=r"model.layers.1 has no mlp.up_proj"):
        Rotate().prepare(model)
    model = _llama(False)
    model.model.norm = nn.LayerNorm(96)
    with pytest.raises(ValueError, match="LayerNorm is not a plain RMS norm"):
        Rotate().prepare(model)


def test_refuses_before_anything_changes() -> None:
    model = quanto.quantize(_llama(tied=False), "int8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.model.embed_norm = nn.LayerNorm(96)
    with pytest.raises(ValueError, match="model has embed_norm too"):
        Rotate().prepare(model)
    del model.model.embed_norm
    model.model.layers[1].mlp.up_proj.freeze()
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj is frozen"):
        Rotate().prepare(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before)
