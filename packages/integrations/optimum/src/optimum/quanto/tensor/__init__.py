# SPDX-License-Identifier: Apache-2.0
"""Quantized tensors."""

from .activations import absmax_scale, dtype_info, quantize_activation
from .grouped import axis_to_dim, group, grouped_shape, ungroup
from .optimizers import (
    AbsmaxOptimizer,
    AffineOptimizer,
    HqqOptimizer,
    MaxOptimizer,
    Optimizer,
    SymmetricOptimizer,
)
from .packed import PackedTensor
from .qbits import QBitsTensor, WeightQBitsTensor
from .qbytes import ActivationQBytesTensor, QBytesTensor, WeightQBytesTensor
from .qtensor import QTensor, qfallback
from .weights import quantize_weight

__all__ = [
    "AbsmaxOptimizer",
    "ActivationQBytesTensor",
    "AffineOptimizer",
    "HqqOptimizer",
    "MaxOptimizer",
    "Optimizer",
    "PackedTensor",
    "QBitsTensor",
    "QBytesTensor",
    "QTensor",
    "SymmetricOptimizer",
    "WeightQBitsTensor",
    "WeightQBytesTensor",
    "absmax_scale",
    "axis_to_dim",
    "dtype_info",
    "group",
    "grouped_shape",
    "qfallback",
    "quantize_activation",
    "quantize_weight",
    "ungroup",
]
