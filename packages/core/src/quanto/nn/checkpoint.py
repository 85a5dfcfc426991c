# SPDX-License-Identifier: Apache-2.0
"""State of quantized modules: what `state_dict`, `load_state_dict` and `deepcopy` do differently for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import check_weight
from ..kernels import kernels
from ..kernels.layout import Tensors
from ..tensor import quantize_tensor
from ..tensor.qtensor import is_small_float
from ..weight import CANONICAL, Weight, make_key
from .frozen import guard_orphan
from .slot import PARTS, Slot

if TYPE_CHECKING:
    from .base import QModule

__all__ = [
    "canonicalize",
    "check_parts",
    "deepcopy",
    "device",
    "getstate",
    "load",
    "postponed",
    "resolve",
    "setstate",
    "source",
]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def postponed() -> Iterator[None]:
    """State dicts taken inside hold placeholders for what is in a kernel's layout; `resolve` gives their values.

    So saving never holds a second copy of all weights, only of the one being written.
    """
    token = _postponing.set(True)
    try:
        yield
    finally:
        _postponing.reset(token)


_postponing: ContextVar[bool] = ContextVar("quanto_postponing", default=False)


def _canonical(module: QModule, name: str) -> Tensors:
    w, slot = module.operand(name), module._slots[name]
    return kernels.layouts[slot.layout].unpack(w[:4], w.qtype, w.block_size, w.size)


def canonicalize(module: QModule, destination: dict[str, Any], prefix: str) -> None:
    """Replaces tensors in a kernel's layout by canonical ones."""
    for name, slot in module._slots.items():
        if slot.layout == CANONICAL:
            continue
        for part, tensor in zip(PARTS, _canonical(module, name), strict=True):
            destination.pop(f"{prefix}{name}_{part}", None)
            if tensor is not None:
                if _postponing.get():
                    tensor = torch.empty_like(tensor, device="meta")
                    tensor._quanto_source = (module, name, part)  # type: ignore[attr-defined]
                destination[f"{prefix}{name}_{part}"] = tensor


def source(tensor: Tensor) -> tuple[QModule, str, str] | None:
    """Module, parameter and part that a placeholder of `postponed` stands for; None for any other tensor."""
    return getattr(tensor, "_quanto_source", None)


def resolve(tensor: Tensor) -> Tensor:
    """The tensor itself, or what a placeholder of `postponed` stands for."""
    found = source(tensor)
    if found is None:
        return tensor
    module, name, part = found
    made = _canonical(module, name)[PARTS.index(part)]
    assert made is not None
    return made


def load(module: QModule, state: dict[str, Any], prefix: str, metadata: dict[str, Any], errors: list[str]) -> None:
    """Prepares a module for the tensors it is about to be given.

    Float weights offered to a frozen module are quantized as its scheme says; codes offered to a trainable module
    freeze it; codes of another dtype or shape are an error, where torch would cast them without a word.
    """
    assign = bool(metadata.get("assign_to_params_buffers", False))
    own = [f"{name}{part}" for name in module._slots for part in ("", *(f"_{part}" for part in PARTS))]
    for key in (f"{prefix}{leaf}" for leaf in (*own, "input_scale", "output_scale")):
        if key in state and not isinstance(state[key], Tensor):
            errors.append(f"{key} must be a tensor, got {type(state.pop(key)).__name__}")
    for name in module._slots:
        full, packed = f"{prefix}{name}", f"{prefix}{name}_packed"
        if full in state and packed in state:
            errors.append(f"{full} and {packed} are both given; a weight is either float or quantized")
            _withhold(state, full)
            continue
        if full in state and f"{name}_packed" in module._parameters:
            _convert(module, name, state.pop(full), full, state, errors)
        if packed in state:
            _accept(module, name, state, full, errors, assign)
    for name in ("input_scale", "output_scale"):
        key = f"{prefix}{name}"
        if key not in state:
            continue
        value, current = state[key], getattr(module, name)
        if value.numel() != 1 or not value.is_floating_point():
            errors.append(f"{key} must be one floating number, got {value.dtype} {tuple(value.shape)}")
        elif current is None:
            where = torch.device("meta") if assign else device(module)
            module._buffers[name] = torch.empty((), dtype=value.dtype, device=where)


def device(module: nn.Module) -> torch.device:
    """Where a module's own parameters are."""
    return next((p.device for p in module._parameters.values() if p is not None), torch.device("cpu"))


def _convert(module: QModule, name: str, value: Tensor, full: str, state: dict[str, Any], errors: list[str]) -> None:
    slot = module._slots[name]
    if tuple(value.shape) != slot.shape or not value.is_floating_point():
        errors.append(f"{full} must be floating of shape {slot.shape}, got {value.dtype} {tuple(value.shape)}")
        return
    module.arrange(CANONICAL)
    q = quantize_tensor(slot.rows(value.detach().to(slot.dtype)), slot.scheme)
    for part, tensor in zip(PARTS, (q.codes, q.scale, q.zero_point, q.global_scale), strict=True):
        if tensor is not None:
            state[f"{full}_{part}"] = tensor


def _withhold(state: dict[str, Any], full: str) -> None:
    """Takes away what does not fit, or torch would copy it, cast, before it raises."""
    for name in (full, *(f"{full}_{part}" for part in PARTS)):
        state.pop(name, None)


def _accept(module: QModule, name: str, state: dict[str, Any], full: str, errors: list[str], assign: bool) -> None:
    slot = module._slots[name]
    given = {part: state[f"{full}_{part}"] for part in PARTS if f"{full}_{part}" in state}
    try:
        check_parts(slot, given)
    except ValueError as error:
        errors.append(f"{full}: {error}")
        _withhold(state, full)
        return
    module.arrange(CANONICAL)
    where = torch.device("meta") if assign else device(module)  # assigning replaces the tensor itself
    held = {part: p for part in PARTS if (p := module._parameters.get(f"{name}_{part}")) is not None}
    if held.keys() == given.keys() and all(held[part].dtype == tensor.dtype for part, tensor in given.items()):
        return
    parameter = module._parameters.get(name)
    tied = {} if parameter is None else parameter.__dict__.setdefault(_CODES, {})  # by the first of tied modules
    made = tied.get(slot.arrangement)
    if made is None or assign or any(_kind(tensor) != _kind(given.get(part)) for part, tensor in made.items()):
        made = {p: nn.Parameter(torch.empty_like(t, device=where), requires_grad=False) for p, t in given.items()}
        tied[slot.arrangement] = made
    module._adopt(name, [made.get(part) for part in PARTS])
    if parameter is not None and not parameter.is_meta:
        guard_orphan(parameter)


#: of a float parameter that codes replaced: those codes by arrangement, so that tied weights stay tied.
_CODES = "_quanto_codes"


def _kind(tensor: Tensor | None) -> tuple[torch.dtype, torch.Size] | None:
    return None if tensor is None else (tensor.dtype, tensor.shape)


def check_parts(slot: Slot, parts: Mapping[str, Any]) -> None:
    """Whether tensors can be the frozen weight of a slot.

    Args:
        slot: the parameter.
        parts: by suffix, anything with a dtype and a shape.

    Raises:
        ValueError: naming the part and what it should be.
    """
    scheme, shape = slot.scheme, slot.rows_shape()
    qtype, block_size = scheme.qtype, scheme.block_size(shape)
    wanted = {"packed", "scale"}
    wanted |= set() if scheme.is_symmetric else {"zero_point"}
    wanted |= {"global_scale"} if qtype.two_level else set()
    codes, scale, zero, shared = (parts.get(part) for part in PARTS)
    check_weight(Weight(codes, scale, zero, shared, qtype.name, block_size, shape[-1], ""), shape)  # type: ignore[arg-type]
    for part in PARTS:
        if (part in parts) != (part in wanted):
            raise ValueError(f"the scheme {scheme} {'needs' if part in wanted else 'has no'} {part}")
    dtype = scale.dtype  # type: ignore[union-attr]
    if qtype.scale_dtype is not None or scheme.scale_dtype is not None:
        allowed: tuple[torch.dtype, ...] = (scheme.scales(slot.dtype),)
    else:
        allowed = _FLOATS
    if dtype not in allowed:
        raise ValueError(f"scale must be {' or '.join(map(str, allowed))} for {scheme}, got {dtype}")
    if zero is not None and zero.dtype not in (torch.int8, *_FLOATS):
        raise ValueError(f"zero_point must be int8 or floating, got {zero.dtype}")
    if shared is not None and (shared.dtype != torch.float32 or tuple(shared.shape) != ()):
        raise ValueError(f"global_scale must be torch.float32 (), got {shared.dtype} {tuple(shared.shape)}")


def deepcopy(module: QModule, memo: dict[int, Any]) -> QModule:
    """A copy of everything; `nn.Module` copies through its state, which is right here too."""
    made = type(module).__new__(type(module))
    memo[id(module)] = made
    made.__dict__.update(copy.deepcopy(module.__dict__, memo))
    return made


def getstate(module: QModule) -> dict[str, Any]:
    """What pickle stores: canonical weights, and one-byte scales as bytes.

    torch 2.13 can pickle one-byte floats but not read them back (`UntypedStorage has no attribute dtype`).
    """
    state = module.__dict__.copy()
    parameters, slots = dict(module._parameters), {}
    for name, slot in module._slots.items():
        slots[name] = slot
        if slot.layout == CANONICAL:
            continue
        parts = _canonical(module, name)
        for part, tensor in zip(PARTS, parts, strict=True):
            parameters.pop(f"{name}_{part}", None)
            if tensor is not None:
                parameters[f"{name}_{part}"] = nn.Parameter(tensor, False)
        key = make_key(slot.qtype, slot.block_size, slot.rows_shape(), parts[1], parts[2])
        slots[name] = replace(slot, key=key, layout=CANONICAL)
    state["_slots"] = slots
    state["_arranged"] = slots != module._slots
    state["_parameters"] = {
        name: nn.Parameter(p.view(torch.uint8), False) if p is not None and is_small_float(p.dtype) else p
        for name, p in parameters.items()
    }
    return state


def setstate(module: QModule, state: dict[str, Any]) -> None:
    """The inverse of `getstate`; weights that were arranged are arranged anew, for the kernels of this machine."""
    arranged = state.pop("_arranged", False)
    for name, slot in state["_slots"].items():
        scale = state["_parameters"].get(f"{name}_scale")
        if scale is not None and scale.dtype == torch.uint8:
            dtype = slot.scheme.scales(slot.dtype)
            state["_parameters"][f"{name}_scale"] = nn.Parameter(scale.view(dtype), False)
    nn.Module.__setstate__(module, state)
    if arranged:
        module.arrange()
