# SPDX-License-Identifier: Apache-2.0
"""Shaders: found in the package, compiled by torch at first use, launched.

What `torch.mps.compile_shader` takes is written in `torch/csrc/mps/Module.cpp` and `OperationUtils.mm` (2.11 to 2.13):
arguments become buffers 0, 1, … in their order; a tensor is bound at its storage offset, whatever its strides; a list
of integers becomes an array of int64, or of int32 where `arg_casts` says so; None is refused. `threads` counts threads,
not groups (`dispatchThreads`), and groups at the edge are cut where `group_size` does not divide.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

__all__ = ["FAMILIES", "launch", "library", "source"]

#: what is compiled together, by the last file of it, whose kernels they are.
FAMILIES = {
    "gemv": ("decode", "product", "gemv"),
    "gemm": ("decode", "product", "gemm"),
    "dense": ("decode", "dense"),
    "encode": ("decode", "encode"),
    "bits": ("decode", "bits"),
}

_lock = threading.Lock()
#: libraries by family, kernels by family and name.
_compiled: dict[str | tuple[str, str], Any] = {}


@functools.cache
def source(family: str) -> str:
    """The Metal source of a family of kernels."""
    folder = files("quanto_backend_mps") / "shaders"
    return "\n".join((folder / f"{name}.metal").read_text(encoding="utf-8") for name in FAMILIES[family])


def library(family: str) -> Any:
    """The compiled kernels of a family, as attributes.

    Raises:
        RuntimeError: if this torch has no Metal.
        SyntaxError: if the shader does not compile here.
    """
    found = _compiled.get(family)
    if found is None:
        with _lock:  # compiling takes long enough that nobody should do it twice
            found = _compiled.get(family)
            if found is None:
                found = _compiled[family] = torch.mps.compile_shader(source(family))
    return found


def launch(
    family: str,
    kernel: str,
    tensors: Sequence[Tensor],
    sizes: Sequence[int],
    threads: Sequence[int],
    group: Sequence[int],
) -> None:
    """Starts a kernel on the current stream.

    Args:
        family: the shader file.
        kernel: of it.
        tensors: contiguous, in the order of the kernel's buffers.
        sizes: the fields of the struct of int32 that follows them.
        threads: in each dimension, of the whole grid.
        group: threads of a threadgroup in each dimension.
    """
    call = _compiled.get((family, kernel))
    if call is None:  # torch makes a new object each time that it is asked
        call = _compiled[family, kernel] = getattr(library(family), kernel)
    call(
        *tensors,
        [int(n) for n in sizes],
        threads=list(threads),
        group_size=list(group),
        arg_casts={len(tensors): "int32"},
    )
