# SPDX-License-Identifier: Apache-2.0
"""What Triton does once in a process, begun while a model's weights are arranged, so that its first call waits less.

With an empty cache on an H100 importing Triton takes 0.2 s, hashing its files 0.34, building the module by which it
talks to the driver 0.24 s; a model of some gigabytes takes longer than that to be arranged.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch

from .runtime import import_triton, interpreted

__all__ = ["begin", "prepare"]

_mutex = threading.Lock()
_begun: list[threading.Thread] = []


def begin(device: torch.device) -> None:
    """Starts it in threads of its own, once; nothing for other devices than GPUs."""
    if device.type != "cuda" or interpreted() or _begun:
        return
    with _mutex:
        if not _begun:
            _begun.extend(threading.Thread(target=_quietly, args=(part,), name="quanto-triton") for part in _PARTS)
            for thread in _begun:
                thread.start()


def prepare(weight: Sequence[Any], qtype: str, block_size: Sequence[int], size: int) -> None:
    """Begins to compile what one token will want of a weight that was just tiled, in threads of their own."""
    codes = weight[0]
    if codes.device.type != "cuda" or interpreted() or type(codes) not in (torch.Tensor, torch.nn.Parameter):
        return
    from .ops import stream

    with contextlib.suppress(Exception):  # the first call meets the same, and says it
        import_triton()
        stream.prepare(weight, qtype, block_size, size)


def _quietly(part: str) -> None:
    with contextlib.suppress(Exception):  # the first call meets the same, and says it
        _PARTS[part]()


def _hash() -> None:
    import_triton()
    from triton.runtime import cache

    cache.triton_key()


def _driver() -> None:
    import_triton()
    from triton.runtime import driver

    driver.active.get_current_device()
    from .kernels import linear  # noqa: F401 - parses the sources of the kernels


_PARTS = {"hash": _hash, "driver": _driver}
