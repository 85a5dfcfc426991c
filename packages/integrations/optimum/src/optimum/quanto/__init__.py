# SPDX-License-Identifier: Apache-2.0
"""optimum.quanto on quanto: models, files and code written for optimum-quanto run on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._conflict import refuse_both
from ._version import __version__
from .available import is_diffusers_available, is_transformers_available
from .calibrate import Calibration
from .library import define_operators, get_extension, is_extension_available
from .model import freeze, quantization_map, quantize, requantize
from .models import LAZY as _LAZY
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

if TYPE_CHECKING:
    from .models import (
        QuantizedDiffusersModel,
        QuantizedModelForCausalLM,
        QuantizedPixArtTransformer2DModel,
        QuantizedTransformersModel,
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
    "QuantizedDiffusersModel",
    "QuantizedModelForCausalLM",
    "QuantizedPixArtTransformer2DModel",
    "QuantizedTransformersModel",
    "SymmetricOptimizer",
    "WeightQBitsTensor",
    "WeightQBytesTensor",
    "__version__",
    "absmax_scale",
    "axis_to_dim",
    "dtype_info",
    "freeze",
    "get_extension",
    "group",
    "grouped_shape",
    "is_diffusers_available",
    "is_extension_available",
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
define_operators()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(".models", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
