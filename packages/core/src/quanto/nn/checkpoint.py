# SPDX-License-Identifier: Apache-2.0
"""State of quantized modules: what `state_dict`, `load_state_dict` and `deepcopy` do differently for them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels import kernels
from ..ops import check_weight
from ..tensor import quantize_tensor
from ..tensor.qtensor import is_small_float
from ..weight import CANONICAL, Weight
from .slot import PARTS

if TYPE_CHECKING:
    from .base import QModule

__all__ = ["canonicalize", "deepcopy", "getstate", "load", "setstate"]


def canonicalize(module: QModule, destination: dict[str, Any], prefix: str) -> None:
    """Replaces tensors in a kernel's layout by canonical ones."""
    for name, slot in module._slots.items():
        if slot.layout == CANONICAL:
            continue
        w = module.operand(name)
        tensors = kernels.layouts[slot.layout].unpack(w[:4], w.qtype, w.block_size, w.size)
        for part, tensor in zip(PARTS, tensors, strict=True):
            destination.pop(f"{prefix}{name}_{part}", None)
            if tensor is not None:
                destination[f"{prefix}{name}_{part}"] = tensor


def load(
    module: QModule, state: dict[str, Any], prefix: str, metadata: dict[str, Any], missing: Any, errors: list[str]
) -> None:
    """Prepares a module for the tensors it is about to be given.

    Float weights offered to a frozen module are quantized as its scheme says; codes offered to a trainable module
    freeze it; codes of another dtype or shape are an error, where torch would cast them without a word.
    """
    assign = bool(metadata.get("assign_to_params_buffers", False))
    for name in module._slots:
        full, packed = f"{prefix}{name}", f"{prefix}{name}_packed"
        is_frozen = f"{name}_packed" in module._parameters
        if full in state and packed in state:
            errors.append(f"{full} and {packed} are both given; a weight is either float or quantized")
        elif full in state and is_frozen:
            _convert(module, name, state.pop(full), full, state, errors)
        elif packed in state:
            _accept(module, name, state, full, errors, assign)
    for name in ("input_scale", "output_scale"):
        key = f"{prefix}{name}"
        if key in state and getattr(module, name) is None:
            value = state[key]
            if value.numel() != 1 or not value.is_floating_point():
                errors.append(f"{key} must be one floating number, got {value.dtype} {tuple(value.shape)}")
                continue
            where = value.device if assign else _device(module)
            module._buffers[name] = torch.empty((), dtype=value.dtype, device=where)


def _device(module: nn.Module) -> torch.device:
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


def _accept(module: QModule, name: str, state: dict[str, Any], full: str, errors: list[str], assign: bool) -> None:
    slot = module._slots[name]
    tensors: list[Tensor | None] = [state.get(f"{full}_{part}") for part in PARTS]
    codes, scale, zero, shared = tensors
    if codes is None or scale is None:
        return  # the scale is missing: torch reports it, or the module is trainable and nothing fits
    shape = slot.rows_shape()
    qtype = slot.scheme.qtype
    weight = Weight(codes, scale, zero, shared, qtype.name, slot.scheme.block_size(shape), shape[-1], "")
    try:
        check_weight(weight, shape)
        if (zero is None) != slot.scheme.is_symmetric:
            have, want = ("no", "one") if zero is None else ("a", "none")
            raise ValueError(f"{have} zero point is given where the scheme {slot.scheme} has {want}")
        if (shared is not None) != qtype.two_level:
            raise ValueError(f"{qtype.name} {'needs' if qtype.two_level else 'has no'} global_scale")
        if not scale.is_floating_point():
            raise ValueError(f"scale must be floating, got {scale.dtype}")
        if qtype.scale_dtype not in (None, scale.dtype):
            raise ValueError(f"scale must be {qtype.scale_dtype} for {qtype.name}, got {scale.dtype}")
    except ValueError as error:
        errors.append(f"{full}: {error}")
        for part in PARTS:
            state.pop(f"{full}_{part}", None)
        return
    module.arrange(CANONICAL)
    current = module._parameters.get(f"{name}_packed")
    where = codes.device if assign else _device(module)
    if current is None or any(
        t is not None and (p := module._parameters.get(f"{name}_{part}")) is not None and p.dtype != t.dtype
        for part, t in zip(PARTS, tensors, strict=True)
    ):
        module._adopt(name, [None if t is None else torch.empty_like(t, device=where) for t in tensors])
    slot.key = ""
    for part, tensor in zip(PARTS, tensors, strict=True):
        if tensor is not None and f"{name}_{part}" not in module._parameters:
            module._parameters[f"{name}_{part}"] = nn.Parameter(torch.empty_like(tensor, device=where), False)
    module._rekey(name)


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
    module.arrange(CANONICAL)
    state = module.__dict__.copy()
    state["_parameters"] = {
        name: nn.Parameter(p.view(torch.uint8), False) if p is not None and is_small_float(p.dtype) else p
        for name, p in module._parameters.items()
    }
    return state


def setstate(module: QModule, state: dict[str, Any]) -> None:
    """The inverse of `getstate`."""
    for name, slot in state["_slots"].items():
        scale = state["_parameters"].get(f"{name}_scale")
        if scale is not None and scale.dtype == torch.uint8:
            dtype = slot.scheme.scales(slot.dtype)
            state["_parameters"][f"{name}_scale"] = nn.Parameter(scale.view(dtype), False)
    nn.Module.__setstate__(module, state)
