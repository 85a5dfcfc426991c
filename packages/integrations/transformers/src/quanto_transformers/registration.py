# SPDX-License-Identifier: Apache-2.0
"""Puts quanto into the tables of transformers and PEFT. Each function may be called any number of times."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

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
    for module in (auto, sys.modules.get("transformers.modeling_utils")):
        original = getattr(module, "get_hf_quantizer", None)
        if original is not None and not hasattr(original, "_quanto_original"):
            module.get_hf_quantizer = _looks_twice(original)  # type: ignore[union-attr]
    model = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if model is not None and not hasattr(model.save_pretrained, "_quanto_original"):
        model.save_pretrained = _adopts(model.save_pretrained)


def _looks_twice(original: Any) -> Any:
    """`get_hf_quantizer` that knows two kinds of quantized models whose config does not say that they are.

    Folders of optimum-quanto; and any, where `from_pretrained(quantization_config=None)` has overwritten what the
    file says. transformers would draw random weights for both.
    """

    @functools.wraps(original)
    def get_hf_quantizer(config: Any, *args: Any, **kwargs: Any) -> Any:
        from .inherited import find_map

        if getattr(config, "quantization_config", None) is None:
            if "quantization_config" in vars(config) and (stated := _stated(config)) is not None:
                config.quantization_config = stated
            elif (path := find_map(config)) is not None:
                config.quantization_config = {"quant_method": "quanto", "optimum_map": path}
        return original(config, *args, **kwargs)

    get_hf_quantizer._quanto_original = original  # type: ignore[attr-defined]
    return get_hf_quantizer


def _adopts(original: Any) -> Any:
    """`save_pretrained` that knows models which core has quantized."""

    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        from .adopting import adopt

        adopt(self)
        return original(self, *args, **kwargs)

    save_pretrained._quanto_original = original  # type: ignore[attr-defined]
    return save_pretrained


def _stated(config: Any) -> dict[str, Any] | None:
    """The quantization config in the file that a config came from, if it is one of ours."""
    name = getattr(config, "_name_or_path", "")
    if not name:
        return None
    with contextlib.suppress(OSError, ValueError):
        data, _ = type(config).get_config_dict(name, revision=getattr(config, "_commit_hash", None))
        found = data.get("quantization_config")
        return found if isinstance(found, dict) and found.get("quant_method") == "quanto" else None
    return None


def register_cache() -> None:
    """Makes the backend "quanto" of quantized caches mean this package."""
    from transformers import cache_utils

    from .cache import QuantoCacheLayer

    cache_utils.QuantoQuantizedLayer = QuantoCacheLayer


def register_peft() -> None:
    """Makes adapters merge into quantized weights."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    from quanto.hosts.adapters import teach_tuners

    teach_tuners(BaseTuner, BaseTunerLayer)


def register_peft_preparation() -> None:
    """Makes PEFT's preparation of quantized models leave scales alone."""
    from peft.utils import other

    from quanto.hosts.adapters import teach_preparing

    teach_preparing(other)
