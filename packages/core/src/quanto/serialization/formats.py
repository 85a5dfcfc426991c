# SPDX-License-Identifier: Apache-2.0
"""Readers of folders that other programs wrote, by name; plugins add them through the `register_formats` hook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["Reader", "formats", "register_format"]


class Reader:
    """Reads one foreign format.

    `detect` says whether a folder is in this format without reading tensors; `load` fills the float model and returns
    it quantized and frozen.

    The command line asks more of a reader that has the method `accepts(folder)`, and any of these (see
    `quanto.serialization.foreign`): `layers(folder)`, which modules of a float folder are quantized by default, each
    with the arrangement of its weight, or None; `fetch(name)`, the folder of a model of a hub; `open(folder)`, a model
    and what makes tokens of a text; `task(folder)`, a `quanto.eval.Task` for a model that is no language model, or
    None; and `complete(source, folder, manifest)`, which adds files that another library needs to load what quanto
    wrote.
    """

    detect: Callable[[Path], bool]
    load: Callable[[Path, torch.nn.Module], torch.nn.Module]


formats: dict[str, Any] = {}


def register_format(name: str, reader: Any) -> None:
    """Adds a reader: an object with `detect(folder) -> bool` and `load(folder, model) -> model`.

    Raises:
        ValueError: if the name is taken.
        TypeError: if a method is missing.
    """
    if name in formats:
        raise ValueError(f"format {name!r} is registered already")
    for method in ("detect", "load"):
        if not callable(getattr(reader, method, None)):
            raise TypeError(f"format {name!r}: the reader has no {method}()")
    formats[name] = reader
