# SPDX-License-Identifier: Apache-2.0
"""Saving a model."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from .._progress import track
from ..model import quantization_map
from .folder import collect_garbage, commit, new_names, sync
from .manifest import FILE, Manifest

__all__ = ["save"]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def save(
    model: nn.Module, folder: str | os.PathLike[str], *, shard_size: int | str = "5GB", progress: bool | None = None
) -> None:
    """Saves a model to a folder: safetensors shards and `quanto.json`.

    Frozen weights are saved as codes in the canonical packing; trainable ones as floats with their scheme, so that
    training can go on. Tied tensors are stored once. An earlier model in the folder is replaced in one step; files that
    are not quanto's stay.

    Args:
        model: a model with quantized modules.
        folder: created if it does not exist.
        shard_size: largest size of a file, in bytes or as in `"500MB"`; a larger tensor gets a file to itself.
        progress: whether to show a progress bar; None shows one in a terminal.

    Raises:
        ValueError: if nothing in the model is quantized, a tensor is on the meta device, or shard_size is not a size.
    """
    from safetensors.torch import save_file

    modules = quantization_map(model)
    if not modules:
        raise ValueError("the model has no quantized module; call quanto.quantize(model, …) first")
    limit = _bytes(shard_size)
    tensors, aliases = _untie(model.state_dict())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(tensors, limit)
    names = new_names(folder, len(shards))
    sizes = []
    for name, shard in track(list(zip(names, shards, strict=True)), "save", enabled=progress):
        partial = folder / f"{name}.partial"
        save_file({n: tensors[n].contiguous() for n in shard}, partial, metadata={"format": "pt"})
        sync(partial)
        os.replace(partial, folder / name)
        sizes.append((folder / name).stat().st_size)
    index = {n: i for i, shard in enumerate(shards) for n in shard}
    manifest = Manifest(modules, tuple(zip(names, sizes, strict=True)), index, aliases)
    sync(folder)
    commit(folder, FILE, manifest.dump())
    collect_garbage(folder, set(names))


def _untie(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of those that have several."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"state {name!r} is a {type(tensor).__name__}; only tensors can be saved")
        if tensor.is_meta:
            raise ValueError(f"{name!r} is on the meta device and has no values to save")
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = tensor.detach()
    return tensors, aliases


def _split(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def _bytes(size: int | str) -> int:
    try:
        number = int(size) if isinstance(size, int) else int(float(size[:-2]) * _UNITS[size[-2:].upper()])
    except (KeyError, ValueError):
        raise ValueError(f"shard_size must be bytes or a text such as '500MB', got {size!r}") from None
    if number <= 0:
        raise ValueError(f"shard_size must be positive, got {size!r}")
    return number
