# SPDX-License-Identifier: Apache-2.0
"""What diffusers' own tests of its quanto backend assert of a tiny Flux, on a CPU; names are theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QuantoConfig
from tiny import build, cls, inputs, run
from torch import nn

QTYPES = pytest.mark.parametrize("weights", ["float8", "int8", "int4", "int2"])


@pytest.fixture
def quantized(saved: Callable[[str], Path]) -> Callable[..., nn.Module]:
    def load(weights: str, **options: object) -> nn.Module:
        config = QuantoConfig(weights_dtype=weights, **options.pop("config", {}))  # type: ignore[arg-type]
        found: nn.Module = cls("flux").from_pretrained(saved("flux"), quantization_config=config, **options)
        return found

    return load


@QTYPES
def test_quanto_quantization_num_parameters(weights: str, quantized: Callable[..., nn.Module]) -> None:
    assert quantized(weights).num_parameters() == build("flux").num_parameters()  # type: ignore[operator]


@QTYPES
def test_quanto_quantization_memory_footprint(weights: str, quantized: Callable[..., nn.Module]) -> None:
    """In bytes held, which a CPU has too; they ask the accelerator."""
    ratio = build("flux").get_memory_footprint() / quantized(weights).get_memory_footprint()  # type: ignore[operator]
    assert ratio > (3 if weights in ("float8", "int8") else 4)


@QTYPES
def test_quanto_quantization_inference(weights: str, quantized: Callable[..., nn.Module]) -> None:
    assert run(quantized(weights), "flux").isfinite().all()


def test_quanto_quantized_layers(quantized: Callable[..., nn.Module]) -> None:
    linears = [m for m in quantized("int8").modules() if isinstance(m, nn.Linear)]
    assert linears
    assert all(m.weight.qtype.name == "int8" for m in linears)


def test_quanto_quantization_lora_inference(quantized: Callable[..., nn.Module]) -> None:
    peft = pytest.importorskip("peft")
    model = quantized("int8")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))  # type: ignore[operator]
    assert run(model, "flux").isfinite().all()


def test_quanto_quantization_serialization(quantized: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = quantized("int8")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert torch.equal(run(cls("flux").from_pretrained(tmp_path), "flux"), run(model, "flux"))


def test_quanto_modules_to_not_convert(quantized: Callable[..., nn.Module]) -> None:
    model = quantized("int8", config={"modules_to_not_convert": ["norm_out"]})
    assert type(model.get_submodule("norm_out.linear")) is nn.Linear
    assert type(model.proj_out) is not nn.Linear


def test_quanto_device_map(quantized: Callable[..., nn.Module]) -> None:
    model = quantized("int8", device_map="auto")
    assert model.hf_device_map
    assert run(model, "flux").isfinite().all()


def test_quanto_dequantize(quantized: Callable[..., nn.Module]) -> None:
    model = quantized("int8")
    model.dequantize()  # type: ignore[operator]
    assert all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    assert run(model, "flux").isfinite().all()


def test_quanto_torch_compile_with_group_offload(quantized: Callable[..., nn.Module]) -> None:
    model, cpu = quantized("int8"), torch.device("cpu")
    expected = run(model, "flux")
    torch.compiler.reset()
    model.enable_group_offload(cpu, offload_device=cpu, offload_type="leaf_level")  # type: ignore[operator]
    model.compile(backend="aot_eager")
    torch.testing.assert_close(run(model, "flux"), expected, rtol=1e-4, atol=1e-5)


def test_quantization_sharded_serialization(quantized: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = quantized("int8")
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert torch.equal(run(cls("flux").from_pretrained(tmp_path), "flux"), run(model, "flux"))


def test_quanto_torch_compile(quantized: Callable[..., nn.Module]) -> None:
    model = quantized("int8")
    expected = run(model, "flux")
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(model, "flux"), expected, rtol=1e-4, atol=1e-5)


@QTYPES
def test_quanto_dtype_assignment(weights: str, quantized: Callable[..., nn.Module]) -> None:
    """Of their older file, as the next."""
    model = quantized(weights)
    for cast in (lambda: model.to(torch.float16), lambda: model.to(device="cpu", dtype=torch.float16)):
        with pytest.raises(ValueError, match="unsupported"):
            cast()
    for cast in (model.float, model.half):
        with pytest.raises(ValueError, match="not supported"):
            cast()
    model.to("cpu")


@QTYPES
def test_quanto_training(weights: str, quantized: Callable[..., nn.Module]) -> None:
    """A float branch beside each query projection gets gradients; the quantized layers none."""

    class Beside(nn.Module):
        def __init__(self, module: nn.Linear) -> None:
            super().__init__()
            self.module, self.adapter = module, nn.Linear(module.in_features, module.out_features, bias=False)
            self.adapter.to(module.weight.device)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x) + self.adapter(x)

    model = quantized(weights)
    model.requires_grad_(False)
    found = [module for module in model.modules() if hasattr(module, "to_q")]
    for module in found:
        module.to_q = Beside(module.to_q)  # type: ignore[arg-type]
    model(**inputs("flux"), return_dict=False)[0].norm().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
    assert len(trained) == len(found) > 0
    assert all("adapter" in name for name in trained)
