# SPDX-License-Identifier: Apache-2.0
"""Quantized modules."""

from .attention import QMultiheadAttention
from .base import QModule
from .conv import QConv1d, QConv2d, QConv3d, QConvTranspose1d, QConvTranspose2d, QConvTranspose3d
from .embedding import QEmbedding, QEmbeddingBag
from .linear import QLinear
from .norm import QLayerNorm, QRMSNorm
from .parameters import QParameters
from .registry import ModuleRegistry, Twin, modules

__all__ = [
    "ModuleRegistry",
    "QConv1d",
    "QConv2d",
    "QConv3d",
    "QConvTranspose1d",
    "QConvTranspose2d",
    "QConvTranspose3d",
    "QEmbedding",
    "QEmbeddingBag",
    "QLayerNorm",
    "QLinear",
    "QModule",
    "QMultiheadAttention",
    "QParameters",
    "QRMSNorm",
    "Twin",
    "modules",
]
