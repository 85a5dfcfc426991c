# SPDX-License-Identifier: Apache-2.0
"""`generate` of every family that writes: with codes, after a reload, with a quantized cache; and pushing to a hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tiny import CAUSAL, auto_class, inputs, run
from transformers import QuantizedCache

from quanto_transformers import QuantoCacheLayer, QuantoConfig

Saved = Callable[..., Path]

#: whose layers see a part of the text only: transformers has no quantized cache for them.
SLIDING = {"gemma3", "gpt-oss", "llama4"}
OPTIONS: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "output_logits": True}
OPTIONS |= {"return_dict_in_generate": True}
CACHE = {"backend": "quanto", "nbits": 8, "q_group_size": 8, "residual_length": 8}


def load(name: str, folder: Path, **kwargs: Any) -> Any:
    return auto_class(name).from_pretrained(folder, **kwargs)


def prompt(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in inputs(name).items() if not key.startswith("decoder_")}


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "whisper"])
def test_the_texts_of_the_dequantized_model(name: str, saved: Saved, tmp_path: Path) -> None:
    model = load(name, saved(name), quantization_config=QuantoConfig("int4"))
    found = model.generate(**prompt(name), **OPTIONS)
    model.save_pretrained(tmp_path)
    again = load(name, tmp_path).generate(**prompt(name), **OPTIONS)
    assert torch.equal(again.sequences, found.sequences)
    expected = model.dequantize().generate(**prompt(name), **OPTIONS)
    torch.testing.assert_close(found.logits[0], expected.logits[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(again.logits[-1], found.logits[-1], atol=0, rtol=0)


@pytest.mark.parametrize("name", [n for n in CAUSAL if n not in SLIDING])
def test_a_quantized_cache(name: str, saved: Saved) -> None:
    model = load(name, saved(name), quantization_config=QuantoConfig("int8"))
    exact = model.generate(**prompt(name), **OPTIONS)
    found = model.generate(**prompt(name), cache_implementation="quantized", cache_config=CACHE, **OPTIONS)
    assert all(isinstance(layer, QuantoCacheLayer) for layer in found.past_key_values.layers)
    assert found.past_key_values.layers[0].old_keys.length >= 16
    torch.testing.assert_close(found.logits[0], exact.logits[0])  # of the prompt, which is still exact
    torch.testing.assert_close(found.logits[1], exact.logits[1], atol=0.1, rtol=0)


@pytest.mark.parametrize("name", sorted(SLIDING))
def test_no_quantized_cache_where_layers_slide(name: str, saved: Saved) -> None:
    with pytest.raises(ValueError, match="only full attention layers"):
        QuantizedCache("quanto", load(name, saved(name)).config, nbits=4)


def test_push_to_hub(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded is a folder that loads."""
    card = "---\nlibrary_name: transformers\n---\n"

    def create_repo(self: Any, repo_id: str, **kwargs: Any) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self: Any, *args: Any, operations: list[Any], **kwargs: Any) -> None:
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, tmp_path / operation.path_in_repo)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", lambda *args, **kwargs: huggingface_hub.ModelCard(card))
    model = load("llama", saved("llama"), quantization_config=QuantoConfig("int4"))
    model.push_to_hub("someone/llama-int4")
    assert (tmp_path / "README.md").is_file()
    assert torch.equal(run(load("llama", tmp_path), "llama"), run(model, "llama"))
