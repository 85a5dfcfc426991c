# SPDX-License-Identifier: Apache-2.0
"""Training through transformers' Trainer: adapters on codes, and the weights themselves before they are codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import auto_class, inputs, run
from torch.utils.data import Dataset

from quanto.nn import QModule
from quanto_transformers import QuantoConfig, freeze

Saved = Callable[..., Path]


def load(name: str, folder: Path, **config: Any) -> Any:
    given = {"quantization_config": QuantoConfig(**config)} if config else {}
    return auto_class(name).from_pretrained(folder, **given)


class Rows(Dataset):
    """The same few rows."""

    def __init__(self) -> None:
        self.ids = inputs("llama")["input_ids"]

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.ids[index % len(self.ids)]
        return {"input_ids": row, "labels": row}


def trainer(model: Any, folder: Path, **options: Any) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=10,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=Rows())


def losses(done: transformers.Trainer) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def test_trainer_takes_adapters_and_refuses_codes(saved: Saved, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load("llama", saved("llama"), weights="int4")
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(model, tmp_path)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear"))
    done = trainer(adapted, tmp_path, gradient_checkpointing=True)
    done.train()
    found = losses(done)
    assert found[-1] < 0.85 * found[0]
    done.save_model(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(load("llama", saved("llama"), weights="int4"), tmp_path / "adapter")
    torch.testing.assert_close(run(again.eval(), "llama"), run(adapted.eval(), "llama"))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "mixtral"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_trained_then_frozen_then_saved(name: str, weights: str, saved: Saved, tmp_path: Path) -> None:
    tied = {"lm_head": True, "embeddings": True} if name == "llama-tied" else {}
    model = load(name, saved(name), weights=weights, qat=True, **tied)
    assert model.hf_quantizer.is_qat_trainable
    floats = {n: p.clone() for n, p in model.named_parameters()}
    rounded = run(load(name, saved(name), weights=weights, **tied), name)
    torch.testing.assert_close(run(model, name), rounded, atol=1e-4, rtol=1e-4)  # what training sees is what freezes

    done = trainer(model, tmp_path)
    done.train()
    found = losses(done)
    assert found[-1] < 0.8 * found[0]
    assert sum(not torch.equal(p, floats[n]) for n, p in model.named_parameters()) > 10
    model.eval()
    expected = run(model, name)

    model.save_pretrained(tmp_path / "trainable")
    resumed = load(name, tmp_path / "trainable")
    assert resumed.hf_quantizer.is_qat_trainable
    assert torch.equal(run(resumed, name), expected)

    freeze(model)
    assert not model.hf_quantizer.is_qat_trainable
    assert all(m.frozen for m in model.modules() if isinstance(m, QModule))
    torch.testing.assert_close(run(model, name), expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "frozen")
    again = load(name, tmp_path / "frozen")
    assert torch.equal(run(again, name), run(model, name))
    assert not again.hf_quantizer.is_qat_trainable
    if tied:
        assert again.lm_head.weight_packed is again.model.embed_tokens.weight_packed
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(model, tmp_path)


def test_learning_with_rounding_beats_rounding_afterwards(saved: Saved, tmp_path: Path) -> None:
    """Two bits: what training is worth."""
    found = {}
    for qat in (True, False):
        model = (
            load("llama", saved("llama"), weights="int2", qat=True, group_size=32)
            if qat
            else load("llama", saved("llama"))
        )
        trainer(model, tmp_path).train()
        if qat:
            model = freeze(model.eval())
        else:
            model.save_pretrained(tmp_path / "float")
            model = load("llama", tmp_path / "float", weights="int2", group_size=32)
        given = inputs("llama")
        with torch.no_grad():
            found[qat] = model(**given, labels=given["input_ids"]).loss.item()
    assert found[True] < found[False]


def test_activations_while_training(saved: Saved, tmp_path: Path) -> None:
    model = load("llama", saved("llama"), weights="int8", activations="int8", qat=True)
    done = trainer(model, tmp_path)
    done.train()
    assert losses(done)[-1] < 0.8 * losses(done)[0]
    expected = run(model.eval(), "llama")
    torch.testing.assert_close(run(freeze(model), "llama"), expected, atol=5e-2, rtol=2e-2)
