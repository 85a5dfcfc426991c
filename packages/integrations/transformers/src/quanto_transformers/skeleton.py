# SPDX-License-Identifier: Apache-2.0
"""The quantized model before it has values: modules on the meta device whose parameters are codes and scales.

They are ordinary parameters from here on, so that device maps, sharding and offloading see what will be there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from quanto.hosts.layers import Layers, by_name
from quanto.model import quantize_module
from quanto.nn import QModule
from quanto.nn.registry import convert, modules
from quanto.nn.slot import PARTS

from .experts import arrangements, runs_grouped
from .moe import QExperts
from .selection import Choice

__all__ = ["build", "rebuild", "share_tied", "untie_names"]

_log = logging.getLogger("quanto_transformers")


def build(choices: Iterable[Choice], trainable: bool) -> list[tuple[str, QModule]]:
    """Gives float modules on meta their twins, frozen unless they are to be trained.

    Returns:
        Their names and themselves.
    """
    return [(c.name, _convert(c.name, c.module, c.scheme, c.parameters, trainable)) for c in choices]


def _convert(name: str, module: Any, scheme: Any, parameters: Mapping[str, str] | None, trainable: bool) -> QModule:
    if parameters is not None and arrangements(module) is not None and runs_grouped(module):
        convert(module, QExperts).init_quantized(scheme, dict(parameters))
    else:
        quantize_module(name, module, scheme, None if parameters is None else dict(parameters))
    made: QModule = module
    if not trainable and made._slots:
        for slot in made._slots:
            made.get_parameter(slot).requires_grad_(False)
        made.freeze()
        # or transformers would draw random numbers into codes of modules that stay on meta
        made.__dict__["_is_hf_initialized"] = True
    return made


def rebuild(model: Any, layers: list[Layers]) -> list[tuple[str, QModule]]:
    """Gives the modules of a float model on meta what a saved one says of them.

    A saved model may be loaded into another head, or none: names are tried with and without the base model's prefix,
    and modules that the model does not have are left out.

    Raises:
        ValueError: if a module has no twin here, or not the parameters.
    """
    named = dict(model.named_modules())
    found = []
    for name, group in by_name(layers):
        here = next((n for n in _spellings(name, model.base_model_prefix) if n in named), None)
        if here is None:
            _log.info("the model has no module %r, which was quantized when it was saved", name)
            continue
        try:
            found.append((here, _rebuild(here, named[here], group)))
        except ValueError as error:
            raise ValueError(f"module {name!r} was quantized when it was saved, but {error}") from None
    return found


def _spellings(name: str, prefix: str) -> list[str]:
    if not prefix:
        return [name]
    return [name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"]


def _rebuild(name: str, module: nn.Module, group: Layers) -> QModule:
    for raw, _ in group.parameters:
        if not isinstance(module._parameters.get(raw), nn.Parameter):
            raise ValueError(f"{type(module).__name__} has no parameter {raw!r}")
    twin, reason = modules.find(module)
    if not group.parameters and twin is None:
        raise ValueError(reason)
    names = [n for n, _ in group.parameters] or list(twin.quantized.quantized_parameters)  # type: ignore[union-attr]
    held = {n: p for n in names if (p := module._parameters.get(n)) is not None}
    loaded_as = {n: p.dtype for n, p in held.items()}
    if not group.trainable:  # scales get the dtype they were saved in, whatever dtype the model is loaded in
        for leaf, parameter in held.items():
            module._parameters[leaf] = nn.Parameter(torch.empty_like(parameter, dtype=group.torch_dtype), False)
    made = _convert(name, module, group.scheme, dict(group.parameters) or None, group.trainable)
    for leaf, slot in made._slots.items():
        slot.dtype = loaded_as[leaf]
        zero = made._parameters.get(f"{leaf}_zero_point")
        if zero is not None:
            empty = torch.empty_like(zero, dtype=group.zero_point_dtype)
            made._parameters[f"{leaf}_zero_point"] = nn.Parameter(empty, False)
    for scale in group.scales:
        made._buffers[scale] = torch.empty((), dtype=torch.float32, device="meta")
    return made


def share_tied(model: Any, float_names: bool) -> None:
    """Makes tied quantized weights one, part by part.

    Args:
        model: whose `all_tied_weights_keys` say what is tied.
        float_names: whether these keys stay, because a float checkpoint is about to be read.
    """
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    parts: dict[str, str] = {}
    for target, source in ties.items():
        (one, leaf), (other, first) = (_owner(model, name) for name in (target, source))
        if not (_is_frozen(one, leaf) and _is_frozen(other, first)):
            parts[target] = source
            continue
        assert one is not None
        assert other is not None
        for part in PARTS:
            shared = other._parameters.get(f"{first}_{part}")
            if shared is not None:
                one._parameters[f"{leaf}_{part}"] = shared
                parts[f"{target}_{part}"] = f"{source}_{part}"
    if not float_names and parts != ties:
        model.all_tied_weights_keys = parts
        declared = getattr(model, "_tied_weights_keys", None)
        if isinstance(declared, dict) and declared.items() <= ties.items():
            model._tied_weights_keys = {k: v for k, v in parts.items() if k in declared or k not in ties}


def _is_frozen(module: nn.Module | None, leaf: str) -> bool:
    return isinstance(module, QModule) and leaf in module._slots and f"{leaf}_packed" in module._parameters


def untie_names(model: Any) -> None:
    """The inverse of `share_tied`'s renaming, for a model that was made float again."""
    suffix = f"_{PARTS[0]}"
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    model.all_tied_weights_keys = {
        key.removesuffix(suffix): value.removesuffix(suffix)
        for key, value in ties.items()
        if key.endswith(suffix) or not any(key.endswith(f"_{part}") for part in PARTS)
    }
    model.__dict__.pop("_tied_weights_keys", None)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(path), leaf
    except AttributeError:
        return None, leaf
