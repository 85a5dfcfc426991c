# SPDX-License-Identifier: Apache-2.0
"""Quantized activations: dynamic without data, static after calibration, and back from a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import MODELS, auto_class, build, inputs, run

from quanto import kernels
from quanto.nn import QModule
from quanto_transformers import QuantoConfig, calibrate

Saved = Callable[..., Path]


def load(name: str, folder: Path, **config: Any) -> Any:
    given = {"quantization_config": QuantoConfig(**config)} if config else {}
    return auto_class(name).from_pretrained(folder, **given)


def error(model: Any, name: str) -> float:
    expected = run(build(name), name)
    return ((run(model, name) - expected).norm() / expected.norm()).item()


def scales(model: Any) -> dict[str, torch.Tensor]:
    return {n: b for n, b in model.named_buffers() if n.endswith(("input_scale", "output_scale"))}


@pytest.mark.parametrize("activations", ["int8", "float8"])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "llama-tied"])
def test_dynamic_then_static_then_saved(name: str, activations: str, saved: Saved, tmp_path: Path) -> None:
    model = load(name, saved(name), weights="int8", activations=activations)
    assert not scales(model)
    assert error(model, name) < (0.12 if activations == "int8" else 0.25)
    dynamic = run(model, name)
    model.save_pretrained(tmp_path / "dynamic")
    assert torch.equal(run(load(name, tmp_path / "dynamic"), name), dynamic)

    calibrate(model, [inputs(name)] * 2)
    found = scales(model)
    assert sum(n.endswith("input_scale") for n in found) >= 8
    assert error(model, name) < (0.2 if activations == "int8" else 0.3)
    static = run(model, name)
    assert not torch.equal(static, dynamic)
    model.save_pretrained(tmp_path / "static")
    again = load(name, tmp_path / "static")
    assert {n: b.item() for n, b in scales(again).items()} == {n: b.item() for n, b in found.items()}
    assert torch.equal(run(again, name), static)


def test_what_takes_activations_runs_on_integers(saved: Saved) -> None:
    """Not on floats that were rounded: the operator of each layer is the one for codes."""
    model = load("llama", saved("llama"), weights="int8", activations="int8")
    layer = model.model.layers[0].mlp.up_proj
    assert layer.request().op == "scaled_linear"
    assert kernels.choose(layer.request()).spec.op == "scaled_linear"


def test_texts(saved: Saved, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, **{word: i + 3 for i, word in enumerate(["the", "quick", "brown", "fox", "jumps"])}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    texts = ["the quick brown fox", "fox jumps", "the the the"]
    forms: list[dict[str, Any]] = [
        {"data": texts},
        {"data": [{"text": text} for text in texts]},
        {"data": iter(texts), "batch_size": 1},
        {"data": [tokenizer(text, return_tensors="pt") for text in texts]},
    ]
    model = load("llama", saved("llama"), weights="int8", activations="int8")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = []
    for form in forms:
        again = load("llama", tmp_path)
        calibrate(again, **form)  # the tokenizer lies beside the model
        found.append({n: b.item() for n, b in scales(again).items()})
    assert all(other == found[0] for other in found)
    batched = load("llama", tmp_path)
    calibrate(batched, texts, tokenizer=tokenizer, batch_size=2)
    assert scales(batched).keys() == found[0].keys()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="need a tokenizer with a pad_token"):
        calibrate(batched, texts, tokenizer=tokenizer, batch_size=2)


def test_batches_in_all_their_forms(saved: Saved) -> None:
    model = load("llama", saved("llama"), weights="int8", activations="int8")
    ids = inputs("llama")["input_ids"]
    loader = torch.utils.data.DataLoader([{"input_ids": row} for row in ids], batch_size=2)
    found = []
    for data in ([{"input_ids": ids}], [ids], [(ids,)], loader):
        each = copy.deepcopy(model)
        calibrate(each, data)
        found.append({n: b.item() for n, b in scales(each).items()})
    assert all(other == found[0] for other in found)


def test_leaves_the_mode_as_it_was(saved: Saved) -> None:
    model = load("llama", saved("llama"), weights="int8", activations="int8")
    for training in (False, True):
        model.train(training)
        calibrate(model, [inputs("llama")])
        assert model.training is training


def test_refuses(saved: Saved) -> None:
    for config in ({"weights": "int8"}, {"activations": "int8", "dynamic": True}):
        with pytest.raises(ValueError, match="no layer has activations to calibrate"):
            calibrate(load("llama", saved("llama"), **config), [inputs("llama")])
    model = load("llama", saved("llama"), activations="int8")
    with pytest.raises(ValueError, match="given no data"):
        calibrate(model, [])


def test_static_needs_calibration(saved: Saved) -> None:
    model = load("llama", saved("llama"), weights="int8", activations="int8", dynamic=False)
    with pytest.raises(RuntimeError, match="has static int8 activations but no input_scale"):
        run(model, "llama")
    calibrate(model, [inputs("llama")])
    assert error(model, "llama") < 0.2
    assert all(m.scheme.dynamic is False for m in model.modules() if isinstance(m, QModule))
