# SPDX-License-Identifier: Apache-2.0
"""optimum.quanto on quanto: models, files and code written for optimum-quanto run on it."""

from ._conflict import refuse_both
from ._version import __version__
from .available import is_diffusers_available, is_transformers_available
from .calibrate import Calibration
from .model import freeze, quantization_map, quantize, requantize
from .nn import QConv2d, QLayerNorm, QLinear, QModuleMixin, quantize_module, register_qmodule
from .qtype import (
    qfloat8,
    qfloat8_e4m3fn,
    qfloat8_e4m3fnuz,
    qfloat8_e5m2,
    qint2,
    qint4,
    qint8,
    qtype,
    qtypes,
)
from .tensor import (
    AbsmaxOptimizer,
    ActivationQBytesTensor,
    AffineOptimizer,
    HqqOptimizer,
    MaxOptimizer,
    Optimizer,
    QBitsTensor,
    QBytesTensor,
    QTensor,
    SymmetricOptimizer,
    WeightQBitsTensor,
    WeightQBytesTensor,
    absmax_scale,
    axis_to_dim,
    dtype_info,
    group,
    grouped_shape,
    qfallback,
    quantize_activation,
    quantize_weight,
    ungroup,
)

__all__ = [
    "AbsmaxOptimizer",
    "ActivationQBytesTensor",
    "AffineOptimizer",
    "Calibration",
    "HqqOptimizer",
    "MaxOptimizer",
    "Optimizer",
    "QBitsTensor",
    "QBytesTensor",
    "QConv2d",
    "QLayerNorm",
    "QLinear",
    "QModuleMixin",
    "QTensor",
    "SymmetricOptimizer",
    "WeightQBitsTensor",
    "WeightQBytesTensor",
    "__version__",
    "absmax_scale",
    "axis_to_dim",
    "dtype_info",
    "freeze",
    "group",
    "grouped_shape",
    "is_diffusers_available",
    "is_transformers_available",
    "qfallback",
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e4m3fnuz",
    "qfloat8_e5m2",
    "qint2",
    "qint4",
    "qint8",
    "qtype",
    "qtypes",
    "quantization_map",
    "quantize",
    "quantize_activation",
    "quantize_module",
    "quantize_weight",
    "register_qmodule",
    "requantize",
    "ungroup",
]

refuse_both()
