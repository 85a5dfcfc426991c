# SPDX-License-Identifier: Apache-2.0
"""What the machine itself can do: bytes read, and multiply-adds in registers."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from .native import library

__all__ = ["Reader", "int8_rate"]

STREAMS = (4, 8, 16)


class Reader:
    """Reads a buffer that no cache holds.

    Args:
        megabytes: size of the buffer; 512 is several times what a guest gets of a shared cache.
    """

    def __init__(self, megabytes: int = 512) -> None:
        self.bytes = megabytes << 20
        self._pages = mmap.mmap(-1, self.bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # which read a little faster
            self._pages.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(self._pages, dtype=torch.uint8)
        self._start = self._memory.fill_(1).data_ptr()

    def rate(self, threads: int, streams: int) -> float:
        """Bytes per second of one walk over the buffer, each thread over its part."""
        part = self.bytes // threads // 4096 * 4096
        walks = [lambda i=i: library().read_bytes(self._start + i * part, part, streams) for i in range(threads)]
        return part * threads / _together(walks)

    def best(self, threads: int) -> float:
        """Bytes per second of the fastest of a walk with each number of streams."""
        return max(self.rate(threads, streams) for streams in STREAMS)


def int8_rate(threads: int, avx512: bool) -> float:
    """int8 multiply-adds into int32 per second, operands in registers; 0 where native.c has no loop for the machine."""
    count = 24_000_000
    library().dot(avx512, 24, ctypes.byref(ctypes.c_int32()))
    width = library().dot(avx512, 24, ctypes.byref(ctypes.c_int32()))
    seconds = min(
        _together([lambda: library().dot(avx512, count, ctypes.byref(ctypes.c_int32()))] * threads) for _ in range(5)
    )
    return width * count * threads / seconds


def _together(walks: list[Callable[[], object]]) -> float:
    """Seconds until all have ended, one thread each; ctypes releases the interpreter's lock."""
    if len(walks) == 1:
        start = time.perf_counter()
        walks[0]()
        return time.perf_counter() - start
    with ThreadPoolExecutor(len(walks)) as pool:
        list(pool.map(time.sleep, [0.001] * len(walks)))  # starts the threads
        start = time.perf_counter()
        for future in [pool.submit(walk) for walk in walks]:
            future.result()
        return time.perf_counter() - start
