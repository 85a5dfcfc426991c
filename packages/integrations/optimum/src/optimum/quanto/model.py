# SPDX-License-Identifier: Apache-2.0
"""Models: quantize, freeze, map, and quantize again as a map says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from .nn import QModuleMixin, quantize_module
from .qtype import qtype
from .tensor.optimizers import Optimizer
from .tensor.qtensor import QTensor

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
    """`{module: {"weights": qtype, "activations": qtype}}`, `"none"` where not quantized."""
    return {
        name: {
            "weights": "none" if module.weight_qtype is None else module.weight_qtype.name,
            "activations": "none" if module.activation_qtype is None else module.activation_qtype.name,
        }
        for name, module in model.named_modules()
        if isinstance(module, QModuleMixin)
    }


def requantize(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    quantization_map: Mapping[str, Mapping[str, str]],
    device: torch.device | None = None,
) -> None:
    """Gives a float model the quantized modules of a map and the values of a state dict.

    Args:
        model: may be on the meta device.
        state_dict: of a quantized model.
        quantization_map: of the same model.
        device: where the model shall be; default where it is, or the CPU where that is nowhere.
    """
    if device is None:
        found = next(model.parameters(), None)
        device = torch.device("cpu") if found is None or found.device.type == "meta" else found.device
    for name, entry in quantization_map.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"quantization_map names {name!r}, which {type(model).__name__} does not have") from error
        kinds = {key: None if entry[key] == "none" else entry[key] for key in ("weights", "activations")}
        made = quantize_module(module, **kinds)
        if made is not None:
            _replace(model, name, made)
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or tensor.device.type != "meta" or isinstance(tensor, QTensor):
                continue
            empty = (
                torch.ones_like(tensor, device="cpu")
                if name.endswith("_scale")
                else torch.empty_like(tensor, device="cpu")
            )
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            setattr(module, name, empty)
    model.to(device)
    model.load_state_dict(state_dict, strict=False)
