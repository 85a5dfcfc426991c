# SPDX-License-Identifier: Apache-2.0
"""Whole pipelines, with a text encoder quantized by quanto-transformers: loaded, offloaded, saved, reloaded as one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PipelineQuantizationConfig, StableDiffusionPipeline
from tiny import build
from torch import Tensor

from quanto.nn import QModule
from quanto_diffusers import QuantoConfig

SIBLING = Path(__file__).parents[2] / "transformers" / "src"
CPU = torch.device("cpu")
ABSENT = dict.fromkeys(("feature_extractor", "image_encoder", "safety_checker", "tokenizer"))


@pytest.fixture(scope="module")
def text_config() -> Iterator[Any]:
    """The config of quanto-transformers: the installed one, or that beside this package."""
    if SIBLING.is_dir():
        sys.path.append(str(SIBLING))
    module = pytest.importorskip("quanto_transformers")
    yield module.QuantoConfig
    if SIBLING.is_dir():
        sys.path.remove(str(SIBLING))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float pipeline."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=64, max_position_embeddings=8, **sizes)).eval()
    pipe = StableDiffusionPipeline(
        vae=build("vae"),
        text_encoder=text,
        tokenizer=None,
        unet=build("unet"),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    path: Path = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(path)
    return path


def picture(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        prompt = pipe.text_encoder(ids)[0]
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt", "height": 16, "width": 16}
    found: Tensor = pipe(prompt_embeds=prompt, generator=torch.Generator().manual_seed(0), **options).images
    return found


def load(folder: Path, config: Any = None) -> Any:
    return StableDiffusionPipeline.from_pretrained(folder, quantization_config=config, **ABSENT)


def quantized(module: Any) -> int:
    return sum(isinstance(m, QModule) for m in module.modules())


def both_ways(text_config: Any) -> dict[str, Any]:
    fields = {"weights": "int8", "modules_to_not_convert": ["conv_in"]}
    mapping = {"unet": QuantoConfig("int4"), "text_encoder": text_config("int8"), "vae": QuantoConfig("int8")}
    return {
        "backend": PipelineQuantizationConfig(quant_backend="quanto", quant_kwargs=fields),
        "mapping": PipelineQuantizationConfig(quant_mapping=mapping),
    }


@pytest.mark.parametrize("way", ["backend", "mapping"])
def test_reloads_as_one(way: str, folder: Path, text_config: Any, tmp_path: Path) -> None:
    pipe = load(folder, both_ways(text_config)[way])
    assert all(quantized(m) for m in (pipe.unet, pipe.vae, pipe.text_encoder))
    expected = picture(pipe)
    error = (expected - picture(load(folder))).abs().max()
    assert 0 < error < (0.05 if way == "backend" else 0.5)
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert [quantized(m) for m in (again.unet, again.text_encoder)] == [
        quantized(m) for m in (pipe.unet, pipe.text_encoder)
    ]
    assert torch.equal(picture(again), expected)


def test_group_offload_of_all_components(folder: Path, text_config: Any) -> None:
    pipe = load(folder, both_ways(text_config)["backend"])
    expected = picture(pipe)
    pipe.enable_group_offload(onload_device=CPU, offload_type="leaf_level")
    assert torch.equal(picture(pipe), expected)


def test_only_named_components(folder: Path, text_config: Any) -> None:
    config = PipelineQuantizationConfig(
        quant_backend="quanto", quant_kwargs={"weights": "int8"}, components_to_quantize=["unet"]
    )
    pipe = load(folder, config)
    assert quantized(pipe.unet)
    assert not quantized(pipe.text_encoder)
    assert torch.equal(picture(pipe.to("cpu")), picture(pipe))


def test_the_stock_config_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance of the class that diffusers defines, imported before this package was."""

    class Stock:
        quant_method = QuantoConfig().quant_method
        weights_dtype = "int8"
        modules_to_not_convert = None

    Stock.__name__, Stock.__module__ = "QuantoConfig", "diffusers.quantizers.quantization_config"
    pipe = load(folder, PipelineQuantizationConfig(quant_mapping={"unet": Stock()}))  # type: ignore[dict-item]
    assert quantized(pipe.unet)
