# SPDX-License-Identifier: Apache-2.0
"""The functions of native.c, compiled when first asked for. Imports no torch: `mask_to_avx2` must come before it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["library", "mask_to_avx2"]


@cache
def library() -> ctypes.CDLL:
    """Compiles and loads native.c.

    Raises:
        RuntimeError: if there is no C compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("bench/cpu/native.c needs a C compiler: install one, or name it in CC")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "native.so")
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
        loaded = ctypes.CDLL(str(made))
    loaded.read_bytes.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    loaded.read_bytes.restype = ctypes.c_uint64
    loaded.dot.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int32)]
    return loaded


def mask_to_avx2() -> bool:
    """Makes CPUID describe a processor with AVX2 alone to this process, so that every library chooses for such a one.

    Returns:
        Whether it could (Linux on x86-64, with CPUID faulting).
    """
    return bool(library().mask_to_avx2())
