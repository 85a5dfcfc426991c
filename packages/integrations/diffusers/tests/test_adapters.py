# SPDX-License-Identifier: Apache-2.0
"""LoRA on quantized models: loaded, trained, fused and unfused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import cls, run

from quanto_diffusers import QuantoConfig

peft = pytest.importorskip("peft")

FILE = "pytorch_lora_weights.safetensors"
TARGETS = {"flux": ["to_q", "to_out.0", "proj_out"], "unet": ["to_q", "conv1", "conv_in"]}


@pytest.fixture(scope="module")
def lora(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with an adapter that has an effect."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("lora")
        model = cls(name).from_pretrained(saved(name))
        model.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name]))
        torch.manual_seed(3)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.2)
        model.save_lora_adapter(folder)
        return folder

    return make


@pytest.mark.parametrize("name", TARGETS)
def test_fusing_changes_the_output_as_the_adapter_does(
    name: str, saved: Callable[[str], Path], lora: Callable[[str], Path]
) -> None:
    model = cls(name).from_pretrained(saved(name), quantization_config=QuantoConfig("int8"))
    base = run(model, name)
    model.load_lora_adapter(lora(name), prefix=None, weight_name=FILE)
    adapted = run(model, name)
    effect = (adapted - base).norm()
    assert effect > 0.05 * base.norm()
    model.fuse_lora()
    fused = run(model, name)
    assert (fused - adapted).norm() < 0.1 * effect
    model.unfuse_lora()
    torch.testing.assert_close(run(model, name), adapted, rtol=1e-4, atol=1e-5)
    model.disable_adapters()
    torch.testing.assert_close(run(model, name), base, rtol=1e-4, atol=1e-5)


def test_only_the_adapter_trains(saved: Callable[[str], Path]) -> None:
    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig("int4"))
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"]))
    from tiny import inputs

    model(**inputs("flux"), return_dict=False)[0].sum().backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert trained
    assert all("lora" in name for name in trained)


def test_an_adapter_for_other_shapes_is_refused(
    saved: Callable[[str], Path], lora: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig("int8"))
    path = next(lora("flux").glob("*.safetensors"))
    state = load_file(path)
    wide = {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in state.items()}
    save_file(wide, tmp_path / path.name, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        model.load_lora_adapter(tmp_path, prefix=None, weight_name=FILE)


def test_saving_leaves_adapters_out(
    saved: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model of mixed schemes that was never saved before it got an adapter, which is around quantized and float."""
    config = QuantoConfig("int8", rules={"proj_out": None, "transformer_blocks.*": "int4"})
    model = cls("flux").from_pretrained(saved("flux"), quantization_config=config)
    base = run(model, "flux")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "proj_out"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert "save_lora_adapter" in caplog.text
    assert torch.equal(run(cls("flux").from_pretrained(tmp_path), "flux"), base)
    assert not torch.equal(run(model, "flux"), base)


def test_one_of_two_adapters_is_fused(saved: Callable[[str], Path]) -> None:
    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig("int8"))
    for name in ("a", "b"):
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False), adapter_name=name)
    model.set_adapters(["a", "b"])
    model.fuse_lora(adapter_names=["b"], safe_fusing=True)
    assert model.single_transformer_blocks[0].attn.to_q.merged_adapters == ["b"]


@pytest.fixture
def pipe(saved: Callable[[str], Path]):
    """What loads adapters of Flux; its other parts are not needed for that."""
    from diffusers import FluxControlPipeline

    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig("int4"))
    others = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxControlPipeline(transformer=model, **others)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_loader_of_flux(pipe, width: int, tmp_path: Path) -> None:
    """It pads an adapter of narrower layers, and widens a layer for an adapter of wider ones: Flux Control's."""
    from tiny import build

    other = build("flux", in_channels=width)
    other.add_adapter(peft.LoraConfig(r=4, target_modules=["x_embedder", "to_q"], init_lora_weights=False))
    layers = peft.utils.get_peft_model_state_dict(other)
    type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=layers)
    model, base = pipe.transformer, run(pipe.transformer, "flux")
    weight = model.x_embedder.weight.dequantize()
    pipe.load_lora_weights(tmp_path)
    assert model.config.in_channels == max(width, 4)
    held = model.x_embedder.base_layer.weight
    if width == 8:
        assert torch.equal(held[:, :4], weight)
        assert not held[:, 4:].any()
    else:
        assert (run(model, "flux") - base).norm() > 0.01 * base.norm()
    pipe.unload_lora_weights(reset_to_overwritten_params=True)
    torch.testing.assert_close(run(model, "flux"), base, rtol=1e-5, atol=1e-6)
