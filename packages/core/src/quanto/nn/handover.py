# SPDX-License-Identifier: Apache-2.0
"""Static scales, and quantized outputs handed from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tensor import QTensor, quantize_activation
from .activations import fake_quantize_activation

if TYPE_CHECKING:
    from .base import QModule

__all__ = ["before_calibration", "finish", "static_scale"]

_early: ContextVar[bool] = ContextVar("quanto_before_calibration", default=False)


@contextmanager
def before_calibration() -> Iterator[None]:
    """Static inputs that have no scale yet take dynamic ones meanwhile: for what runs a model in order to change it."""
    token = _early.set(True)
    try:
        yield
    finally:
        _early.reset(token)


def static_scale(module: QModule) -> Tensor | None:
    """The input scale; None means dynamic.

    Raises:
        RuntimeError: if the scheme is static and the module was never calibrated.
    """
    if module.input_scale is None and module.scheme.dynamic is False and module.quantizes_input and not _early.get():
        raise RuntimeError(
            f"{type(module).__name__} has static {module.scheme.activations} activations but no input_scale: run "
            "`with quanto.Calibration(): model(batch)` first, or use Scheme(dynamic=None) for scales at run time"
        )
    return module.input_scale


def finish(module: QModule, y: Tensor) -> Tensor:
    """Quantizes a module's output where its output scale was calibrated.

    In eager mode the next layer is handed the codes. In a traced graph, and where a gradient is needed, the rounded
    values are handed over instead: quantizing them again with the same scale gives the same codes.
    """
    scale, qtype = module.output_scale, module.scheme.activations
    if scale is None or qtype is None:
        return y
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and y.requires_grad):
        return fake_quantize_activation(y, qtype, scale)
    made: QTensor = quantize_activation(y, qtype, scale)
    made.producer = module
    return made
