# SPDX-License-Identifier: Apache-2.0
"""Puts quanto into the tables of diffusers and PEFT. Each function may be called any number of times."""

from __future__ import annotations

import functools
import sys
from typing import Any

__all__ = ["register", "register_lora", "register_models", "register_offload", "register_peft"]


def register() -> None:
    """Makes `quant_method="quanto"` mean this package, and `diffusers.QuantoConfig` its config.

    diffusers has no function to register a quantizer, so its tables are written to.
    """
    from diffusers.quantizers import auto, quantization_config

    from .config import QuantoConfig
    from .quantizer import QuantoQuantizer

    auto.AUTO_QUANTIZER_MAPPING["quanto"] = QuantoQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING["quanto"] = QuantoConfig
    for module in (auto, quantization_config):
        module.QuantoConfig = QuantoConfig
    for name in ("diffusers.quantizers", "diffusers"):
        found: Any = sys.modules.get(name)
        if found is not None and "QuantoConfig" in vars(found):
            found.QuantoConfig = QuantoConfig


def register_models() -> None:
    """Makes models count quantized weights as what they stand for, and save what core has quantized as quantized."""
    register()
    from diffusers.models.modeling_utils import ModelMixin

    original = ModelMixin.num_parameters
    if hasattr(original, "_quanto"):
        return

    @functools.wraps(original)
    def num_parameters(self: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        from .counting import difference

        counted: int = original(self, only_trainable, exclude_embeddings)
        return counted + (0 if only_trainable else difference(self))

    num_parameters._quanto = True  # type: ignore[attr-defined]
    ModelMixin.num_parameters = num_parameters
    save = ModelMixin.save_pretrained

    @functools.wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        from .adopting import adopt

        adopt(self)
        return save(self, *args, **kwargs)

    ModelMixin.save_pretrained = save_pretrained


def register_lora() -> None:
    """Makes Flux's loader of LoRA find the shapes of quantized weights."""
    from diffusers.loaders import lora_pipeline

    from .lora import teach_flux

    teach_flux(lora_pipeline)


def register_offload() -> None:
    """Makes group offloading leave the layout of quantized weights alone."""
    from diffusers.hooks import group_offloading

    from .offload import teach_group_offloading

    teach_group_offloading(group_offloading)


def register_peft() -> None:
    """Makes adapters merge into quantized weights."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    from quanto.hosts.adapters import teach_tuners

    teach_tuners(BaseTuner, BaseTunerLayer)
