# SPDX-License-Identifier: Apache-2.0
"""Algorithms that choose scales, zero points and codes."""

from .absmax import AbsmaxQuantizer
from .base import Parameters, Quantizer, Target, get_quantizer, quantizers, register_quantizer
from .minmax import MinMaxQuantizer

__all__ = [
    "AbsmaxQuantizer",
    "MinMaxQuantizer",
    "Parameters",
    "Quantizer",
    "Target",
    "get_quantizer",
    "quantizers",
    "register_quantizer",
]
