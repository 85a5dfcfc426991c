# SPDX-License-Identifier: Apache-2.0
"""Puts quanto into the tables of transformers and PEFT. Each function may be called any number of times."""

from __future__ import annotations

__all__ = ["register", "register_cache", "register_peft", "register_peft_preparation"]


def register() -> None:
    """Makes `quant_method="quanto"` mean this package, for configs of this class and of the stock one.

    transformers' own `register_quantizer` refuses a name that is taken, so its tables are written to.
    """
    from transformers.quantizers import auto

    from .config import QuantoConfig
    from .quantizer import QuantoHfQuantizer

    auto.AUTO_QUANTIZER_MAPPING["quanto"] = QuantoHfQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING["quanto"] = QuantoConfig
    if QuantoConfig not in auto.LOADING_ATTRIBUTES_CONFIG_TYPES:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*auto.LOADING_ATTRIBUTES_CONFIG_TYPES, QuantoConfig)


def register_cache() -> None:
    """Makes the backend "quanto" of quantized caches mean this package."""
    from transformers import cache_utils

    from .cache import QuantoCacheLayer

    cache_utils.QuantoQuantizedLayer = QuantoCacheLayer


def register_peft() -> None:
    """Makes adapters merge into quantized weights."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    from .adapters import teach_tuners

    teach_tuners(BaseTuner, BaseTunerLayer)


def register_peft_preparation() -> None:
    """Makes PEFT's preparation of quantized models leave scales alone."""
    from peft.utils import other

    from .adapters import teach_preparing

    teach_preparing(other)
