# SPDX-License-Identifier: Apache-2.0
"""Tied tensors: one tensor under several names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["retie", "untie"]


def untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of a state dict once, and the further names of those that have several.

    Tensors are one if they are the same object, or show the same memory with the same dtype, shape and strides.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
            key: tuple[object, ...] = (id(tensor),)
        else:
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = tensor
    return tensors, aliases


def retie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Makes parameters and buffers that have several names one object again.

    Args:
        model: has tensors under all the names, or none where a module's state has names of its own making.
        aliases: further name -> first name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, first in aliases.items():
        (owner, leaf), (first_owner, first_leaf) = (_split(n, modules) for n in (name, first))
        if owner is None or first_owner is None:
            continue
        for table in ("_parameters", "_buffers"):
            shared = getattr(first_owner, table).get(first_leaf)
            if shared is not None and getattr(owner, table).get(leaf) is not None:
                getattr(owner, table)[leaf] = shared


def _split(name: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module | None, str]:
    owner, _, leaf = name.rpartition(".")
    return modules.get(owner), leaf
