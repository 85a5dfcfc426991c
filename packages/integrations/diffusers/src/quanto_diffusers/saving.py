# SPDX-License-Identifier: Apache-2.0
"""The tensors that `save_pretrained` writes: those of the model without its adapters, all of them in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_memory", "is_on_disk", "without_adapters"]

_log = logging.getLogger("quanto_diffusers")

#: what PEFT calls the layer that an adapter is around.
BASE = ".base_layer"


def without_adapters(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict by the names of the model without adapters, which are left out."""
    around = {name.removesuffix(BASE) for name, _ in model.named_modules() if name.endswith(BASE)}
    if not around:
        return dict(state)
    out = {}
    for name, value in state.items():
        inside = next((path for path in _parents(name) if path in around), None)
        if inside is None:
            out[name] = value
        elif name.startswith(f"{inside}{BASE}."):
            out[name.replace(BASE, "")] = value
    _log.warning(
        "adapters are not saved with the model: save_lora_adapter writes them, and fuse_lora with unload_lora makes "
        "them part of it"
    )
    return out


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _groups(model: nn.Module) -> Iterator[Any]:
    """Groups of diffusers' group offloading that lie on disk."""
    for module in model.modules():
        hook = getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).get("group_offloading")
        group: Any = getattr(hook, "group", None)
        if getattr(group, "offload_to_disk_path", None) is not None and group._is_offloaded_to_disk:
            yield group


def is_on_disk(model: nn.Module) -> bool:
    """Whether group offloading has put tensors of a model on disk."""
    return next(_groups(model), None) is not None


@contextmanager
def in_memory(model: nn.Module) -> Iterator[None]:
    """Within, tensors that group offloading has put on disk are in memory; in their place there is only garbage."""
    from safetensors.torch import load_file

    held: list[tuple[Tensor, Tensor]] = []
    try:
        for group in _groups(model):
            loaded = load_file(group.safetensors_file_path, device="cpu")
            for key, tensor in group.key_to_tensor.items():
                held.append((tensor, tensor.data))
                tensor.data = loaded[key]
        yield
    finally:
        for tensor, before in held:
            tensor.data = torch.empty_like(before)
