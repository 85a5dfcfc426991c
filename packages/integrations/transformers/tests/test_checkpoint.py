# SPDX-License-Identifier: Apache-2.0
"""Folders that core's command line writes, as transformers reads them; and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import quanto
from quanto.cli import main
from quanto_transformers import QuantoConfig
from quanto_transformers.checkpoint import Checkpoint

IDS = torch.arange(3, 27).view(2, 12)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("weights", ["int4", "int8", "nf4"])
def test_the_command_line_writes_what_from_pretrained_would(
    saved: Callable[..., Path], tmp_path: Path, name: str, weights: str
) -> None:
    folder = saved(name)
    assert main(["quantize", str(folder), "-o", str(tmp_path / "out"), "--weights", weights]) == 0
    expected = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantoConfig(weights))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found), logits(expected))
    names = [
        sorted(n for n, m in model.named_modules() if isinstance(m, quanto.nn.QModule)) for model in (found, expected)
    ]
    assert names[0] == names[1]


def test_core_loads_what_save_pretrained_wrote(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("llama"), quantization_config=QuantoConfig("int4"))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(saved("llama"))
    found = quanto.load(tmp_path, AutoModelForCausalLM.from_config(config))
    assert torch.equal(logits(found), logits(model))


def test_what_a_folder_is(saved: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    assert checkpoint.accepts(saved("llama"))
    assert not checkpoint.detect(saved("llama"))
    assert not checkpoint.accepts(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert not checkpoint.detect(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert not checkpoint.accepts(tmp_path)


def test_a_folder_without_a_language_model_is_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ValueError, match="can't be opened"):
        Checkpoint().open(tmp_path)
