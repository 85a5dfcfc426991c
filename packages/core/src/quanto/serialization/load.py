# SPDX-License-Identifier: Apache-2.0
"""Loading a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import track
from ..mapping import apply_map
from ..model import arrange
from ..nn.staging import Staging
from .compare import compare
from .errors import FormatError
from .folder import locate
from .formats import formats
from .header import read_header
from .manifest import FILE, Manifest
from .views import restored

__all__ = ["load"]


def load(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Loads a saved folder into a model of the same architecture, in place; nothing is quantized again.

    Everything is checked before the model is touched: it is either loaded whole or left as it was. On the CPU the
    tensors are memory-mapped from the files, which must then not be written to while the model lives (`quanto.save`
    to the same folder is safe: it never changes a file). Parameters that stay floating keep their identity, so that an
    optimizer made before still holds them.

    Args:
        folder: what `quanto.save` wrote, or a format that a plugin reads.
        model: the float architecture, or a quantized model of the same schemes; its parameters may be on the meta
            device. It takes the dtypes of the file. Buffers that are in no state dict are left to the caller.
        device: where to load to; default: where the model's tensors are, and the CPU for those on meta.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        The model itself, in evaluation or training mode as it was.

    Raises:
        FormatError: if the folder is damaged, hostile, too new, or does not fit the model; the message names file,
            tensor or module.
    """
    with torch.inference_mode(False), torch.no_grad():  # what inference mode makes cannot be used with gradients later
        return _load(Path(folder), model, None if device is None else torch.device(device), progress)


def _load(folder: Path, model: nn.Module, target: torch.device | None, progress: bool | None) -> nn.Module:
    if not (folder / FILE).exists() and (reader := _foreign(folder)) is not None:
        loaded: nn.Module = reader.load(folder, model)
        return loaded if target is None else loaded.to(target)
    manifest, tensors = _read(folder)
    files = {name: folder / manifest.shards[index][0] for name, index in manifest.tensors.items()}
    aliases = manifest.aliases
    with _fitting(folder):
        staging = Staging(model)
        apply_map(staging.model, manifest.modules)
        whole = {**tensors, **{name: tensors[first] for name, first in aliases.items()}}
        compare(staging.model, whole, files | {name: files[first] for name, first in aliases.items()}, folder)
    places = _places(model, staging, tensors, target)
    state = {name: tensors[name].to(places[name]) for name in track(tensors, "load", enabled=progress)}
    with _fitting(folder):
        staging.fill(state, aliases)
    staging.commit()
    if target is not None:
        _move_the_rest(model, target)
    arrange(model)
    return model


def _foreign(folder: Path) -> Any:
    from ..plugins.manager import plugins

    plugins.load()
    found = {name: reader for name, reader in formats.items() if reader.detect(folder)}
    if len(found) > 1:
        raise FormatError(f"{folder} is taken for one of theirs by several formats: {', '.join(sorted(found))}")
    return next(iter(found.values()), None)


def _read(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """The folder's manifest, and its tensors mapped into memory; nothing of their data is read yet."""
    manifest = Manifest.read(folder)
    try:
        return manifest, _map(folder, manifest)
    except FormatError:
        again = Manifest.read(folder)
        if again == manifest:
            raise
        # Another process has just saved to the folder, and removed the shards that were listed.
        return again, _map(folder, again)


def _map(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for index, (file_name, size) in enumerate(manifest.shards):
        path = locate(folder, file_name)
        infos = read_header(path, size)
        for name in infos:
            if name in found:
                raise FormatError(f"{path}: tensor {name!r} is in another shard too")
            if manifest.tensors.get(name) != index:
                raise FormatError(f"{path}: tensor {name!r} is not listed there in {FILE}")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name, info in infos.items():
                    tensor = file.get_tensor(name)
                    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
                        raise FormatError(f"{path}: tensor {name!r} has changed while it was read")
                    found[name] = restored(tensor, manifest.views.get(name))
        except FormatError:
            raise
        except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError) as error:
            raise FormatError(f"{path} cannot be read: {error}") from None
    missing = next((t for t in manifest.tensors if t not in found), None)
    if missing is not None:
        raise FormatError(f"{folder / manifest.shards[manifest.tensors[missing]][0]}: tensor {missing!r} is missing")
    return found


@contextlib.contextmanager
def _fitting(folder: Path) -> Any:
    """Errors of the model, in the words of this module; nothing was changed yet when they are raised."""
    try:
        yield
    except FormatError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise FormatError(f"{folder} does not fit the model: {error}") from error


def _places(
    model: nn.Module, staging: Staging, names: Iterable[str], target: torch.device | None
) -> dict[str, torch.device]:
    if target is not None:
        return dict.fromkeys(names, target)
    real = (t.device for t in (*model.parameters(), *model.buffers()) if not t.is_meta)
    default = next(real, torch.device("cpu"))
    return {name: staging.device(name, default) for name in names}


def _move_the_rest(model: nn.Module, device: torch.device) -> None:
    """Moves buffers that no state dict holds."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
