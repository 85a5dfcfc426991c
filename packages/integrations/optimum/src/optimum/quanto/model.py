# SPDX-License-Identifier: Apache-2.0
"""Models: quantize, freeze, map, and quantize again as a map says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from .nn import QModuleMixin, quantize_module
from .qtype import qtype
from .tensor.optimizers import Optimizer

__all__ = ["freeze", "quantization_map", "quantize", "requantize"]

Patterns = str | Sequence[str] | None


def _listed(patterns: Patterns) -> Sequence[str] | None:
    return [patterns] if isinstance(patterns, str) else patterns


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def quantize(
    model: nn.Module,
    weights: str | qtype | None = None,
    activations: str | qtype | None = None,
    optimizer: Optimizer | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> None:
    """Puts quantized twins in the places of modules below the model.

    Args:
        model: changed in place; itself stays.
        weights, activations: qtypes or their names.
        optimizer: finds scales of weights.
        include, exclude: patterns of dotted names, as `fnmatch` reads them.
    """
    included, excluded = _listed(include), _listed(exclude)
    made: dict[int, Any] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not name or isinstance(module, QModuleMixin):
            continue
        if included is not None and not any(fnmatch(name, pattern) for pattern in included):
            continue
        if excluded is not None and any(fnmatch(name, pattern) for pattern in excluded):
            continue
        if id(module) not in made:  # one module under two names stays one
            made[id(module)] = quantize_module(module, weights, activations, optimizer)
        if made[id(module)] is not None:
            _replace(model, name, made[id(module)])
            made[id(module)].name = name


def freeze(model: nn.Module) -> None:
    """Replaces float weights of quantized modules by quantized ones."""
    for module in model.modules():
        if isinstance(module, QModuleMixin):
            module.freeze()


def quantization_map(model: nn.Module) -> dict[str, dict[str, str]]:
    """`{module: {"weights": qtype, "activations": qtype}}`, `"none"` where not quantized.

    Modules with activations whose outputs stay floating have `"outputs": "none"` too; optimum-quanto overlooks that.
    """
    return {name: _entry(module) for name, module in model.named_modules() if isinstance(module, QModuleMixin)}


def _entry(module: QModuleMixin) -> dict[str, str]:
    qtypes = {"weights": module.weight_qtype, "activations": module.activation_qtype}
    entry = {key: "none" if value is None else value.name for key, value in qtypes.items()}
    if module.activation_qtype is not None and "output" not in module._quantize_hooks:
        entry["outputs"] = "none"
    return entry


def requantize(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    quantization_map: Mapping[str, Mapping[str, str]],
    device: torch.device | None = None,
) -> None:
    """Gives a float model the quantized modules of a map and the values of a state dict.

    Args:
        model: may be on the meta device; then it takes the dtypes of the state dict.
        state_dict: of a quantized model.
        quantization_map: of the same model.
        device: where the model shall be; default where it is, or the CPU where that is nowhere.

    Raises:
        ValueError: if the map names a module that the model does not have, or a tensor on meta gets no value.
    """
    for name, entry in quantization_map.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"quantization_map names {name!r}, which {type(model).__name__} does not have") from error
        made: Any = module
        if not isinstance(module, QModuleMixin):
            kinds = {key: None if entry[key] == "none" else entry[key] for key in ("weights", "activations")}
            made = quantize_module(module, **kinds)
            if made is None:
                continue
            _replace(model, name, made)
        if entry.get("outputs") == "none":
            made.disable_output_quantization()
    on_meta = any(t.is_meta for t in model.parameters())
    if not on_meta and device is not None:
        model.to(device)
    found = model.load_state_dict(state_dict, strict=False, assign=on_meta)
    if on_meta:
        _complete(model)
        model.to("cpu" if device is None else device)
    elif wrong := [*found.missing_keys, *found.unexpected_keys]:
        warnings.warn(f"state_dict and model differ in {_some(wrong)}", stacklevel=2)


def _complete(model: nn.Module) -> None:
    """Gives scales that files need not have a value, and ties what is tied; nothing may be left without memory."""
    for module in model.modules():
        if isinstance(module, QModuleMixin):
            for name in ("input_scale", "output_scale"):
                if getattr(module, name).is_meta:
                    setattr(module, name, torch.ones_like(getattr(module, name), device="cpu"))
    tie: Any = getattr(model, "tie_weights", None)
    if tie is not None and _empty(model):
        tie()
    if left := _empty(model):
        raise ValueError(
            f"state_dict lacks {_some(left)}, and the model is on the meta device; buffers that files do not hold need "
            "accelerate.init_empty_weights instead of torch.device('meta')"
        )


def _empty(model: nn.Module) -> list[str]:
    return [name for tensors in (model.named_parameters(), model.named_buffers()) for name, t in tensors if t.is_meta]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
