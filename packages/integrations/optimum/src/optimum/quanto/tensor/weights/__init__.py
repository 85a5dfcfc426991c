# SPDX-License-Identifier: Apache-2.0
"""Quantized weights."""

from ..qbits import WeightQBitsTensor
from ..qbytes import WeightQBytesTensor
from .quantization import quantize_weight

__all__ = ["WeightQBitsTensor", "WeightQBytesTensor", "quantize_weight"]
