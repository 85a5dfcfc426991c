# SPDX-License-Identifier: Apache-2.0
"""How kernels start: directly, or as a node that Inductor sees."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["assembly", "compiling", "dependent_launch", "interpreted", "launch", "sm_count", "warpgroups"]


_one_at_a_time = threading.Lock()
_compiling = threading.local()


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Within the block kernels of this thread are compiled, and kept in Triton's cache, instead of started."""
    _compiling.now = True
    try:
        yield
    finally:
        _compiling.now = False


@functools.cache
def interpreted() -> bool:
    """Whether Triton runs kernels in Python on the CPU; decided when Triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def assembly(device: torch.device, qtype: str) -> bool:
    """Whether the PTX of `quanto_backend_cuda.kernels.assembly` runs there; plain Triton does the same elsewhere."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    need = (8, 9) if qtype == "float8_e4m3fn" else (8, 0)  # cvt.rn.f16x2.e4m3x2; fma.rn.bf16x2
    return _capability(device.index or 0) >= need


def dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may begin before the one ahead of it has ended (griddepcontrol, Hopper and later)."""
    return device.type == "cuda" and torch.version.hip is None and _capability(device.index or 0) >= (9, 0)


def warpgroups(device: torch.device) -> bool:
    """Whether Triton multiplies by `wgmma` there, if a block has four warps: Hopper alone."""
    return device.type == "cuda" and torch.version.hip is None and _capability(device.index or 0)[0] == 9


@functools.cache
def _sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def sm_count(device: torch.device) -> int:
    """Multiprocessors of the device; 1 where there is none."""
    return _sm_count(device.index or 0) if device.type == "cuda" else 1


def launch(kernel: Callable[[], Any], grid: tuple[int, ...], *args: Any, traced: bool = False, **options: Any) -> None:
    """Starts a kernel.

    Args:
        kernel: the Triton function.
        grid: up to three sizes.
        *args: of the kernel, tensors and numbers.
        traced: whether a graph is being traced, which records the kernel for Inductor.
        **options: constants of the kernel; `num_warps`, `num_stages`.
    """
    if traced:
        options.pop("launch_pdl", None)  # Inductor starts kernels in its own way
        torch.library.wrap_triton(kernel)[grid](*args, **options)
        return
    if getattr(_compiling, "now", False):
        kernel.warmup(*args, grid=grid, **options)  # type: ignore[attr-defined]
        return
    if interpreted():
        for name in ("num_warps", "num_stages", "launch_pdl"):
            options.pop(name, None)
        with _one_at_a_time:  # the interpreter keeps the grid in a global
            kernel[grid](*args, **options)  # type: ignore[index]
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    if device.index == torch.cuda.current_device():
        kernel[grid](*args, **options)  # type: ignore[index]
        return
    with torch.cuda.device(device):  # Triton starts kernels on the current device, wherever their tensors are
        kernel[grid](*args, **options)  # type: ignore[index]
