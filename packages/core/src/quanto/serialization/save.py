# SPDX-License-Identifier: Apache-2.0
"""Saving a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .._bytes import bytes_of
from .._progress import track
from ..mapping import quantization_map
from ..nn.checkpoint import postponed, resolve, source
from ..ties import untie
from .folder import collect_garbage, locked, new_names, remove, replace_text, sync_folder, write_file
from .header import DTYPES, TensorInfo, build_header
from .manifest import FILE, Manifest
from .views import VIEWS, stored, view_of

__all__ = ["save"]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def save(
    model: nn.Module, folder: str | os.PathLike[str], *, shard_size: int | str = "5GB", progress: bool | None = None
) -> None:
    """Saves a model to a folder: safetensors shards and `quanto.json` (docs/file-format.md).

    Frozen weights are saved as codes in the canonical packing; trainable ones as floats with their scheme, so that
    training can go on. Tied tensors are stored once. An earlier model in the folder is replaced in one step: a kill at
    any moment leaves the old model or the new one. Files that are not quanto's stay. One tensor at a time is copied
    from another device or out of a kernel's layout.

    Args:
        model: a model with quantized modules.
        folder: created if it does not exist. A second save to it waits for the first, but not on Windows or file
            systems without locks: there two at once must not be.
        shard_size: largest size of a file, in bytes or as in `"500MB"`; a larger tensor gets a file to itself.
        progress: whether to show a progress bar; None shows one in a terminal.

    Raises:
        ValueError: if nothing in the model is quantized, its state holds something else than plain tensors with values,
            or shard_size is not a size.
        OSError: if writing fails; the folder then is as it was.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("files are little-endian; saving on big-endian machines is not supported")
    modules = quantization_map(model)
    if not modules:
        raise ValueError("the model has no quantized module; call quanto.quantize(model, …) first")
    limit = _bytes(shard_size)
    with postponed(), torch.no_grad():
        tensors, aliases = untie(model.state_dict())
    infos = {name: _info(name, tensor) for name, tensor in tensors.items()}
    views = {name: view for name, tensor in tensors.items() if (view := view_of(tensor.dtype)) is not None}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(infos, limit)
    bar = iter(track(tensors, "save", enabled=progress))
    with locked(folder):
        names = new_names(folder, len(shards))
        try:
            sizes = [
                write_file(folder / name, _contents({n: infos[n] for n in _aligned_first(shard, infos)}, tensors, bar))
                for name, shard in zip(names, shards, strict=True)
            ]
            next(bar, None)  # ends the bar
            index = {n: i for i, shard in enumerate(shards) for n in shard}
            manifest = Manifest(modules, tuple(zip(names, sizes, strict=True)), index, aliases, views)
            sync_folder(folder)
            replace_text(folder / FILE, manifest.dump())
        except BaseException:
            if not _committed(folder, names):
                remove(folder, names)
            raise
        collect_garbage(folder, names)


def _committed(folder: Path, names: list[str]) -> bool:
    """Whether the JSON in place may be the new one: after an interrupt nobody knows what was the last thing done."""
    try:
        return any(name in (folder / FILE).read_text(encoding="utf-8") for name in names)
    except (OSError, ValueError):
        return False


def _info(name: str, tensor: Tensor) -> TensorInfo:
    """dtype and shape as they will be stored."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"state {name!r} is a {type(tensor).__name__}; only tensors can be saved")
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise ValueError(f"{name!r} cannot be stored: half of a surrogate pair is no text")
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        raise ValueError(f"{name!r} is a {type(tensor).__name__} ({tensor.layout}); only plain tensors can be saved")
    if tensor.is_meta and source(tensor) is None:
        raise ValueError(f"{name!r} is on the meta device and has no values to save")
    view = view_of(tensor.dtype)
    shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
    info = TensorInfo(tensor.dtype if view is None else VIEWS[view][1], shape)
    if info.dtype not in DTYPES.values() or name == "__metadata__":
        raise ValueError(f"{name!r} of {tensor.dtype} cannot be stored in a safetensors file")
    return info


def _split(infos: Mapping[str, TensorInfo], limit: int) -> list[list[str]]:
    """Names by shard, in the model's order."""
    shards: list[list[str]] = []
    room = 0
    for name, info in infos.items():
        if info.nbytes > room or not shards:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= info.nbytes
    return shards


def _aligned_first(names: list[str], infos: Mapping[str, TensorInfo]) -> list[str]:
    """Tensors of whole cache lines first, the others by falling element size: so each begins where it may be mapped.

    The format leaves no room for padding between tensors.
    """
    return sorted(names, key=lambda n: (infos[n].nbytes % 64 != 0, infos[n].nbytes % 64 and -infos[n].dtype.itemsize))


def _contents(
    infos: Mapping[str, TensorInfo], tensors: Mapping[str, Tensor], bar: Iterator[str]
) -> Iterator[bytes | memoryview]:
    yield build_header(infos)
    for name in infos:
        next(bar, None)
        tensor = stored(resolve(tensors[name])).detach().cpu().contiguous()
        if tensor.numel():
            yield bytes_of(tensor)


def _bytes(size: int | str) -> int:
    try:
        number = int(size) if isinstance(size, int) else int(float(size[:-2]) * _UNITS[size[-2:].upper()])
    except (KeyError, ValueError, TypeError, OverflowError):
        raise ValueError(f"shard_size must be bytes or a text such as '500MB', got {size!r}") from None
    if number <= 0:
        raise ValueError(f"shard_size must be positive, got {size!r}")
    return number
