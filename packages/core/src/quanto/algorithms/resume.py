# SPDX-License-Identifier: Apache-2.0
"""Finished blocks on disk, so that a killed pipeline goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._digest import digest_of
from .._version import __version__
from ..mapping import quantization_map
from ..nn.base import QModule
from ..tensor.qtensor import is_small_float
from .step import Block, Step

__all__ = ["Store", "clear"]

_PREFIX = "block-"  # of the files' names


class Store:
    """A folder with one file per finished block, and the fingerprint of what they belong to.

    Args:
        folder: made if it doesn't exist.
        model: before any step.
        samples: the batches.
        steps: of the pipeline.

    Raises:
        ValueError: if the folder belongs to another model, data, pipeline or version of quanto.
    """

    def __init__(self, folder: Path, model: nn.Module, samples: Sequence[Any], steps: Sequence[Step]) -> None:
        self.folder = folder
        self._files: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        mine = _fingerprint(model, samples, steps)
        path = folder / "pipeline.json"
        if path.exists():
            try:
                its = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"resume: {path} is damaged ({error}); delete the folder to start anew") from None
            for part, value in mine.items():
                if its.get(part) != value:
                    raise ValueError(f"resume: {folder} belongs to another {part}; delete it or name another folder")
        else:
            found = next(folder.glob(f"{_PREFIX}*.pt"), None)
            if found is not None:
                raise ValueError(f"resume: {found} belongs to a run that is not described beside it; delete it")
            _write(path, json.dumps(mine, indent=2).encode())

    def _path(self, block: Block) -> Path:
        path = self.folder / f"{_PREFIX}{block.name or 'rest'}.pt"
        self._files.append(path)
        return path

    def save(self, block: Block) -> None:
        """Writes a finished block, atomically."""
        state = {}
        for name, tensor in block.module.state_dict().items():
            small = is_small_float(tensor.dtype)  # torch 2.13 writes these but cannot read them back
            state[name] = (tensor.view(torch.uint8) if small else tensor, str(tensor.dtype).removeprefix("torch."))
        scheme = {n: m.scheme.to_dict() for n, m in block.module.named_modules() if isinstance(m, QModule) and m._slots}
        path = self._path(block)
        temporary = _temporary(path)
        torch.save({"state": state, "schemes": scheme, "losses": block.losses}, temporary)
        os.replace(temporary, path)

    def load(self, block: Block) -> bool:
        """Gives a block its finished state, if it is there."""
        from ..scheme import Scheme

        path = self._path(block)
        if not path.exists():
            return False
        try:
            data = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise ValueError(f"resume: {path} is damaged ({error}); delete it to do this block again") from None
        for name, fields in data["schemes"].items():
            module = block.module.get_submodule(name)
            assert isinstance(module, QModule)
            for slot in module._slots.values():
                slot.scheme = Scheme.from_dict(fields)
            module.prepare()
        where = next((t.device for t in block.module.state_dict().values()), torch.device("cpu"))
        state = {}
        for name, (tensor, dtype) in data["state"].items():
            whole: Tensor = tensor.view(getattr(torch, dtype)) if is_small_float(getattr(torch, dtype)) else tensor
            state[name] = whole.to(where)
        block.module.load_state_dict(state, assign=True)
        block.losses.update(data["losses"])
        return True

    def finish(self) -> None:
        """Removes the files of a pipeline that is done, and the folder if nothing else lies in it."""
        for path in [*self._files, self.folder / "pipeline.json"]:  # in this order: blocks are nothing without it
            path.unlink(missing_ok=True)
            _temporary(path).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def clear(folder: Path) -> None:
    """Removes what a store keeps in a folder, and the folder if nothing else lies in it."""
    blocks = (folder.glob(f"{_PREFIX}*{end}") for end in (".pt", ".pt.tmp"))
    for path in [*(path for found in blocks for path in found), *folder.glob("pipeline.json*")]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # something else lies in it, or it is not there
        folder.rmdir()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _write(path: Path, content: bytes) -> None:
    temporary = _temporary(path)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _fingerprint(model: nn.Module, samples: Sequence[Any], steps: Sequence[Step]) -> dict[str, str]:
    options = [(type(step).__name__, sorted((k, repr(v)) for k, v in vars(step).items())) for step in steps]
    return {
        "version": __version__,
        "model": digest_of(json.dumps(quantization_map(model), sort_keys=True, default=str), model.state_dict()),
        "data": digest_of(samples),
        "pipeline": json.dumps(options),
    }
