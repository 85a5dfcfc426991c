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

__all__ = [
    "assembly",
    "compiling",
    "dependent_launch",
    "import_triton",
    "interpreted",
    "launch",
    "sm_count",
    "warpgroups",
]


_one_at_a_time = threading.Lock()
_compiling = threading.local()
_importing = threading.Lock()
_imported = False


def import_triton() -> None:
    """Imports Triton, with Gluon if this version has it: once, and in one thread.

    Its modules import each other, so that two threads that begin at different ones may lock each other out, which
    Python reports as an import error. Every operator comes here first.
    """
    global _imported
    if _imported:
        return
    with _importing:
        if not _imported:
            import triton.language

            with contextlib.suppress(Exception):  # `quanto_backend_cuda.ops.trial.gluon` asks what there is
                import triton.experimental.gluon.language
                import triton.experimental.gluon.nvidia.hopper  # noqa: F401
            _imported = True


@contextlib.contextmanager
def compiling() -> Iterator[list[Callable[[], Any]]]:
    """Within the block kernels of this thread do not start; yields what compiles them into Triton's cache instead."""
    work: list[Callable[[], Any]] = []
    _compiling.work = work
    try:
        yield work
    finally:
        _compiling.work = None


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
    work = getattr(_compiling, "work", None)
    if work is not None:
        work.append(functools.partial(kernel.warmup, *args, grid=grid, **options))  # type: ignore[attr-defined]
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
