# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: the end of it."""

from __future__ import annotations

from typing import Any

import quanto
from quanto.hosts.layers import describe

from . import conversions, skeleton

__all__ = ["freeze"]


def freeze(model: Any, *, progress: bool | None = None) -> Any:
    """Turns the float weights of a model loaded with `QuantoConfig(qat=True)` into codes, in place.

    Until then the forward pass rounds them on the fly, so what is frozen computes what was trained. Tied weights stay
    tied. An optimizer that still holds the floats raises at its next step.

    Args:
        model: after training.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        The model itself, which saves as codes now.

    Raises:
        ValueError: if nothing in the model is quantized.
    """
    quanto.freeze(model, progress=progress)
    skeleton.share_tied(model, float_names=False)
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, quanto.nn.QModule)]
    loaded_with = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = conversions.for_saving(loaded_with, model, modules)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.quantization_config.qat = False
        quantizer.quantized = modules
        model.config.quantization_config = quantizer.quantization_config
        model.config.quantization_config.modules = [layers.to_dict() for layers in describe(model)]
    return model
