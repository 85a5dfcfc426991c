# SPDX-License-Identifier: Apache-2.0
"""Counters: zero, and nobody else's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from quanto_backend_cuda.workspace import locks


def test_are_zero_and_enough() -> None:
    found = locks(torch.device("cpu"), 7)
    assert found.dtype == torch.int32
    assert found.numel() >= 7
    assert not found.any()


@pytest.mark.gpu
def test_streams_and_graphs_share_none() -> None:
    device = torch.device("cuda", 0)
    other = torch.cuda.Stream()
    mine = locks(device, 100)
    with torch.cuda.stream(other):
        theirs = locks(device, 100)
    pieces = [mine, theirs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pieces += [locks(device, 100), locks(device, 100)]
    spans = sorted((p.data_ptr(), p.data_ptr() + 400) for p in pieces)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert locks(device, 50).data_ptr() == mine.data_ptr()
