# SPDX-License-Identifier: Apache-2.0
"""PEFT on quantized layers.

PEFT takes them for the float classes they inherit, so adapters are found, trained and saved as on any model. Two things
it cannot know: that a weight has to be decoded before an adapter is merged into it, and which 16-bit parameters are
scales.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..nn import QModule
from ..nn.slot import PARTS
from .editing import codes, editable, restore

__all__ = ["teach_preparing", "teach_tuners"]


class _Merging:
    """Mixed into the class of an adapter layer over a frozen quantized layer."""

    def merge(self: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the adapter to the decoded weight, and quantizes the sum. The codes before it are kept for `unmerge`.

        Args:
            safe_merge: whether to refuse an adapter that makes NaN of the weight.
            adapter_names: which; None for those that are active. diffusers looks for arguments of these very names.
        """
        base = self.get_base_layer()
        if not isinstance(base, QModule) or not base.frozen:
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[misc]
            return
        _refuse_sharded(base)
        before = None if self.merged else codes(base)
        with editable(base):
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[misc]
        if before is not None and self.merged:
            self.__dict__["_quanto_before"] = before

    def unmerge(self: Any) -> None:
        """Takes all adapters out again: the codes are those before the first merge, to the bit."""
        base, before = self.get_base_layer(), self.__dict__.pop("_quanto_before", None)
        if not isinstance(base, QModule) or not base.frozen:
            super().unmerge()  # type: ignore[misc]
            return
        with editable(base):
            super().unmerge()  # type: ignore[misc]
        if before is not None:
            restore(base, before)


def _refuse_sharded(base: QModule) -> None:
    if any(hasattr(p, "_local_tensor") for p in base.parameters(recurse=False)):
        raise RuntimeError(
            "an adapter cannot be merged into a weight that is spread over processes: save the adapter, and merge it "
            "in one process"
        )


_classes: dict[type, type] = {}


def _merging(cls: type) -> type:
    if cls not in _classes:
        _classes[cls] = type(cls.__name__, (_Merging, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    return _classes[cls]


@contextmanager
def _as_floats(model: nn.Module) -> Iterator[None]:
    """Within, layers look to PEFT as their float ones would.

    `weight` of convolutions, and of what tensor parallelism spread over ranks, is a tensor of the whole shape that
    takes no memory. Convolutions have their float classes: PEFT makes adapters of the very class it finds.
    """
    found: list[tuple[Any, type]] = []
    for module in model.modules():
        if not isinstance(module, QModule) or "weight_packed" not in module._parameters:
            continue
        convolution = hasattr(module, "kernel_size")
        if convolution or "_quanto_whole" in module.__dict__:
            found.append((module, type(module)))
            slot, packed = module._slots["weight"], module.get_parameter("weight_packed")
            empty = torch.empty((), dtype=slot.dtype, device=packed.device)
            shape = module.__dict__.get("_quanto_whole", {}).get("weight", slot.shape)
            module.__dict__["weight"] = nn.Parameter(empty.expand(shape), requires_grad=False)
            if convolution:
                module.__class__ = module._float_class  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, cls in found:
            module.__class__ = cls
            del module.__dict__["weight"]


def teach_tuners(tuner: Any, layer: type) -> None:
    """Wraps the method of PEFT's tuners that puts adapters into a model, of all methods (LoRA, LoHa, IA3 …) alike.

    Args:
        tuner: `peft.tuners.tuners_utils.BaseTuner`.
        layer: `peft.tuners.tuners_utils.BaseTunerLayer`.
    """
    original = tuner.inject_adapter
    if hasattr(original, "_quanto"):
        return

    @functools.wraps(original)
    def inject_adapter(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _as_floats(model):
            done = original(self, model, *args, **kwargs)
        for module in model.modules():
            found: Any = module
            if not isinstance(module, layer) or isinstance(module, _Merging) or not hasattr(module, "merge"):
                continue
            if isinstance(found.get_base_layer(), QModule):
                found.__class__ = _merging(type(module))
        return done

    inject_adapter._quanto = True  # type: ignore[attr-defined]
    tuner.inject_adapter = inject_adapter


def teach_preparing(other: Any) -> None:
    """Wraps `prepare_model_for_kbit_training`, which casts every 16-bit parameter to float32, scales too.

    Args:
        other: `peft.utils.other`.
    """
    original = other.prepare_model_for_kbit_training
    if hasattr(original, "_quanto"):
        return

    @functools.wraps(original)
    def prepare_model_for_kbit_training(
        model: Any, use_gradient_checkpointing: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        found = [m for m in model.modules() if isinstance(m, QModule)]
        scales = [
            parameter
            for module in found
            for leaf in module._slots
            for part in PARTS
            if (parameter := module._parameters.get(f"{leaf}_{part}")) is not None
        ]
        before = [(parameter, parameter.data) for parameter in scales]
        done = original(model, use_gradient_checkpointing, *args, **kwargs)
        for parameter, value in before:
            parameter.data = value
        if found and use_gradient_checkpointing:  # PEFT does it for the methods it knows by name
            model.enable_input_require_grads()
            options = kwargs.get("gradient_checkpointing_kwargs") or (args[0] if args else None)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        return done

    prepare_model_for_kbit_training._quanto = True  # type: ignore[attr-defined]
    other.prepare_model_for_kbit_training = prepare_model_for_kbit_training
