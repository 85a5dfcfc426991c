# SPDX-License-Identifier: Apache-2.0
"""quanto: a plugin-based, multi-backend quantization toolkit for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import eval, nn, plugins  # noqa: A004 - quanto.eval measures; it evaluates no code
from ._version import __version__
from .calibrating import Calibration
from .explain import Explanation, explain
from .kernels import KernelFallbackWarning, KernelSpec, kernels
from .mapping import quantization_map, requantize
from .model import arrange, dequantize, freeze, quantize, quantized
from .nn.joined import join
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

calibration = Calibration  #: as quanto 0.0.2, the first release, called it

if TYPE_CHECKING:
    from . import algorithms
    from .algorithms import Pipeline, calibrate_weights
    from .planner import Plan, plan

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
    "calibration",
    "dequantize",
    "eval",
    "explain",
    "freeze",
    "join",
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

#: imported when they are first asked for: they cost time, and loading a model needs none of them
_LAZY = {"Pipeline": "algorithms", "calibrate_weights": "algorithms", "Plan": "planner", "plan": "planner"}


def __getattr__(name: str) -> Any:
    if name == "algorithms":
        return import_module(".algorithms", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "algorithms"})
