# SPDX-License-Identifier: Apache-2.0
"""Time of kernels as a GPU has it: replays of a CUDA graph, over more memory than its caches hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..workspace import scratch

__all__ = ["COLD", "copies_for", "replayed"]

#: bytes of distinct weights that calls in a row read: five times the L2 of an H100.
COLD = 256 << 20
_LAUNCHES = 20


def copies_for(nbytes: int, cold: int = COLD) -> int:
    """How many copies of a weight of so many bytes fill `cold` bytes; two at least."""
    return max(2, -(-cold // max(nbytes, 1)))


def replayed(calls: Sequence[Callable[[], Any]], device: torch.device, repeats: int = 5) -> float:
    """Microseconds of one call.

    Args:
        calls: the same work on different copies of its operands; they run in this order, all in one graph.
        device: where they run.
        repeats: replays that are timed; the median counts.
    """
    rounds = max(1, _LAUNCHES // len(calls))
    with torch.cuda.device(device), scratch(device):
        for call in calls:  # all: what a weight's first call does is no part of the others
            call()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in [*calls] * rounds:
                call()
        graph.replay()
        torch.cuda.synchronize(device)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        times: list[float] = []
        for _ in range(repeats):
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / (rounds * len(calls)))
        del graph
    return statistics.median(times)
