# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `torch.mps.compile_shader`: the same source, compiled as C++, launched with the same arguments.

It takes what torch 2.11 to 2.13 take (`torch/csrc/mps/Module.cpp`, `MetalKernelFunction` in `OperationUtils.mm`) and
turns arguments into the same buffers. Beyond that it refuses what torch would bind and the shader would misread:
strided tensors, other dtypes than the shader declares, integers of another width, sizes in another number.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .signature import PLACES, Kernel, Parameter, read

__all__ = ["Checks", "Shim"]

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++17", "-O1", "-march=native", "-fsigned-char", "-fPIC", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE",
    "-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-unused-parameter",
    "-Wno-unused-function", "-Wno-unused-variable", "-Wno-type-limits", "-Wno-psabi", "-Wno-missing-field-initializers",
)  # fmt: skip
DTYPES = {
    "float": {torch.float32},
    "half": {torch.float16},
    "ushort": {torch.bfloat16},
    "char": {torch.int8},
    "uchar": {torch.uint8, torch.int8},
    "long": {torch.int64},
    "int": {torch.int32},
}
TYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
NO_TYPE = 4
MOST_THREADS = 1024


@dataclass(frozen=True)
class Checks:
    """What the checked build counted in one launch: bytes by buffer, in the order of the arguments.

    Attributes:
        read: by all lanes together.
        written: by all lanes together.
        moved: read, where lanes of a simdgroup that read the same address at once count as one.
    """

    read: tuple[int, ...]
    written: tuple[int, ...]
    moved: tuple[int, ...]


class Shim:
    """Compiles into a folder, which keeps libraries from one run to the next.

    Args:
        folder: for the libraries.
        flags: added to the compiler's.
        checked: whether each access to memory is looked at: see `checked.h`.
    """

    def __init__(self, folder: Path, flags: tuple[str, ...] = (), checked: bool = False) -> None:
        self.folder, self.checked = folder, checked
        self.flags = (*flags, *(("-fsanitize=thread", "-DSHIM_CHECKED") if checked else ()))
        self.last: Checks | None = None
        self.launched: list[str] = []

    def compile_shader(self, source: str) -> Library:
        """As `torch.mps.compile_shader`."""
        kernels, structs = read(source)
        text = "\n".join([source, '#include "checked.h"', *map(_trampoline, kernels.values())])
        headers = "".join((HERE / name).read_text() for name in ("metal_stdlib", "threads.h", "checked.h"))
        flags = (*FLAGS, *self.flags)
        digest = hashlib.sha256("\0".join([text, headers, *flags]).encode()).hexdigest()[:20]
        return Library(self, ctypes.CDLL(str(self._build(text, digest, flags))), kernels, structs)

    def _build(self, text: str, digest: str, flags: tuple[str, ...]) -> Path:
        built = self.folder / f"{digest}.so"
        with open(self.folder / f"{digest}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles, the others wait
            if not built.exists():
                unit = self.folder / f"{digest}.cpp"
                unit.write_text(text)
                made, linked = unit.with_suffix(".o"), unit.with_suffix(".tmp")
                _run(["g++", *flags, f"-I{HERE}", "-c", str(unit), "-o", str(made)])
                # without that sanitizer's runtime: checked.h stands in for it
                _run(["g++", "-shared", *(f for f in flags if f != "-fsanitize=thread"), str(made), "-o", str(linked)])
                os.replace(linked, built)
        return built


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SyntaxError(f"{' '.join(command)}\n{done.stderr[:6000]}")


def _trampoline(kernel: Kernel) -> str:
    given = [f"({'const ' if p.const else ''}{p.type}*)a[{p.index}]" for p in kernel.buffers if p.mark == "*"]
    given += [f"*(const {p.type}*)a[{p.index}]" for p in kernel.buffers if p.mark == "&"]
    given += [PLACES[p.attribute][0] for p in kernel.places]
    plain = '__attribute__((no_sanitize("thread")))'
    call = f"[=](const shim::Place& at) {plain} {{ shim::enter(); {kernel.name}({', '.join(given)}); shim::leave(); }}"
    head = f'extern "C" const char* run_{kernel.name}(void** a, const unsigned* threads, const unsigned* size)'
    return f"{head} {{\n    return shim::dispatch({call}, threads, size, {str(kernel.together).lower()});\n}}"


class Library:
    """A compiled source; kernels are attributes."""

    def __init__(
        self, shim: Shim, binary: Any, kernels: dict[str, Kernel], structs: dict[str, tuple[str, ...]]
    ) -> None:
        self._shim, self._binary, self.kernels, self.structs = shim, binary, kernels, structs

    def __dir__(self) -> list[str]:
        return list(self.kernels)

    def __getattr__(self, name: str) -> Call:
        if name.startswith("_") or name not in self.kernels:
            raise AttributeError(f"no kernel {name!r}")
        return Call(self, self.kernels[name])


class Call:
    """A kernel as torch's `_mps_MetalKernel`."""

    def __init__(self, library: Library, kernel: Kernel) -> None:
        self.library, self.kernel = library, kernel

    def __call__(self, *args: Any, threads: Any = None, group_size: Any = None, arg_casts: Any = None) -> None:
        kernel, shim = self.kernel, self.library._shim
        if len(args) != len(kernel.buffers):
            raise TypeError(f"{kernel.name} has {len(kernel.buffers)} buffers, got {len(args)} arguments")
        casts = arg_casts if isinstance(arg_casts, dict) else dict.fromkeys(range(len(args)), arg_casts or "")
        numbers: dict[str, int] = {}
        keep: list[Any] = []
        for parameter, value in zip(kernel.buffers, args, strict=True):
            if not isinstance(value, Tensor):
                keep.append(self._array(parameter, value, casts.get(parameter.index, ""), numbers))
        for parameter, value in zip(kernel.buffers, args, strict=True):
            if isinstance(value, Tensor):
                self._check(parameter, value, numbers)
        grid, size = _sizes(threads), _sizes(group_size)
        if len(threads) != len(group_size):
            raise ValueError("threads and group_size must have as many dimensions")
        if math.prod(size) > MOST_THREADS:
            raise ValueError(f"Threadgroup size exceeds {MOST_THREADS} limit")
        if kernel.together and (
            any(n % s for n, s in zip(grid, size, strict=True)) or size[0] * size[1] * size[2] % 32
        ):
            raise ValueError(f"{kernel.name}: its threads meet, so that groups must be whole: {grid} in {size}")
        arrays = iter(keep)
        pointers = [v.data_ptr() if isinstance(v, Tensor) else ctypes.addressof(next(arrays)) for v in args]
        spans = [v.numel() * v.element_size() if isinstance(v, Tensor) else 4 * len(v) for v in args]
        shim.launched.append(kernel.name)
        self._run(pointers, spans, grid, size)

    def _run(self, pointers: list[int], spans: list[int], grid: list[int], size: list[int]) -> None:
        binary, count, checked = self.library._binary, len(pointers), self.library._shim.checked
        run = getattr(binary, f"run_{self.kernel.name}")
        run.restype = ctypes.c_char_p
        apart = Apart(pointers, spans) if checked else None
        given = (ctypes.c_void_p * count)(*(apart.pointers if apart else pointers))
        if apart:
            binary.shim_watch(count, given, (ctypes.c_size_t * count)(*spans))
        error = run(given, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*size))
        if apart:
            apart.give_back()
            seen = [(ctypes.c_uint64 * count)() for _ in range(3)]
            binary.shim_seen(*seen)
            self.library._shim.last = Checks(*map(tuple, seen))
        if error:
            raise RuntimeError(f"{self.kernel.name}: {error.decode()}")

    def _array(self, p: Parameter, value: Any, cast: str, numbers: dict[str, int]) -> Any:
        """What torch would bind for a list of integers, and its fields by name."""
        name = f"{self.kernel.name}: {p.name}"
        if not isinstance(value, (list, tuple)) or not value or not all(type(v) is int for v in value):
            raise TypeError(f"{name} must be a tensor or a list of integers, got {value!r}")
        fields = self.library.structs.get(p.type)
        if p.mark != "&" or fields is None or cast != "int32":
            raise TypeError(f"{name} takes no list of integers cast to {cast or 'int64'}")
        if len(fields) != len(value):
            raise TypeError(f"{name} has {len(fields)} fields, got {len(value)} integers")
        if any(not -(2**31) <= v < 2**31 for v in value):
            raise OverflowError(f"{name}: {value} do not fit int32")
        numbers.update(zip(fields, value, strict=True))
        return (ctypes.c_int32 * len(value))(*value)

    def _check(self, p: Parameter, value: Tensor, numbers: dict[str, int]) -> None:
        """Refuses what the shader would misread."""
        name = f"{self.kernel.name}: {p.name}"
        if p.mark != "*":
            raise TypeError(f"{name} is no tensor")
        if not value.is_contiguous():
            raise ValueError(f"{name} has strides {value.stride()}, which the shader does not know")
        if not value.numel():
            raise ValueError(f"{name} is empty: there is no buffer to bind")
        code = numbers.get(f"{p.name}_type")
        if code is not None and code != NO_TYPE and code != TYPE_CODES.get(value.dtype):
            raise TypeError(f"{name} is {value.dtype}, its type code {code}")
        if code is None and value.dtype not in DTYPES[p.type]:
            raise TypeError(f"{name} is {p.type}*, got {value.dtype}")


class Apart:
    """Copies of buffers, each with nothing near it: what lies beside one is nobody else's memory."""

    MARGIN, ALIGNMENT = 1 << 13, 64  # more than what checked.h takes for beside; what a copy keeps of an address

    def __init__(self, pointers: list[int], spans: list[int]) -> None:
        self._spans: dict[int, int] = {}
        for pointer, span in zip(pointers, spans, strict=True):
            self._spans[pointer] = max(span, self._spans.get(pointer, 0))
        room = sum(span + self.MARGIN + self.ALIGNMENT for span in self._spans.values()) + self.MARGIN
        self._memory = ctypes.create_string_buffer(room)
        at = ctypes.addressof(self._memory)
        self._copies: dict[int, int] = {}
        for pointer, span in self._spans.items():
            at += self.MARGIN
            at += (pointer - at) % self.ALIGNMENT
            ctypes.memmove(at, pointer, span)
            self._copies[pointer] = at
            at += span
        self._before = {pointer: ctypes.string_at(pointer, span) for pointer, span in self._spans.items()}
        self.pointers = [self._copies[pointer] for pointer in pointers]

    def give_back(self) -> None:
        """Writes what was changed to where it came from."""
        for pointer, span in self._spans.items():
            if ctypes.string_at(self._copies[pointer], span) != self._before[pointer]:
                ctypes.memmove(pointer, self._copies[pointer], span)


def _sizes(given: Any) -> list[int]:
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= 3 or any(n < 1 for n in given):
        raise ValueError(f"threads and group_size are one to three positive numbers, got {given!r}")
    return [*given, *(1,) * (3 - len(given))]
