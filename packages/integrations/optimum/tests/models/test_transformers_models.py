# SPDX-License-Identifier: Apache-2.0
"""Language models: quantized, saved, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from optimum.quanto import (
    Calibration,
    QLinear,
    QuantizedModelForCausalLM,
    QuantizedTransformersModel,
    quantization_map,
)

TOKENS = torch.arange(8)[None]


def build(dtype: torch.dtype = torch.float32, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads, **options), dtype=dtype).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found = model(TOKENS).logits
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("exclude", [None, "lm_head"])
def test_saved_and_read(tmp_path: Path, exclude: str | None, tied: bool, dtype: torch.dtype) -> None:
    model = build(dtype, tie_word_embeddings=tied)
    quantized = QuantizedModelForCausalLM.quantize(model, weights="qint4", exclude=exclude)
    quantized.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert quantized.config.tie_word_embeddings == tied
    read = QuantizedModelForCausalLM.from_pretrained(tmp_path)
    assert read.dtype == dtype
    assert not read.training
    assert isinstance(read.lm_head, QLinear) == (exclude is None)
    assert (read.lm_head.weight is read.get_input_embeddings().weight) == (tied and exclude is not None)
    assert torch.equal(logits(read), logits(quantized))


@pytest.mark.parametrize("weights", ["qint2", "qint8", "qfloat8"])
def test_other_qtypes(tmp_path: Path, weights: str) -> None:
    quantized = QuantizedModelForCausalLM.quantize(build(), weights=weights)
    quantized.save_pretrained(tmp_path)
    assert torch.equal(logits(QuantizedModelForCausalLM.from_pretrained(tmp_path)), logits(quantized))


def test_outputs_that_calibration_left_floating_stay_so(tmp_path: Path) -> None:
    model = build()
    quantized = QuantizedModelForCausalLM.quantize(model, weights="qint8", activations="qint8")
    with torch.no_grad(), Calibration():
        model(TOKENS)
    found = json.loads(json.dumps(quantization_map(model)))
    assert found["model.layers.0.self_attn.q_proj"]["outputs"] == "none"
    quantized.save_pretrained(tmp_path)
    read = QuantizedModelForCausalLM.from_pretrained(tmp_path)
    assert quantization_map(read) == found
    assert torch.equal(logits(read), logits(quantized))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    QuantizedModelForCausalLM.quantize(build(), weights="qint8").save_pretrained(tmp_path)
    path = tmp_path / "quanto_qmap.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "model.gone": entries["lm_head"]}))
    with pytest.raises(ValueError, match=r"names 'model\.gone', which LlamaForCausalLM does not have"):
        QuantizedModelForCausalLM.from_pretrained(tmp_path)
    path.write_text(json.dumps({name: entry for name, entry in entries.items() if name != "lm_head"}))
    with pytest.raises(ValueError, match=r"state_dict lacks lm_head\.weight"):
        QuantizedModelForCausalLM.from_pretrained(tmp_path)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="model must be a transformers model, got Linear"):
        QuantizedModelForCausalLM.quantize(nn.Linear(2, 2), weights="qint8")
    with pytest.raises(ValueError, match="no module of this LlamaForCausalLM is"):
        QuantizedModelForCausalLM(build())
    with pytest.raises(ValueError, match="QuantizedTransformersModel has no auto_class"):
        QuantizedTransformersModel.from_pretrained("anywhere")


def test_it_stands_for_its_model() -> None:
    model = build()
    quantized = QuantizedModelForCausalLM.quantize(model, weights="qint8")
    assert torch.equal(quantized.forward(TOKENS).logits, model(TOKENS).logits)
    assert repr(quantized) == repr(model)
    assert quantized.generate(TOKENS, max_new_tokens=2, pad_token_id=0).shape == (1, 10)
