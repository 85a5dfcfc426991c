# SPDX-License-Identifier: Apache-2.0
"""What diffusers' LoRA loaders look up in a model before they hand an adapter to PEFT.

Flux's loader reads shapes from the float names of a state dict, to pad adapters of narrower layers, and puts a float
layer in the place of one that an adapter needs wider, as those of Flux Control do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quanto.nn import QModule

__all__ = ["float_names", "teach_flux"]


@contextmanager
def float_names(model: nn.Module) -> Iterator[None]:
    """Within, the state dict of a model has an entry for each quantized weight by its float name as well.

    These have the float shape and dtype, take no memory, and hold nothing that means anything.
    """
    original = model.state_dict

    def state_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = original(*args, **kwargs)
        for path, module in model.named_modules():
            for leaf, slot in module._slots.items() if isinstance(module, QModule) else ():
                name = f"{path}.{leaf}" if path else leaf
                packed = module._parameters.get(f"{leaf}_packed")
                if packed is not None:
                    state.setdefault(name, torch.empty((), dtype=slot.dtype, device=packed.device).expand(slot.shape))
        return state

    model.__dict__["state_dict"] = state_dict
    try:
        yield
    finally:
        del model.__dict__["state_dict"]


def teach_flux(loaders: Any) -> None:
    """Wraps what Flux's loader does with the weights of a transformer.

    Args:
        loaders: `diffusers.loaders.lora_pipeline`.
    """
    mixin = loaders.FluxLoraLoaderMixin
    expand = mixin._maybe_expand_lora_state_dict.__func__
    decode = loaders._maybe_dequantize_weight_for_expanded_lora
    if hasattr(expand, "_quanto"):
        return

    @functools.wraps(expand)
    def _maybe_expand_lora_state_dict(cls: Any, transformer: nn.Module, lora_state_dict: dict[str, Tensor]) -> Any:
        with float_names(transformer):
            return expand(cls, transformer, lora_state_dict)

    @functools.wraps(decode)
    def _maybe_dequantize_weight_for_expanded_lora(model: nn.Module, module: nn.Module) -> Any:
        if isinstance(module, QModule) and module.frozen:
            return module.effective("weight")
        return decode(model, module)

    _maybe_expand_lora_state_dict._quanto = True  # type: ignore[attr-defined]
    mixin._maybe_expand_lora_state_dict = classmethod(_maybe_expand_lora_state_dict)
    loaders._maybe_dequantize_weight_for_expanded_lora = _maybe_dequantize_weight_for_expanded_lora
