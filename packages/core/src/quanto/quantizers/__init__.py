# SPDX-License-Identifier: Apache-2.0
"""Algorithms that choose scales, zero points and codes."""

from .absmax import AbsmaxQuantizer
from .base import Parameters, Quantizer, Target, get_quantizer, quantizers, register_quantizer
from .hqq import HQQQuantizer
from .minmax import MinMaxQuantizer
from .mse import MSEQuantizer
from .search import fit

__all__ = [
    "AbsmaxQuantizer",
    "HQQQuantizer",
    "MSEQuantizer",
    "MinMaxQuantizer",
    "Parameters",
    "Quantizer",
    "Target",
    "fit",
    "get_quantizer",
    "quantizers",
    "register_quantizer",
]
