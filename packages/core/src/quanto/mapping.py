# SPDX-License-Identifier: Apache-2.0
"""The quantization map: which modules of a model are quantized and how, as data that fits into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .model import arrange, quantize_module
from .nn.base import QModule
from .nn.fused import unfuse
from .nn.parameters import QParameters
from .nn.registry import modules
from .nn.slot import ARRANGEMENTS, Slot
from .nn.staging import Staging
from .scheme import Scheme
from .ties import untie

__all__ = ["Entry", "apply_map", "quantization_map", "requantize"]

_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
_LIMIT = 2**63


def quantization_map(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What is quantized how: JSON-ready, by module name; `requantize` and files read it."""
    return {
        name: {
            "scheme": module.scheme.to_dict(),
            "parameters": {n: _describe(slot) for n, slot in module._slots.items()},
            **({"raw": True} if isinstance(module, QParameters) else {}),
        }
        for name, module in model.named_modules()
        if isinstance(module, QModule)
    }


def _describe(slot: Slot) -> dict[str, Any]:
    return {
        "arrangement": slot.arrangement,
        "block_size": list(slot.scheme.block_size(slot.rows_shape())),
        "dtype": str(slot.dtype).removeprefix("torch."),
        "shape": list(slot.shape),
    }


@dataclass(frozen=True)
class Entry:
    """One module of a map, checked.

    Attributes:
        scheme: of the module.
        parameters: what is known of each quantized parameter; None if the map doesn't say.
        raw: whether these are raw parameters of a module without a quantized twin.
    """

    scheme: Scheme
    parameters: dict[str, dict[str, Any]] | None
    raw: bool

    @classmethod
    def parse(cls, data: Any) -> Entry:
        """Reads an entry without trusting it.

        Raises:
            ValueError: naming what is wrong with it.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("scheme"), Mapping):
            raise ValueError("an entry must be an object with an object scheme")
        if unknown := sorted(set(data) - {"scheme", "parameters", "raw"}):
            raise ValueError(f"unknown fields {', '.join(map(repr, unknown))}")
        try:
            scheme = Scheme.from_dict(data["scheme"])
        except TypeError as error:
            raise ValueError(str(error)) from None
        parameters, raw = data.get("parameters"), data.get("raw", False)
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ValueError("parameters must be an object")
        if not isinstance(raw, bool) or (raw and not parameters):
            raise ValueError("raw must be true or false, and needs parameters")
        for name, parameter in (parameters or {}).items():
            if problem := _problem(parameter):
                raise ValueError(f"parameter {name!r}: {problem}")
        return cls(scheme, None if parameters is None else dict(parameters), raw)


def _problem(parameter: Any) -> str | None:
    keys = {"arrangement", "block_size", "dtype", "shape"}
    if not isinstance(parameter, Mapping) or set(parameter) != keys:
        return f"must be an object of {', '.join(sorted(keys))}"
    if parameter["arrangement"] not in ARRANGEMENTS:
        return f"arrangement must be one of {', '.join(ARRANGEMENTS)}, got {parameter['arrangement']!r:.50}"
    if not isinstance(parameter["dtype"], str) or parameter["dtype"] not in _DTYPES:
        return f"dtype must be one of {', '.join(_DTYPES)}, got {parameter['dtype']!r:.50}"
    for key, least in (("shape", 0), ("block_size", 1)):
        sizes = parameter[key]
        if not isinstance(sizes, (list, tuple)) or not all(type(n) is int and least <= n < _LIMIT for n in sizes):
            return f"{key} must be an array of integers from {least} to 2**63 - 1, got {sizes!r:.50}"
    return None


def apply_map(model: nn.Module, quantization_map: Mapping[str, Any]) -> None:
    """Quantizes exactly the modules of a map, each by its scheme; their weights stay trainable.

    Raises:
        ValueError: if an entry is not sound, a module is missing has no twin or is not as the entry says, or if
            another module is quantized.
    """
    found = dict(model.named_modules(remove_duplicate=False))
    covered = set()
    for name, data in quantization_map.items():
        try:
            entry = Entry.parse(data)
            if name not in found:
                raise ValueError("the model has no such module")
            _apply(found[name], name, entry)
            covered.add(id(found[name]))
        except ValueError as error:
            raise ValueError(f"module {name!r:.200}: {error}") from None
    for name, module in found.items():
        if isinstance(module, QModule) and id(module) not in covered:
            raise ValueError(f"module {name!r} is quantized in the model and not in the map")
    unfuse(model)


def _apply(module: nn.Module, name: str, entry: Entry) -> None:
    if isinstance(module, QModule):
        if isinstance(module, QParameters) != entry.raw:
            raise ValueError("raw parameters are quantized in one of map and model, and not in the other")
        if module.scheme != entry.scheme:
            if module._slots and module.frozen:
                raise ValueError(f"it is frozen as {module.scheme}, the map says {entry.scheme}")
            quantize_module(name, module, entry.scheme, None)
    elif entry.raw:
        assert entry.parameters is not None
        for parameter in entry.parameters:
            if not isinstance(module._parameters.get(parameter), Tensor):
                raise ValueError(f"{type(module).__name__} has no parameter {parameter!r}")
        quantize_module(name, module, entry.scheme, {n: p["arrangement"] for n, p in entry.parameters.items()})
    else:
        twin, reason = modules.find(module)
        if twin is None:
            raise ValueError(f"it is quantized in the map, but {reason}")
        quantize_module(name, module, entry.scheme, None)
    if entry.parameters is not None:
        assert isinstance(module, QModule)
        _compare(module, entry.parameters)


def _compare(module: QModule, parameters: Mapping[str, Mapping[str, Any]]) -> None:
    if module._slots.keys() != parameters.keys():
        have, said = (", ".join(sorted(names)) or "none" for names in (module._slots, parameters))
        raise ValueError(f"its quantized parameters are {have}; the map says {said}")
    for name, slot in module._slots.items():
        mine, its = _describe(slot), parameters[name]
        for key in ("shape", "arrangement", "block_size"):
            value = list(its[key]) if key != "arrangement" else its[key]
            if mine[key] != value:
                raise ValueError(f"{key} of {name} is {mine[key]} in the model, {value} in the map")
        slot.dtype = _DTYPES[its["dtype"]]


def requantize(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    quantization_map: Mapping[str, Any],
    *,
    assign: bool | None = None,
) -> nn.Module:
    """Gives a float model the quantized state of another; it is changed whole or, on an error, not at all.

    Args:
        model: the float architecture; parameters on the meta device are given the state's tensors.
        state_dict: of the quantized model.
        quantization_map: of the quantized model.
        assign: whether to take the tensors themselves, where they are, instead of copying them to where the model's
            are; default: if any tensor of the model is on meta.

    Returns:
        The model itself.

    Raises:
        ValueError, RuntimeError: if map, state and model do not fit; the message names module or tensor.
    """
    staging = Staging(model)
    apply_map(staging.model, quantization_map)
    if assign is None:
        assign = any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    tensors, aliases = untie(state_dict)
    if not assign:
        tensors = {n: t.detach().to(staging.device(n, t.device), copy=True) for n, t in tensors.items()}
    staging.fill({n: t.detach() for n, t in tensors.items()}, aliases)
    staging.commit()
    arrange(model)
    return model
