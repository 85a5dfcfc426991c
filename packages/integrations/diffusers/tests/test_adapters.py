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
