# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: streams, graphs, Inductor, sizes beyond 32 bits, two devices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.specs import specs

pytestmark = pytest.mark.gpu


def layer(n: int = 1024, k: int = 4096, qtype: str = "int4", device: str = "cuda") -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Linear(k, n, device=device, dtype=torch.bfloat16)
    return quanto.freeze(quanto.quantize(made, qtype))


def expected(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = model.qtensor().dequantize(torch.float32).double()
    return x.double() @ weight.t() + model.bias.double()


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-2) -> bool:
    return bool(((got.double() - want).abs() <= tolerance * want.abs().max()).all())


def test_models_use_these_kernels() -> None:
    found = quanto.explain(layer())
    assert found.layers[0].kernel == "cuda.linear_tiled"


@torch.no_grad()
def test_streams_do_not_disturb_each_other() -> None:
    model = layer()
    inputs = [torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16) for m in (1, 2, 16, 40, 300)]
    wants = [expected(model, x) for x in inputs]
    for x in inputs * 2:  # above 64 tokens the first call is not the kernel's
        model(x)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    results: list[list[torch.Tensor]] = [[] for _ in inputs]
    for _ in range(20):
        for stream, x, out in zip(streams, inputs, results, strict=True):
            with torch.cuda.stream(stream):
                out.append(model(x))
    torch.cuda.synchronize()
    for out, want in zip(results, wants, strict=True):
        assert all(close(y, want) for y in out)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 16, 64, 300])
def test_graphs_replay_with_new_inputs(tokens: int) -> None:
    model = layer()
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):
        model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings(), torch.cuda.graph(graph):
        warnings.simplefilter("error")  # another kernel would be recorded
        y = model(x)
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert close(y, expected(model, x))


@torch.no_grad()
@pytest.mark.parametrize("qtype", ["int4", "mxfp4"])
@pytest.mark.parametrize("tokens", [1, 32])
def test_compiled_models_use_cuda_graphs_and_show_triton_kernels_to_inductor(tokens: int, qtype: str) -> None:
    from torch._inductor.utils import run_and_get_code

    model = torch.nn.Sequential(layer(4096, 4096, qtype), torch.nn.GELU(), layer(256, 4096, qtype))
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    want = model(x)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    got, (code,) = run_and_get_code(compiled, x)
    assert close(got, want.double())
    whole = qtype == "int4" and torch.cuda.get_device_capability()[0] == 9  # in Gluon, which Inductor can't show
    assert ("def linear" in code) is not whole
    assert ("quanto_cuda.linear_tiled" in code) is whole
    for _ in range(3):
        assert close(compiled(x).clone(), want.double())


@torch.no_grad()
def test_weights_beyond_32_bits() -> None:
    n, k = (1 << 19) + 16, 4096  # 2 ** 31 + 2 ** 16 elements
    codes = torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8)
    scale = torch.rand(n, 1, device="cuda").add_(0.5).to(torch.bfloat16)
    specs()
    x = torch.randn(2, k, device="cuda", dtype=torch.bfloat16)
    for tiled in (False, True):
        tensors = (codes, scale, None, None)
        if tiled:
            tensors = TILED.pack(tensors, "int8", (1, k), k)
        operator = torch.ops.quanto_cuda.linear_tiled if tiled else torch.ops.quanto_cuda.linear
        y = operator(x, *tensors, None, "int8", [1, k])
        for rows in (slice(0, 64), slice(n - 64, n)):
            assert close(y[:, rows], x.double() @ (codes[rows].double() * scale[rows].double()).t())
        for _ in range(2):  # the first call is not the kernel's
            many = operator(x.repeat(600, 1), *tensors, None, "int8", [1, k])
        assert close(many[-1:, -64:], x[-1:].double() @ (codes[-64:].double() * scale[-64:].double()).t())
        del many


@torch.no_grad()
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_at_once() -> None:
    models = [layer(device=f"cuda:{i}") for i in range(2)]
    inputs = [torch.randn(4, 4096, device=f"cuda:{i}", dtype=torch.bfloat16) for i in range(2)]
    for _ in range(10):
        results = [model(x) for model, x in zip(models, inputs, strict=True)]
    assert all(close(y, expected(m, x)) for y, m, x in zip(results, models, inputs, strict=True))
    w = models[0].operand()
    with pytest.raises(ValueError, match="codes is on cuda:0"):
        torch.ops.quanto_cuda.linear_tiled(inputs[1], *w[:4], None, w.qtype, list(w.block_size))


@torch.no_grad()
def test_many_tokens_do_not_keep_a_float_weight() -> None:
    model = layer(8192, 8192)
    x = torch.randn(2048, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):  # the kernel is compared with cuBLAS
        model(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = model(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before <= y.numel() * y.element_size() + (1 << 20)
    assert torch.cuda.max_memory_allocated() - before <= y.numel() * y.element_size() + (1 << 27) + (64 << 20)


def believed(trials: Sequence[Trial], call: Any, want: torch.Tensor, monkeypatch: Any) -> None:
    """A kernel in Gluon is right, when its first call is compared with another kernel and when it is not, and runs."""
    for trial in trials:
        monkeypatch.setattr(trial, "refused", False)
        monkeypatch.setattr(trial, "checked", set())
        monkeypatch.setattr(trial, "_begun", {})
    for _ in range(3):
        assert close(call(), want)
    assert not any(trial.refused for trial in trials)
    assert any(trial.checked for trial in trials)


HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
FEW = [1, 2, 3, 7, 16, 17, 50]


@torch.no_grad()
@pytest.mark.skipif(not HOPPER, reason="Hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("qtype", "symmetric"),
    [
        ("int4", True),
        ("int4", False),
        ("int3", True),
        ("int2", True),
        ("int2", False),
        ("int8", True),
        ("nf4", True),
        ("float8_e4m3fn", True),
    ],
)
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"),
    [*((m, *shape) for shape in ((2064, 1152), (4096, 4096), (1040, 14336)) for m in FEW),
     *((m, 2064, 1152) for m in (65, 300, 1111))],
)  # fmt: skip
def test_tokens(
    qtype: str, symmetric: bool, dtype: torch.dtype, tokens: int, rows: int, columns: int, monkeypatch: Any
) -> None:
    from quanto_backend_cuda.ops import specialized, stream

    if qtype == "int3" and tokens > stream.TOKENS:
        pytest.skip("int3 has no kernel in Gluon for many tokens")
    torch.manual_seed(0)
    made = torch.nn.Linear(columns, rows, device="cuda", dtype=dtype)
    options = {"symmetric": symmetric} if qtype.startswith("int") else {}
    model = quanto.freeze(quanto.quantize(made, qtype, **options))
    x = torch.randn(tokens, columns, device="cuda", dtype=dtype)
    module = stream if tokens <= stream.TOKENS else specialized
    believed((module.TRIAL, module.CLUSTERS), lambda: model(x), expected(model, x), monkeypatch)


@torch.no_grad()
@pytest.mark.skipif(not HOPPER, reason="Hopper")
@pytest.mark.parametrize("tokens", [129, 300, 1111])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize(("rows", "columns", "then"), [(2056, 1168, "silu"), (4096, 4096, ""), (1040, 14336, "gelu")])
def test_many_quantized_tokens(
    qtype: str, dtype: torch.dtype, tokens: int, rows: int, columns: int, then: str, monkeypatch: Any
) -> None:
    from quanto.nonlinearity import apply
    from quanto_backend_cuda.ops import product

    torch.manual_seed(0)
    ops = torch.ops.quanto_cuda
    linear = ops.scaled_linear_int8 if qtype == "int8" else ops.scaled_linear_float8
    w = quanto.quantize_tensor(torch.randn(rows, columns, device="cuda", dtype=dtype), qtype, granularity="channel")
    bias = torch.randn(rows, device="cuda", dtype=dtype)
    x = torch.randn(tokens, columns, device="cuda", dtype=dtype)
    codes, scale = ops.dynamic_quantize(x, qtype, torch.float32)
    values = codes.view(product.typed(codes, qtype).dtype).double() * scale.double()
    want = apply(values @ w.dequantize(torch.float32).double().t() + bias.double(), then)
    rest = (w.codes, w.scale, w.zero_point, None, bias, qtype, qtype, list(w.block_size), None, dtype, then)
    believed((product.TRIAL,), lambda: linear(codes, scale, *rest), want, monkeypatch)


@torch.no_grad()
@pytest.mark.skipif(not HOPPER, reason="Hopper")
@pytest.mark.parametrize("tokens", [129, 1000])
def test_many_quantized_tokens_by_cublas(tokens: int, monkeypatch: Any) -> None:
    from quanto_backend_cuda.ops import cublas, product
    from quanto_backend_cuda.tables import Tile

    monkeypatch.setattr(product, "nearest", lambda *problem: Tile(128, 128, 0, stages=6))
    torch.manual_seed(0)
    ops = torch.ops.quanto_cuda
    qtype = "float8_e4m3fn"
    w = quanto.quantize_tensor(torch.randn(2064, 1040, device="cuda", dtype=torch.bfloat16), qtype)
    x = torch.randn(tokens, 1040, device="cuda", dtype=torch.bfloat16)
    codes, scale = ops.dynamic_quantize(x, qtype, torch.float32)
    values = codes.view(torch.float8_e4m3fn).double() * scale.double()
    want = values @ w.dequantize(torch.float32).double().t()
    rest = (w.codes, w.scale, None, None, None, qtype, qtype, list(w.block_size), None, torch.bfloat16)
    believed((cublas.TRIAL,), lambda: ops.scaled_linear_float8(codes, scale, *rest), want, monkeypatch)


@torch.no_grad()
def test_few_tokens_read_a_weight_that_was_just_written() -> None:
    """The kernel reads the weight ahead of the kernel before it, but not ahead of the one that writes it.

    That one lets the next begin before it has written, as Inductor's kernels do with its early start.
    """
    import triton
    import triton.language as tl

    @triton.jit
    def write(source, to, n, SPIN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
        x = tl.full([BLOCK], 1.0, tl.float32)
        for _ in range(SPIN):
            x = tl.sqrt(x + 1.0)
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(source + at, mask=at < n)
        tl.store(to + at, tl.where(x > 0, value, 0), mask=at < n)  # waits for the spinning

    w = quanto.quantize_tensor(torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16), "int8")
    tensors = TILED.pack((w.codes, w.scale, w.zero_point, None), "int8", w.block_size, 4096)
    other = torch.randint_like(tensors[0], -127, 128)
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    codes = tensors[0].clone()
    linear = torch.ops.quanto_cuda.linear_tiled
    block = list(w.block_size)
    wants = [linear(x, c, *tensors[1:], None, "int8", block) for c in (tensors[0], other)]
    torch.cuda.synchronize()
    for i in range(40):
        write[(132,)](other if i % 2 else tensors[0], codes, codes.numel(), 2000, 1 << 17, launch_pdl=True)
        torch.autograd.graph.increment_version(codes)
        assert (linear(x, codes, *tensors[1:], None, "int8", block) == wants[i % 2]).all()


@torch.no_grad()
def test_few_tokens_wait_for_their_input() -> None:
    """A row of layers, each of which reads what the one before wrote."""
    model = torch.nn.Sequential(*(layer(4096, 4096) for _ in range(8)))
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    want = model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    for _ in range(20):
        y.fill_(float("nan"))
        graph.replay()
        assert (y == want).all()
