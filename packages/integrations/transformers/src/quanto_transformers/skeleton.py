# SPDX-License-Identifier: Apache-2.0
"""The quantized model before it has values: modules on the meta device whose parameters are codes and scales.

They are ordinary parameters from here on, so that device maps, sharding and offloading see what will be there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn

from quanto import Scheme
from quanto.hosts.layers import Layers, by_name
from quanto.model import quantize_module
from quanto.nn import QModule
from quanto.nn.registry import bake_parametrization, convert, modules
from quanto.nn.slot import PARTS
from quanto.tensor.quantize import quantize_parts

from .adapter import renames_on_load
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
    found = []
    for choice in choices:
        made = _convert(choice.name, choice.module, choice.scheme, choice.parameters)
        if not trainable and made._slots:
            for slot in made._slots:
                made.get_parameter(slot).requires_grad_(False)
            made.freeze()
            _spare(made)
        found.append((choice.name, made))
    return found


def _convert(name: str, module: Any, scheme: Any, parameters: Mapping[str, str] | None) -> QModule:
    if parameters is not None and arrangements(module) is not None and runs_grouped(module):
        convert(module, QExperts).init_quantized(scheme, dict(parameters))
    else:
        quantize_module(name, module, scheme, None if parameters is None else dict(parameters))
    made: QModule = module
    return made


def _spare(module: QModule) -> None:
    """Keeps transformers from drawing random numbers into codes of a module that stays on meta."""
    module.__dict__["_is_hf_initialized"] = True


def rebuild(model: Any, layers: list[Layers]) -> list[tuple[str, QModule]]:
    """Gives the modules of a float model on meta what a saved one says of them.

    A saved model may be loaded into another head, or none: names are tried with and without the base model's prefix,
    and modules that the model does not have are left out. Names may be old ones, as those of tensors in files are.

    Raises:
        ValueError: if a module has no twin here, or not the parameters; if the model has none of the modules.
    """
    named, rename = dict(model.named_modules()), cache(lambda: renames_on_load(model))
    found = []
    for name, group in by_name(layers):
        here = next((n for n in _spellings(name, model.base_model_prefix) if n in named), None)
        if here is None:
            new = rename()(f"{name}.weight").removesuffix(".weight")
            here = next((n for n in _spellings(new, model.base_model_prefix) if n in named), None)
        if here is None:
            _log.info("the model has no module %r, which was quantized when it was saved", name)
            continue
        try:
            found.append((here, _rebuild(here, named[here], group)))
        except ValueError as error:
            raise ValueError(f"module {name!r} was quantized when it was saved, but {error}") from None
    body = next((n for n, _ in by_name(layers) if n.startswith(f"{model.base_model_prefix}.")), None)
    if not found and body is not None:  # heads alone may be lacking
        raise ValueError(
            f"{type(model).__name__} has no module of those that were quantized when the model was saved, such as "
            f"{body!r}: its weights would be random"
        )
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
    made = _convert(name, module, group.scheme, dict(group.parameters) or None)
    if not group.trainable and made._slots:
        for leaf, slot in made._slots.items():
            if nn.utils.parametrize.is_parametrized(made, leaf):
                bake_parametrization(made, leaf)
            made._adopt(leaf, _empty_parts(slot.scheme, slot.rows_shape(), group.torch_dtype, group.zero_point_dtype))
        _spare(made)
    for scale in group.scales:
        made._buffers[scale] = torch.empty((), dtype=torch.float32, device="meta")
    return made


def _empty_parts(
    scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype, zero_point: torch.dtype
) -> list[torch.Tensor | None]:
    """Codes, scale, zero point and global scale on meta, of rows `shape` that had `dtype` when they were quantized."""
    return [
        None if kind is None else nn.Parameter(torch.empty(kind[0], dtype=kind[1], device="meta"), requires_grad=False)
        for kind in _kinds(scheme, shape, dtype, zero_point)
    ]


@lru_cache(1024)
def _kinds(scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype, zero_point: torch.dtype) -> list[Any]:
    """Shape and dtype of each part; a model has few kinds of layers, and many of each."""
    parts = quantize_parts(torch.empty(shape, dtype=dtype, device="meta"), scheme, scheme.block_size(shape))
    dtypes = [None if t is None else t.dtype for t in parts]
    dtypes[2] = zero_point
    return [None if t is None else (tuple(t.shape), d) for t, d in zip(parts, dtypes, strict=True)]


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
