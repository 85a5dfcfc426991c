# SPDX-License-Identifier: Apache-2.0
"""Models that quanto has quantized without diffusers, by `quanto.quantize` or a pipeline, as they are saved.

`save_pretrained` would write their codes and not what these mean: loading would draw random weights.
"""

from __future__ import annotations

from typing import Any

from quanto.hosts.config import fields_of
from quanto.hosts.layers import describe

from .config import QuantoConfig
from .quantizer import QuantoQuantizer

__all__ = ["adopt"]


def adopt(model: Any) -> None:
    """Gives a quantized model what one has that was loaded with a `QuantoConfig`.

    Args:
        model: any of diffusers; one that is floating or has a quantizer already is left alone.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    found = describe(model)
    if not found:
        return
    quantizer = QuantoQuantizer(QuantoConfig(**fields_of(found)), pre_quantized=True)
    quantizer.quantization_config.watch(model)
    model.hf_quantizer = quantizer
    model.is_quantized, model.quantization_method = True, quantizer.quantization_config.quant_method
    model.register_to_config(quantization_config=quantizer.quantization_config)
