# SPDX-License-Identifier: Apache-2.0
"""quanto: a plugin-based, multi-backend quantization toolkit for PyTorch."""

from . import algorithms, eval, nn, plugins  # noqa: A004 - quanto.eval measures; it evaluates no code
from ._version import __version__
from .algorithms import Pipeline, calibrate_weights
from .calibration import Calibration
from .explain import Explanation, explain
from .kernels import KernelFallbackWarning, KernelSpec, kernels
from .mapping import quantization_map, requantize
from .model import arrange, dequantize, freeze, quantize, quantized
from .planner import Plan, plan
from .qtypes import (
    QType,
    qfloat8,
    qfloat8_e4m3fn,
    qfloat8_e4m3fnuz,
    qfloat8_e5m2,
    qfloat8_e5m2fnuz,
    qfp4,
    qint2,
    qint3,
    qint4,
    qint8,
    qmxfp4,
    qmxfp8,
    qnf4,
    qnvfp4,
    qtypes,
)
from .scheme import Rule, Scheme, presets
from .serialization import load, save
from .tensor import QTensor, quantize_activation, quantize_tensor

__all__ = [
    "Calibration",
    "Explanation",
    "KernelFallbackWarning",
    "KernelSpec",
    "Pipeline",
    "Plan",
    "QTensor",
    "QType",
    "Rule",
    "Scheme",
    "__version__",
    "algorithms",
    "arrange",
    "calibrate_weights",
    "dequantize",
    "eval",
    "explain",
    "freeze",
    "kernels",
    "load",
    "nn",
    "plan",
    "plugins",
    "presets",
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e4m3fnuz",
    "qfloat8_e5m2",
    "qfloat8_e5m2fnuz",
    "qfp4",
    "qint2",
    "qint3",
    "qint4",
    "qint8",
    "qmxfp4",
    "qmxfp8",
    "qnf4",
    "qnvfp4",
    "qtypes",
    "quantization_map",
    "quantize",
    "quantize_activation",
    "quantize_tensor",
    "quantized",
    "requantize",
    "save",
]
