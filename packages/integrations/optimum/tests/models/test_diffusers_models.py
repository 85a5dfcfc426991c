# SPDX-License-Identifier: Apache-2.0
"""Models of diffusers: quantized, saved, read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel

from optimum.quanto import QuantizedDiffusersModel, QuantizedPixArtTransformer2DModel


def build() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=2, num_attention_heads=2, in_channels=4, out_channels=8,
        cross_attention_dim=8, num_embeds_ada_norm=8, caption_channels=None, use_additional_conditions=False,
    ).eval()  # fmt: skip


@torch.no_grad()
def run(model: object) -> torch.Tensor:
    torch.manual_seed(1)
    out = model(  # type: ignore[operator]
        hidden_states=torch.randn(1, 4, 8, 8),
        timestep=torch.tensor([1.0]),
        encoder_hidden_states=torch.randn(1, 8, 8),
        added_cond_kwargs={"aspect_ratio": None, "resolution": None},
        return_dict=False,
    )[0]
    assert isinstance(out, torch.Tensor)
    return out


@pytest.mark.parametrize("weights", ["qint4", "qint8"])
def test_saved_and_read(tmp_path: Path, weights: str) -> None:
    quantized = QuantizedPixArtTransformer2DModel.quantize(build(), weights=weights, exclude="proj_out")
    quantized.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "diffusion_pytorch_model.safetensors", "quanto_qmap.json"} <= names
    read = QuantizedPixArtTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(run(read), run(quantized))


class QuantizedFlux(QuantizedDiffusersModel):
    base_class = FluxTransformer2DModel


def test_another_class(tmp_path: Path) -> None:
    QuantizedPixArtTransformer2DModel.quantize(build(), weights="qint8").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of a PixArtTransformer2DModel, QuantizedFlux reads a Flux"):
        QuantizedFlux.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="QuantizedDiffusersModel has no base_class"):
        QuantizedDiffusersModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model must be a diffusers model, got Linear"):
        QuantizedFlux.quantize(torch.nn.Linear(2, 2))
