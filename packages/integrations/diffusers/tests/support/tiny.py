# SPDX-License-Identifier: Apache-2.0
"""Models of diffusers small enough to build, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NAMES", "build", "cls", "inputs", "run"]

_FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}
_PIXART = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 1,
    "cross_attention_dim": 32,
    "caption_channels": 32,
    "sample_size": 8,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "use_additional_conditions": False,
}
_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
_SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "caption_projection_dim": 32,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 1,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
_VAE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
}
_WAN_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
_WAN_VAE |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}

NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("FluxTransformer2DModel", _FLUX),
    "pixart": ("PixArtTransformer2DModel", _PIXART),
    "unet": ("UNet2DConditionModel", _UNET),
    "sd3": ("SD3Transformer2DModel", _SD3),
    "wan": ("WanTransformer3DModel", _WAN),
    "vae": ("AutoencoderKL", _VAE),
    "wan_vae": ("AutoencoderKLWan", _WAN_VAE),
}


def cls(name: str) -> Any:
    """The class of a model."""
    import diffusers

    return getattr(diffusers, NAMES[name][0])


def build(name: str, **changes: Any) -> Any:
    """A float model, the same each time, whose biases and norms are not all alike."""
    torch.manual_seed(0)
    model: nn.Module = cls(name)(**{**NAMES[name][1], **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def inputs(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments for its forward pass."""
    g = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    text = {"encoder_hidden_states": randn(1, 6, 32), "timestep": torch.tensor([5])}
    if name == "flux":
        ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)}
        return {"hidden_states": randn(1, 16, 4), "pooled_projections": randn(1, 32), **text, **ids}
    if name == "unet":
        return {"sample": randn(1, 4, 8, 8), **text}
    if name in ("vae", "wan_vae"):
        return {"sample": randn(1, 3, 16, 16) if name == "vae" else randn(1, 3, 1, 16, 16)}
    if name == "wan":
        return {"hidden_states": randn(1, 4, 2, 8, 8), **text}
    pooled = {"pooled_projections": randn(1, 32)} if name == "sd3" else {}
    more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if name == "pixart" else {}
    return {"hidden_states": randn(1, 4, 8, 8), **text, **pooled, **more}


@torch.no_grad()
def run(model: Any, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Its output."""
    out: Tensor = model(**inputs(name, dtype), return_dict=False)[0]
    return out
