# SPDX-License-Identifier: Apache-2.0
"""What transformers' own tests of its quanto integration assert, asserted of this one.

Two of them assert that saving and quantized activations are refused; here both work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import auto_class, build, inputs, run
from torch import nn
from transformers import QuantoConfig

import quanto
from quanto.nn import QLayerNorm, QLinear, QModule
from quanto_transformers import QuantoConfig as OurConfig

Saved = Callable[..., Path]


def count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_weight_only_quantization_conversion(saved: Saved) -> None:
    plain = build("opt")
    config = OurConfig(weights="int8", lm_head=True, embeddings=True)  # one tied weight
    model = auto_class("opt").from_pretrained(saved("opt"), quantization_config=config)
    assert count(model, QLinear) == count(plain, nn.Linear)
    assert count(model, QLayerNorm) == 0


def test_weight_and_activation_quantization_conversion(saved: Saved) -> None:
    plain = build("opt")
    config = OurConfig(weights="int8", activations="int8", lm_head=True, embeddings=True)
    model = auto_class("opt").from_pretrained(saved("opt"), quantization_config=config)
    assert count(model, QLinear) == count(plain, nn.Linear)
    assert count(model, QLayerNorm) == count(plain, nn.LayerNorm) > 0


def test_conversion_with_modules_to_not_convert(saved: Saved) -> None:
    plain = build("opt")
    config = QuantoConfig(weights="int8", modules_to_not_convert=["lm_head"])
    model = auto_class("opt").from_pretrained(saved("opt"), quantization_config=config)
    assert count(model, QLinear) == count(plain, nn.Linear) - 1


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantized_model_layers(weights: str, saved: Saved) -> None:
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig(weights=weights))
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, QLinear)
    assert isinstance(layer.weight, quanto.QTensor)
    assert layer.weight.qtype.name == weights
    moved = copy.deepcopy(model).to("meta").model.layers[0].self_attn.q_proj
    assert moved.weight.device.type == "meta"


@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "float8"])
def test_compare_with_quanto(weights: str, saved: Saved) -> None:
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig(weights=weights))
    expected = quanto.freeze(quanto.quantize(build("llama"), weights, exclude=["lm_head", "*embed_tokens"]))
    found, wanted = model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), wanted[name].view(torch.uint8)), name


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_generate_quality(weights: str, saved: Saved) -> None:
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig(weights=weights))
    reference = quanto.dequantize(quanto.freeze(quanto.quantize(build("llama"), weights, exclude=["lm_head"])))
    ids = inputs("llama")["input_ids"][:1]
    found, expected = (m.generate(ids, max_new_tokens=8, do_sample=False) for m in (model, reference))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_serialization_safetensors(weights: str, saved: Saved, tmp_path: Path) -> None:
    """Refused by the stock integration."""
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig(weights=weights))
    model.save_pretrained(tmp_path)
    assert torch.equal(run(auto_class("llama").from_pretrained(tmp_path), "llama"), run(model, "llama"))


def test_quantize_activation(saved: Saved) -> None:
    """Refused by the stock integration."""
    config = QuantoConfig(weights="int8", activations="int8")
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=config)
    assert {m.scheme.activations for m in model.modules() if isinstance(m, QModule)} == {"int8"}
    assert run(model, "llama").isfinite().all()


def test_quantized_cache_and_its_config(saved: Saved) -> None:
    model = auto_class("llama").from_pretrained(saved("llama"))
    ids = inputs("llama")["input_ids"]
    given = {"backend": "quanto", "nbits": 8, "q_group_size": 8, "residual_length": 8}
    options = {"max_new_tokens": 12, "do_sample": False}
    found = model.generate(ids, cache_implementation="quantized", cache_config=given, **options)
    assert (found == model.generate(ids, **options)).double().mean() > 0.9
