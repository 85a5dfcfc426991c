# SPDX-License-Identifier: Apache-2.0
"""Loading a model."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from .._progress import track
from ..model import fill
from .formats import formats
from .header import TensorInfo, read_header
from .manifest import FILE, FormatError, Manifest

__all__ = ["load"]


def load(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Loads a saved folder into a model of the same architecture, in place; nothing is quantized again.

    Everything is checked before the model is touched: it is either loaded whole or left as it was. On a CPU the tensors
    are memory-mapped from the files.

    Args:
        folder: what `quanto.save` wrote, or a format that a plugin reads.
        model: the float architecture; its parameters may be on the meta device. It takes the dtypes of the file.
        device: where to load to; default: the CPU for a model on meta, else the model's own.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        The model itself, in evaluation or training mode as it was.

    Raises:
        FormatError: if the folder is damaged, hostile, too new, or does not fit the model; the message names file,
            tensor or module.
    """
    folder = Path(folder)
    if not (folder / FILE).exists():
        reader = _foreign(folder)
        if reader is not None:
            return reader.load(folder, model)  # type: ignore[no-any-return, attr-defined]
    manifest = Manifest.read(folder)
    infos = _headers(folder, manifest)
    _rehearse(folder, model, manifest, infos)
    state = _tensors(folder, manifest, _target(model, device), progress)
    fill(model, state, manifest.modules, manifest.aliases)
    return model


def _foreign(folder: Path) -> object | None:
    from ..plugins.manager import plugins

    plugins.load()
    return next((r for r in formats.values() if r.detect(folder)), None)


def _headers(folder: Path, manifest: Manifest) -> dict[str, TensorInfo]:
    """dtype and shape of every tensor, each where the manifest says."""
    found: dict[str, TensorInfo] = {}
    for index, (name, size) in enumerate(manifest.shards):
        for tensor, info in read_header(folder / name, size).items():
            if tensor in found:
                raise FormatError(f"{folder / name}: tensor {tensor!r} is in another shard too")
            if manifest.tensors.get(tensor) != index:
                raise FormatError(f"{folder / name}: tensor {tensor!r} is not listed there in {FILE}")
            found[tensor] = info
    missing = next((t for t in manifest.tensors if t not in found), None)
    if missing is not None:
        raise FormatError(f"{folder / manifest.shards[manifest.tensors[missing]][0]}: tensor {missing!r} is missing")
    return found


def _rehearse(folder: Path, model: nn.Module, manifest: Manifest, infos: dict[str, TensorInfo]) -> None:
    """Loads tensors without values into a copy without values: whatever can go wrong goes wrong here."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, object] = {id(t): _hollow(t) for t in tensors}
    try:
        stand_in = copy.deepcopy(model, memo)
        state = {name: torch.empty(info.shape, dtype=info.dtype, device="meta") for name, info in infos.items()}
        fill(stand_in, state, manifest.modules, manifest.aliases)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder} does not fit the model: {error}") from None


def _hollow(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _target(model: nn.Module, device: str | torch.device | None) -> str:
    if device is not None:
        return str(device)
    return next((str(t.device) for t in (*model.parameters(), *model.buffers()) if not t.is_meta), "cpu")


def _tensors(folder: Path, manifest: Manifest, device: str, progress: bool | None) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    for name, _ in track(manifest.shards, "load", enabled=progress):
        try:
            with safe_open(folder / name, framework="pt", device=device) as file:
                for tensor in file.keys():  # noqa: SIM118 - not a dictionary
                    state[tensor] = file.get_tensor(tensor)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{folder / name} cannot be read: {error}") from None
    return state
