# SPDX-License-Identifier: Apache-2.0
"""Models that quanto has quantized without transformers, by `quanto.quantize` or a pipeline, as they are saved.

`save_pretrained` would write their codes and not what these mean: loading would draw random weights.
"""

from __future__ import annotations

from typing import Any

from quanto.hosts.config import fields_of
from quanto.hosts.layers import describe
from quanto.nn import QModule

from . import conversions, skeleton
from .config import QuantoConfig
from .quantizer import QuantoHfQuantizer

__all__ = ["adopt"]


def adopt(model: Any) -> None:
    """Gives a quantized model what one has that was loaded with a `QuantoConfig`.

    Args:
        model: any of transformers; one that is floating or has a quantizer already is left alone.
    """
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "_hf_peft_config_loaded", False):
        return
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, QModule)]
    if not modules:
        return
    quantizer = QuantoHfQuantizer(QuantoConfig(**fields_of(describe(model))), pre_quantized=True)
    quantizer.quantized = modules
    skeleton.share_tied(model, float_names=False)
    loaded_with = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = conversions.for_saving(loaded_with, model, modules)
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
