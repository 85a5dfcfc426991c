# SPDX-License-Identifier: Apache-2.0
"""Checks of checkpoint files before a model takes anything from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from safetensors import SafetensorError, safe_open

__all__ = ["check_files", "where_is"]


def check_files(files: Sequence[str | os.PathLike[str]] | None) -> list[str]:
    """The paths, each of a whole safetensors file (files of other kinds are not checked).

    Raises:
        ValueError: naming the file that is truncated or damaged.
    """
    paths = [os.fspath(file) for file in files or ()]
    for path in paths:
        if path.endswith(".safetensors"):
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is truncated or damaged: {error}") from None
    return paths


def where_is(names: Iterable[str], files: Sequence[str]) -> str:
    """The file of a checkpoint that holds one of these tensors, for messages; the first file's folder if none does."""
    wanted = list(names)
    for path in files:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                held = set(file.keys())
            if any(name in held for name in wanted):
                return path
    return os.path.dirname(files[0]) if files else "the checkpoint"
