# SPDX-License-Identifier: Apache-2.0
"""Adapters on quantized layers: trained, saved, resumed, merged and unmerged without any registration by the user."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import auto_class, inputs, run
from torch import nn

import quanto
from quanto.hosts.editing import editable
from quanto.nn import QModule
from quanto_transformers import QuantoConfig

peft = pytest.importorskip("peft")

Saved = Callable[..., Path]

TARGETS = {
    "llama": ["q_proj", "up_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "whisper": ["q_proj", "fc1"],
    "mixtral": ["q_proj"],
}


def load(name: str, saved: Saved, **config: Any) -> Any:
    given = {"weights": "int8", **config}
    return auto_class(name).from_pretrained(saved(name), quantization_config=QuantoConfig(**given))


def with_adapter(model: Any, targets: list[str], **options: Any) -> Any:
    """An adapter that changes what the model says."""
    given = {"r": 4, "lora_alpha": 16, "target_modules": targets, "init_lora_weights": False, **options}
    torch.manual_seed(3)
    return peft.get_peft_model(model, peft.LoraConfig(**given)).eval()


def codes(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n.replace("base_layer.", ""): p.clone() for n, p in model.named_parameters() if n.endswith("_packed")}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_merge_changes_the_weights_and_unmerge_gives_them_back(name: str, weights: str, saved: Saved) -> None:
    model = load(name, saved, weights=weights)
    plain = run(model, name)
    adapted = with_adapter(model, TARGETS[name])
    expected, before = run(adapted, name), codes(adapted)
    effect = (expected - plain).norm()
    assert effect > 0.05 * plain.norm()

    adapted.merge_adapter()
    after = codes(adapted)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if n.split(".")[-2] in TARGETS[name]}
    merged = run(adapted, name)
    assert (merged - expected).norm() < (0.3 if weights == "int8" else 0.9) * effect
    assert (merged - plain).norm() > 0.5 * effect
    adapted.unmerge_adapter()
    assert all(torch.equal(codes(adapted)[n], before[n]) for n in before)
    assert torch.equal(run(adapted, name), expected)


def test_merged_equals_the_adapter_on_the_decoded_weight(saved: Saved) -> None:
    model = load("llama", saved)
    layer = model.model.layers[0].mlp.up_proj
    decoded, scale = layer.weight.dequantize(), layer.weight_scale.clone()
    adapted = with_adapter(model, ["up_proj"])
    tuner = adapted.base_model.model.model.layers[0].mlp.up_proj
    exact = decoded + tuner.get_delta_weight("default")
    merged = adapted.merge_and_unload().model.layers[0].mlp.up_proj
    assert isinstance(merged, QModule)
    step = exact.abs().amax(dim=1, keepdim=True) / 127.5
    assert ((merged.weight.dequantize() - exact).abs() <= 0.51 * step).all()
    assert not torch.equal(merged.weight_scale, scale)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}], ids=str)
def test_variants_of_lora(options: dict, saved: Saved) -> None:
    name = "gpt2" if "lora_bias" in options else "llama"  # a bias to merge into
    adapted = with_adapter(load(name, saved), TARGETS[name], **options)
    expected = run(adapted, name)
    plain = run(load(name, saved), name)
    adapted.merge_adapter()
    assert (run(adapted, name) - expected).norm() < 0.35 * (expected - plain).norm()
    adapted.unmerge_adapter()
    torch.testing.assert_close(run(adapted, name), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["LoHaConfig", "IA3Config", "OFTConfig"])
def test_other_methods(method: str, saved: Saved) -> None:
    options: dict[str, Any] = {"target_modules": ["up_proj"], "init_weights": False}
    if method == "IA3Config":
        options = {"target_modules": ["up_proj"], "feedforward_modules": [], "init_ia3_weights": False}
    if method == "OFTConfig":
        options |= {"oft_block_size": 16}
    torch.manual_seed(0)
    model = load("llama", saved)
    plain = run(model, "llama")
    adapted = peft.get_peft_model(model, getattr(peft, method)(**options)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = run(adapted, "llama")
    assert not torch.equal(expected, plain)
    adapted.merge_adapter()
    assert (run(adapted, "llama") - expected).norm() < 0.5 * (expected - plain).norm()
    adapted.unmerge_adapter()
    torch.testing.assert_close(run(adapted, "llama"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_embeddings_and_convolutions(name: str, saved: Saved) -> None:
    target = {"llama": "embed_tokens", "vit": "projection"}[name]
    model = load(name, saved, embeddings=name == "llama")
    plain = run(model, name)
    adapted = with_adapter(model, [target])
    expected = run(adapted, name)
    adapted.merge_adapter()
    assert (run(adapted, name) - expected).norm() < 0.4 * (expected - plain).norm()
    adapted.unmerge_adapter()
    torch.testing.assert_close(run(adapted, name), expected)


def test_two_adapters(saved: Saved) -> None:
    adapted = with_adapter(load("llama", saved), ["up_proj"])
    adapted.add_adapter("other", peft.LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False))
    before = codes(adapted)
    adapted.merge_adapter(["default"])
    adapted.merge_adapter(["other"])
    adapted.unmerge_adapter()
    assert all(torch.equal(codes(adapted)[n], before[n]) for n in before)


def test_a_failed_merge_loses_nothing(saved: Saved) -> None:
    adapted = with_adapter(load("llama", saved), ["up_proj"])
    before = codes(adapted)
    with torch.no_grad():
        adapted.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        adapted.merge_and_unload(safe_merge=True)
    layer = adapted.base_model.model.model.layers[1].mlp.up_proj.get_base_layer()
    assert torch.equal(layer.weight_packed, before["base_model.model.model.layers.1.mlp.up_proj.weight_packed"])


def test_merged_models_are_saved_and_reload_equal(saved: Saved, tmp_path: Path) -> None:
    merged = with_adapter(load("llama", saved, weights="int4"), ["up_proj"]).merge_and_unload()
    assert "_quanto_before" not in merged.model.layers[0].mlp.up_proj.__dict__
    merged.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(run(again, "llama"), run(merged, "llama"))


def train(model: Any, steps: int, name: str = "llama") -> list[float]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-3)
    given, losses = inputs(name), []
    model.train()
    for _ in range(steps):
        loss = model(**given, labels=given["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_train_save_resume_merge(weights: str, saved: Saved, tmp_path: Path) -> None:
    model = load("llama", saved, weights=weights)
    before = codes(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear"))
    losses = train(adapted, 12)
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(codes(adapted)[f"base_model.model.{n}"], before[n]) for n in before)
    adapted.save_pretrained(tmp_path)
    held = {path.name for path in tmp_path.iterdir()}
    assert "adapter_model.safetensors" in held
    assert "model.safetensors" not in held

    again = peft.PeftModel.from_pretrained(load("llama", saved, weights=weights), tmp_path, is_trainable=True)
    torch.testing.assert_close(run(again.eval(), "llama"), run(adapted, "llama"))
    more = train(again, 4)
    assert more[-1] < losses[-1]
    expected = run(again, "llama")
    merged = again.merge_and_unload()
    assert (run(merged, "llama") - expected).norm() < 0.5 * (expected - run(load("llama", saved), "llama")).norm()


def test_through_transformers_own_interface(saved: Saved, tmp_path: Path) -> None:
    model = load("llama", saved)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False))
    expected = run(model, "llama")
    model.save_pretrained(tmp_path)
    again = load("llama", saved)
    again.load_adapter(str(tmp_path))
    torch.testing.assert_close(run(again, "llama"), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool, saved: Saved) -> None:
    found = []
    for checkpointing in (False, True):
        model = load("llama", saved, weights="int4")
        if checkpointing:
            options = {"use_reentrant": reentrant}
            model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=options)
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["up_proj", "q_proj"]))
        train(adapted, 2)
        found.append(run(adapted, "llama"))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_preparing_leaves_scales_alone(saved: Saved) -> None:
    folder = saved("llama", torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantoConfig("int4"))
    before = {n: p.clone() for n, p in model.state_dict().items() if "weight_" in n}
    peft.prepare_model_for_kbit_training(model)
    assert model.model.norm.weight.dtype == torch.float32
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) and after[n].dtype == before[n].dtype for n in before)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["up_proj"]))
    with torch.autocast("cpu", torch.bfloat16):
        assert train(adapted, 2)


def test_initializations_that_would_change_the_base_weight_are_refused(saved: Saved) -> None:
    """They assign to the weight; on a decoded copy that would be lost without a word."""
    with pytest.raises(RuntimeError, match="quantized"):
        with_adapter(load("llama", saved), ["up_proj"], init_lora_weights="pissa")


def test_editable_is_exact_where_nothing_is_edited() -> None:
    layer = quanto.freeze(quanto.quantize(nn.Linear(64, 32), "int4", group_size=32))
    before = copy.deepcopy(layer.weight)
    with editable(layer):
        assert isinstance(layer.weight, nn.Parameter)
    torch.testing.assert_close(layer.weight.dequantize(), before.dequantize(), atol=1e-6, rtol=1e-5)
