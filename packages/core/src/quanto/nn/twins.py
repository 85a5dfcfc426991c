# SPDX-License-Identifier: Apache-2.0
"""The twins that quanto-core brings."""

from __future__ import annotations

from torch import nn

from .attention import QMultiheadAttention
from .conv import QConv1d, QConv2d, QConv3d, QConvTranspose1d, QConvTranspose2d, QConvTranspose3d
from .embedding import QEmbedding, QEmbeddingBag
from .linear import QLinear
from .norm import QLayerNorm, QRMSNorm
from .registry import ModuleRegistry

__all__ = ["register"]


def register(registry: ModuleRegistry) -> None:
    """Registers every twin of core."""
    registry.register(nn.Linear, QLinear)
    registry.register(nn.Conv1d, QConv1d)
    registry.register(nn.Conv2d, QConv2d)
    registry.register(nn.Conv3d, QConv3d)
    registry.register(nn.ConvTranspose1d, QConvTranspose1d)
    registry.register(nn.ConvTranspose2d, QConvTranspose2d)
    registry.register(nn.ConvTranspose3d, QConvTranspose3d)
    registry.register(nn.MultiheadAttention, QMultiheadAttention)
    registry.register(nn.Embedding, QEmbedding, default=False, refuse=_embedding)
    registry.register(nn.EmbeddingBag, QEmbeddingBag, default=False, refuse=_embedding)
    registry.register(nn.LayerNorm, QLayerNorm, only_activations=True)
    registry.register(nn.RMSNorm, QRMSNorm, only_activations=True)


def _embedding(module: nn.Module) -> str | None:
    if getattr(module, "max_norm", None) is not None:
        return "max_norm edits its weight in place"
    return "sparse gradients are not supported" if getattr(module, "sparse", False) else None
