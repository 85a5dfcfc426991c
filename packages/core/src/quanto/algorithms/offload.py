# SPDX-License-Identifier: Apache-2.0
"""Tensors in files that are mapped into memory, whose pages the system writes and drops where it needs room."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["offload"]


def offload(tensor: Tensor, folder: Path) -> Tensor:
    """A copy on the CPU that lies in a file of its own, which goes when the copy does.

    The file has no name any more when this returns, so that a kill leaves none behind. (Windows removes no file in use:
    there it stays.)

    Args:
        tensor: any shape, dtype and device.
        folder: where there is room; it must exist.

    Raises:
        OSError: if there is no room.
    """
    if not tensor.numel():
        return tensor.cpu()
    handle, name = tempfile.mkstemp(prefix="offload-", suffix=".bin", dir=folder)
    try:
        with os.fdopen(handle, "r+b") as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would end the process, when pages are due
                os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
        made: Tensor = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    finally:
        with suppress(OSError):
            Path(name).unlink()
    return made.view(tensor.shape).copy_(tensor)
