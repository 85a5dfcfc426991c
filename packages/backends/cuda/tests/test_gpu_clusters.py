# SPDX-License-Identifier: Apache-2.0
"""Blocks of threads that hand sums over inside their cluster: right in each element, and the same each time."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import specialized, stream
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.ops.weights import facts
from quanto_backend_cuda.runtime import warpgroups
from quanto_backend_cuda.tables import Tile

pytestmark = pytest.mark.gpu
TOLERANCE = 0.012  # of a row's largest value: bfloat16 rounds results, and tables, to 0.004

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("int4", {}),
    ("int4", {"symmetric": False, "group_size": 64}),
    ("int4", {"granularity": "channel", "symmetric": True}),
    ("int8", {}),
    ("int3", {}),
    ("int2", {"symmetric": True}),
    ("nf4", {}),
    ("fp4", {}),
    ("float8_e4m3fn", {}),
]
#: rows, columns, tokens, tile, blocks of a cluster.
FEW = [
    (272, 1024, 16, Tile(128, 16, stages=4, blocks=24, cluster=8), 8),
    (272, 1408, 13, Tile(64, 16, stages=3, blocks=20, cluster=4), 4),
    (528, 640, 33, Tile(128, 64, stages=3, blocks=10, cluster=8), 2),
    (272, 2048, 16, Tile(64, 16, 2, warps=8, stages=4, blocks=40, cluster=8), 8),
    (272, 2048, 5, Tile(16, 8, 4, stages=3, blocks=68, cluster=8), 4),
    (4096, 4096, 16, Tile(64, 16, stages=3, blocks=528, cluster=8), 8),
]
PAIRS = Tile(128, 128, stages=6, blocks=132, cluster=2)
MANY = [(4096, 4096, 256, PAIRS, 2), (4080, 1408, 250, PAIRS, 2), (4000, 640, 130, PAIRS, 2)]


def hopper() -> bool:
    return torch.cuda.is_available() and warpgroups(torch.device("cuda", 0))


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got.double() - want).abs() / want.abs().amax(-1, keepdim=True)).nan_to_num(9).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("n", "k", "m", "tile", "size"), [*FEW, *MANY])
@pytest.mark.parametrize(("qtype", "options"), KINDS)
def test_sums_are_right_and_the_same_each_time(
    qtype: str, options: dict[str, Any], n: int, k: int, m: int, tile: Tile, size: int, dtype: torch.dtype
) -> None:
    if not hopper():
        pytest.skip("clusters are Hopper's")
    if dtype == torch.float16 and m not in (13, 250):
        pytest.skip("once is enough")
    module = stream if m <= stream.TOKENS else specialized
    if qtype == "int3" and module is specialized:
        pytest.skip("int3 has no kernel in Gluon for many tokens")
    torch.manual_seed(0)
    w = quanto.quantize_tensor(torch.randn(n, k, device="cuda", dtype=dtype), qtype, **options)
    weight = TILED.pack((w.codes, w.scale, w.zero_point, w.global_scale), qtype, w.block_size, k)
    x, bias = (torch.randn(*shape, device="cuda", dtype=dtype) for shape in ((m, k), (n,)))
    f = facts(qtype, list(w.block_size), k)
    assert module.takes(f, k, dtype, weight[2], weight[1])
    few = module is stream
    assert size == (tile.clustered(m, n, k // 128) if few else specialized.dealt(m, n, k, tile, x.device).cluster)
    for given in (bias, None):
        want = x.double() @ w.dequantize(torch.float32).double().t() + (0 if given is None else given.double())
        results = []
        for _ in range(40):
            results.append(torch.full((m, n), float("nan"), device="cuda", dtype=dtype))
            module.start(x, weight, given, f, results[-1], tile)
        assert largest_error(results[0], want) < TOLERANCE
        assert all(torch.equal(results[0], again) for again in results)


@torch.no_grad()
@pytest.mark.parametrize("qtype", ["int4", "int8"])
@pytest.mark.parametrize("tokens", [16, 64])
def test_rows_of_layers_on_streams_and_in_graphs(qtype: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers follow each other before they end, and two rows of them run side by side."""
    if not hopper():
        pytest.skip("clusters are Hopper's")
    monkeypatch.setattr(stream, "CLUSTERS", Trial("tests"))
    monkeypatch.setattr(stream, "nearest", lambda *_: Tile(64, tokens, stages=3, blocks=132, cluster=8))
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(6)]
    model = quanto.freeze(quanto.quantize(torch.nn.Sequential(*layers), qtype))
    x = torch.randn(tokens, 2048, device="cuda", dtype=torch.bfloat16)
    want = model(x)
    assert stream.CLUSTERS.checked
    assert not stream.CLUSTERS.refused
    exact = x.double()
    for layer in model:
        exact = exact @ layer.qtensor().dequantize(torch.float32).double().t() + layer.bias.double()
    assert largest_error(want, exact) < 5 * TOLERANCE
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for one in streams:
            with torch.cuda.stream(one):
                results.append(model(x))
    torch.cuda.synchronize()
    assert all(torch.equal(want, y) for y in results)
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings(), torch.cuda.graph(graph):
        warnings.simplefilter("error")  # another kernel would be recorded
        y = model(x)
    for _ in range(20):
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(want, y)


@torch.no_grad()
def test_what_starts_no_clusters_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hopper():
        pytest.skip("clusters are Hopper's")
    from quanto_backend_cuda.kernels.stream import stream as kernel

    monkeypatch.setattr(kernel, "clusters", False)
    monkeypatch.setattr(stream, "CLUSTERS", Trial("tests"))
    monkeypatch.setattr(stream, "nearest", lambda *_: Tile(128, 16, stages=5, blocks=132, cluster=8))
    w = quanto.quantize_tensor(torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16), "int4")
    weight = TILED.pack((w.codes, w.scale, w.zero_point, w.global_scale), "int4", w.block_size, 4096)
    x = torch.randn(16, 4096, device="cuda", dtype=torch.bfloat16)
    out, f = torch.empty(16, 4096, device="cuda", dtype=torch.bfloat16), facts("int4", list(w.block_size), 4096)
    with pytest.warns(UserWarning, match="starts no clusters"):
        assert stream.stream(x, weight, None, f, out, "int4", list(w.block_size))
    want = x.double() @ w.dequantize(torch.float32).double().t()
    assert largest_error(out, want) < TOLERANCE
    assert stream.CLUSTERS.refused
