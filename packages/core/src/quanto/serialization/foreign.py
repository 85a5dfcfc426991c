# SPDX-License-Identifier: Apache-2.0
"""What a registered format can do beside reading: fetch and open a model, know an architecture, complete a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .formats import formats
from .manifest import Manifest

if TYPE_CHECKING:
    from ..eval.tasks import Task

__all__ = ["Opened", "complete", "fetch", "known_layers", "open_model", "open_task"]

#: a float or quantized model, and what makes tokens, int64 `[n]`, of a text
Opened = tuple[nn.Module, Callable[[str], Tensor]]


def _able(folder: Path, method: str) -> tuple[str, Any] | None:
    from ..plugins.manager import plugins

    plugins.load()
    for name, found in formats.items():
        if callable(getattr(found, method, None)) and found.accepts(folder):
            return name, found
    return None


def fetch(model: Path) -> Path:
    """The folder of a model of a hub, such as `owner/name`, from a format that knows one; any other path as it is.

    Raises:
        ValueError: if the hub has no such model, or can't be reached.
    """
    from ..plugins.manager import plugins

    if model.exists() or not _ON_A_HUB.fullmatch(model.as_posix()):
        return model
    plugins.load()
    for found in formats.values():
        if callable(getattr(found, "fetch", None)):
            return Path(found.fetch(model.as_posix()))
    return model


_ON_A_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def known_layers(folder: Path) -> dict[str, str] | None:
    """Arrangement by name of the layers that are quantized by default; None where no format knows the architecture."""
    found = _able(folder, "layers")
    return None if found is None else found[1].layers(folder)


def open_model(folder: Path) -> Opened:
    """A folder's model and its tokenizer.

    Raises:
        ValueError: if no installed format opens the folder.
    """
    found = _able(folder, "open")
    if found is None:
        raise ValueError(f"{folder}: no installed package knows how to run this model (quanto-transformers may)")
    opened: Opened = found[1].open(folder)
    return opened


def open_task(folder: Path) -> Task | None:
    """A folder's model with what makes its inputs of examples; None where no format knows it as more than a text's.

    Raises:
        ValueError: if a format knows it, and it can't be opened.
    """
    found = _able(folder, "task")
    task: Task | None = None if found is None else found[1].task(folder)
    return task


def complete(source: Path, folder: Path, manifest: Manifest) -> list[str]:
    """Lets a format add the files that its library needs to load the folder; returns its name, if one did."""
    found = _able(source, "complete")
    if found is None:
        return []
    found[1].complete(source, folder, manifest)
    return [found[0]]
