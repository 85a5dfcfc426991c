# SPDX-License-Identifier: Apache-2.0
"""Quantizing while loading, saving, and loading what was saved: every family of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from tiny import MODELS, auto_class, build, run

import quanto
from quanto.hosts import rows as op
from quanto.nn import QModule
from quanto_transformers import QuantoConfig, QuantoHfQuantizer

Saved = Callable[..., Path]

#: relative error of the logits of models with random weights, which is about that of their weights.
ERROR = {"int8": 0.07, "int4": 0.3, "float8": 0.15}


def load(name: str, folder: Path, *args: Any, **kwargs: Any) -> Any:
    return auto_class(name).from_pretrained(folder, *args, **kwargs)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return found


@pytest.mark.parametrize("weights", ERROR)
@pytest.mark.parametrize("name", MODELS)
def test_quantize_save_reload_save(
    name: str, weights: str, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    quantized = load(name, saved(name), quantization_config=transformers.QuantoConfig(weights=weights))
    assert isinstance(quantized.hf_quantizer, QuantoHfQuantizer)
    logits, expected = run(quantized, name), run(model, name)
    error = (logits - expected).norm() / expected.norm()
    assert 1e-4 < error < ERROR[weights]
    assert quantized.get_memory_footprint() < 0.65 * model.get_memory_footprint()

    quantized.save_pretrained(tmp_path / "a", max_shard_size="50KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    monkeypatch.setattr(op, "quantize_parts", None)  # nothing is quantized again
    again = load(name, tmp_path / "a")
    assert torch.equal(run(again, name), logits)
    assert again.get_memory_footprint() == quantized.get_memory_footprint()
    state, state_again = quantized.state_dict(), again.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[key], state_again[key]) for key in state)

    again.save_pretrained(tmp_path / "b", max_shard_size="50KB")
    first, second = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt-oss", "vit"])
@pytest.mark.parametrize("weights", ["int8", "int4", "int3", "int2", "float8", "nf4", "fp4", "mxfp4", "mxfp8", "nvfp4"])
def test_the_same_as_core(name: str, weights: str, saved: Saved) -> None:
    """What was quantized while loading equals what core makes of the loaded float model."""
    loaded = load(name, saved(name), quantization_config=QuantoConfig(weights))
    model = build(name)
    for path, module in loaded.named_modules():
        if isinstance(module, QModule):
            for leaf, slot in module._slots.items():
                value = model.get_submodule(path).get_parameter(leaf)
                expected = quanto.quantize_tensor(slot.rows(value.detach()), module.scheme).dequantize()
                assert torch.equal(slot.rows(module.effective(leaf)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, saved: Saved, tmp_path: Path) -> None:
    quantized = load("llama", saved("llama", dtype), quantization_config=QuantoConfig("int4", group_size=32))
    assert quantized.dtype == dtype
    layer = quantized.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == layer.weight_scale.dtype == dtype
    logits = run(quantized, "llama")
    quantized.save_pretrained(tmp_path)
    assert torch.equal(run(load("llama", tmp_path), "llama"), logits)
    # in another dtype the codes and scales stay what they are
    other = load("llama", tmp_path, dtype=torch.float32)
    assert other.dtype == other.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    state, state_other = quantized.state_dict(), other.state_dict()
    assert all(torch.equal(state[key], state_other[key]) for key in state if key.endswith(("_packed", "_scale")))
    torch.testing.assert_close(run(other, "llama"), logits.float(), atol=0.05, rtol=0.05)


def test_tied_weights_stay_one(saved: Saved, tmp_path: Path) -> None:
    config = QuantoConfig("int8", lm_head=True, embeddings=True)
    quantized = load("llama-tied", saved("llama-tied"), quantization_config=config)
    for model in (quantized, None):
        if model is None:
            quantized.save_pretrained(tmp_path)
            model = load("llama-tied", tmp_path)
            assert not any("lm_head" in key for key in tensors(tmp_path))
        assert model.lm_head.weight_packed is model.model.embed_tokens.weight_packed
        assert model.lm_head.weight_scale is model.model.embed_tokens.weight_scale
        model.tie_weights()
        assert model.lm_head.weight_packed is model.model.embed_tokens.weight_packed
        assert torch.equal(run(model, "llama"), run(quantized, "llama"))
    expected = run(build("llama-tied"), "llama")
    assert (run(quantized, "llama") - expected).norm() / expected.norm() < 0.05


def test_the_config_of_a_saved_model(saved: Saved, tmp_path: Path) -> None:
    config = QuantoConfig("int8", rules={"*.down_proj": {"weights": "int4", "group_size": 32}})
    load("llama", saved("llama"), quantization_config=config).save_pretrained(tmp_path)
    assert config.modules is None  # the user's object is not ours to change
    found = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert found["quant_method"] == "quanto"
    assert found["format_version"] == 1
    groups = {group["scheme"]["weights"]: group["names"] for group in found["modules"]}
    assert groups["int4"] == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert len(groups["int8"]) == 12
    again = load("llama", tmp_path)
    assert isinstance(again.config.quantization_config, QuantoConfig)
    assert again.config.quantization_config.to_dict() == found


def test_a_saved_config_wins_over_one_that_is_passed(saved: Saved, tmp_path: Path) -> None:
    load("llama", saved("llama"), quantization_config=QuantoConfig("int8")).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        again = load("llama", tmp_path, quantization_config=transformers.QuantoConfig(weights="int4"))
    assert again.model.layers[0].mlp.up_proj.scheme.weights == "int8"


def test_none_as_config_does_not_hide_the_saved_one(saved: Saved, tmp_path: Path) -> None:
    """transformers then overwrites what the file says, and would draw random weights."""
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig("int8"))
    model.save_pretrained(tmp_path)
    again = auto_class("llama").from_pretrained(tmp_path, quantization_config=None)
    assert torch.equal(run(again, "llama"), run(model, "llama"))
    plain = auto_class("llama").from_pretrained(saved("llama"), quantization_config=None)
    assert not any(isinstance(m, QModule) for m in plain.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt-oss", "whisper"])
def test_dequantize(name: str, saved: Saved, tmp_path: Path) -> None:
    quantized = load(name, saved(name), quantization_config=QuantoConfig("int8"))
    logits = run(quantized, name)
    quantized.save_pretrained(tmp_path / "q")
    floating = [quantized.dequantize(), load(name, tmp_path / "q", quantization_config=QuantoConfig(dequantize=True))]
    for model in floating:
        assert not any(isinstance(module, QModule) for module in model.modules())
        assert model.state_dict().keys() == build(name).state_dict().keys()
        assert not getattr(model, "is_quantized", False)
        torch.testing.assert_close(run(model, name), logits, atol=2e-4, rtol=2e-3)
        model.save_pretrained(tmp_path / "f")
        assert "quantization_config" not in json.loads((tmp_path / "f" / "config.json").read_text())
        assert torch.equal(run(load(name, tmp_path / "f"), name), run(model, name))


def test_another_head_or_none(saved: Saved, tmp_path: Path) -> None:
    """A saved causal model as a base model, and as a classifier whose head is new."""
    quantized = load("llama", saved("llama"), quantization_config=QuantoConfig("int8"))
    quantized.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    expected = quantized.model(torch.arange(12)[None])[0]
    assert torch.equal(base(torch.arange(12)[None])[0], expected)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(classifier.model(torch.arange(12)[None])[0], expected)
    fresh = transformers.AutoModelForSequenceClassification.from_pretrained(
        saved("llama"), num_labels=3, quantization_config=QuantoConfig("int8")
    )
    assert torch.equal(fresh.model(torch.arange(12)[None])[0], expected)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_weights_the_checkpoint_lacks_are_made_up_as_for_floats(name: str, saved: Saved, tmp_path: Path) -> None:
    state = tensors(saved(name))
    lacking = {"bert": "encoder.layer.1.output.dense.weight", "t5": "decoder.block.1.layer.0.SelfAttention.q.weight"}[
        name
    ]
    del state[lacking]
    build(name).save_pretrained(tmp_path, state_dict=state)
    config = QuantoConfig("int8")
    model, info = load(name, tmp_path, quantization_config=config, output_loading_info=True)
    assert info["missing_keys"] == {lacking}
    weight = model.get_submodule(lacking.rpartition(".")[0]).weight
    assert weight.qtype.name == "int8"
    # as transformers initializes it: 0.02, or (64 * 16)^-1/2
    assert weight.dequantize().std().item() == pytest.approx(0.02 if name == "bert" else 1 / 32, rel=0.1)


def test_missing_tensors_are_an_error(saved: Saved, tmp_path: Path) -> None:
    load("llama", saved("llama"), quantization_config=QuantoConfig("int4")).save_pretrained(tmp_path)
    state = tensors(tmp_path)
    from safetensors.torch import save_file

    for lacking in ("weight_scale", "weight_packed", "weight_zero_point"):
        name = f"model.layers.1.mlp.up_proj.{lacking}"
        save_file({k: v for k, v in state.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"{tmp_path.name}.* lacks '{name}': parts of quantized weights"):
            load("llama", tmp_path)


@pytest.mark.parametrize("part", ["packed", "scale", "zero_point"])
def test_tensors_of_another_shape_are_an_error(part: str, saved: Saved, tmp_path: Path) -> None:
    load("llama", saved("llama"), quantization_config=QuantoConfig("int4")).save_pretrained(tmp_path)
    state = tensors(tmp_path)
    from safetensors.torch import save_file

    name = f"model.layers.1.mlp.up_proj.weight_{part}"
    state[name] = state[name][:-1].contiguous()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight: .*must"):
        load("llama", tmp_path)


def test_a_truncated_shard_is_an_error(saved: Saved, tmp_path: Path) -> None:
    load("llama", saved("llama"), quantization_config=QuantoConfig()).save_pretrained(tmp_path, max_shard_size="50KB")
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path.name} is truncated or damaged"):
        load("llama", tmp_path)


def test_a_newer_format_and_unknown_keys_are_errors(saved: Saved, tmp_path: Path) -> None:
    load("llama", saved("llama"), quantization_config=QuantoConfig()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value, message in (("format_version", 2, "upgrade it"), ("zero", 1, "no field 'zero'")):
        path.write_text(json.dumps(config | {"quantization_config": config["quantization_config"] | {key: value}}))
        with pytest.raises(ValueError, match=message):
            load("llama", tmp_path)


def test_a_shape_of_the_float_checkpoint_that_does_not_fit(saved: Saved, tmp_path: Path) -> None:
    state = tensors(saved("llama"))
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 32)
    build("llama").save_pretrained(tmp_path, state_dict=state)
    message = r"model\.safetensors: model\.layers\.0\.mlp\.up_proj\.weight has shape \(96, 32\)"
    with pytest.raises(ValueError, match=message):
        load("llama", tmp_path, quantization_config=QuantoConfig())


def test_dequantize_needs_a_saved_quantized_model(saved: Saved) -> None:
    with pytest.raises(ValueError, match="this one is float"):
        load("llama", saved("llama"), quantization_config=QuantoConfig(dequantize=True))
