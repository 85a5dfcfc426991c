# SPDX-License-Identifier: Apache-2.0
"""Locks: counters that are zero before and after each kernel, by which the last block to arrive knows that it is.

A kernel that splits the input dimension needs one counter per tile, all zero. Zeroing them costs a launch, so each
kernel leaves them as it found them, and they are handed out such that no two kernels that may run at the same time
share any: one piece per stream, and one piece per call recorded in a CUDA graph, whose replays may overlap.
What a graph got is not taken back when it is freed: a process that records without end has its counters zeroed by a
node of the graph from some thousand calls on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["locks", "scratch"]

_PIECES = 1 << 20  # counters allocated at a time: 4 MiB
_PER_STREAM = 1 << 14

_mutex = threading.Lock()
_arenas: dict[torch.device, tuple[Tensor, int]] = {}
_by_stream: dict[tuple[torch.device, int], Tensor] = {}


def locks(device: torch.device, count: int) -> Tensor:
    """int32 zeros `[>= count]` for one kernel on the current stream."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        with _mutex:
            return _take(device, count, capturing=True)
    if count > _PER_STREAM:
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    found = _by_stream.get((device, stream))
    if found is None:
        with _mutex:
            found = _by_stream[device, stream] = _take(device, _PER_STREAM, capturing=False)
    return found


def _take(device: torch.device, count: int, capturing: bool) -> Tensor:
    """A piece that nobody else gets."""
    arena, used = _arenas.get(device, (None, 0))
    if arena is None or used + count > arena.numel():
        if capturing:  # memory allocated now belongs to the graph: zeroing becomes a node of it
            return torch.zeros(count, dtype=torch.int32, device=device)
        arena, used = torch.zeros(_PIECES, dtype=torch.int32, device=device), 0
        torch.cuda.synchronize(device)  # once per device: other streams must not overtake the zeroing
    step = -(-count // 32) * 32
    _arenas[device] = arena, used + step
    return arena[used : used + count]


@contextlib.contextmanager
def scratch(device: torch.device) -> Iterator[None]:
    """Takes back what graphs recorded in the block got; they must not be replayed after it."""
    locks(device, 1)  # so that there is an arena, whose zeroing would otherwise become a node of the first graph
    with _mutex:
        before = _arenas.get(device)
    try:
        yield
    finally:
        with _mutex:
            if before is not None and _arenas[device][0] is before[0]:
                _arenas[device] = before
