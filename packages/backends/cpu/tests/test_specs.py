# SPDX-License-Identifier: Apache-2.0
"""What is claimed is chosen, explained, and conforms."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.kernels import KernelSpec, kernels
from quanto.plugins import plugins
from quanto.testing import Disagreement
from quanto.testing.run import plan
from quanto_backend_cpu.specs import EVERY

plugins.load()
SPECS = sorted((s for s in kernels.specs.values() if s.origin == "quanto-backend-cpu"), key=lambda s: s.name)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_conforms(spec: KernelSpec) -> None:
    """A sample of the conformance suite, every check included; `pytest --pyargs quanto.testing` runs all of it."""
    every = list(plan(spec, "cpu"))
    assert every, f"{spec.name} refuses everything"
    ran: dict[str, int] = {}
    for check, case in every:
        if ran.get(check.name, 0) >= 4 or (zlib.crc32(f"{check.name}{case}".encode()) % 8 and check.name in ran):
            continue
        ran[check.name] = ran.get(check.name, 0) + 1
        try:
            check.run(case)
        except Disagreement as error:
            pytest.fail(f"{check.name}: {error}")
    assert ran.keys() == {check.name for check, _ in every}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_models_run_on_them(qtype: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Chosen without asking, arranged once, saved canonical, reloaded bit-equal."""
    torch.manual_seed(0)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(96, 80), nn.ReLU(), nn.Linear(80, 24)).to(dtype).eval()

    model, x = build(), torch.randn(5, 96).to(dtype)
    expected = quanto.quantized(model, qtype)
    quanto.freeze(expected)
    with kernels.select("-quanto-backend-cpu"):
        reference = quanto.quantized(model, qtype)
        quanto.freeze(reference)
        want = reference(x)
    report = quanto.explain(expected)
    assert {layer.layout for layer in report.layers} == {"cpu.panels"}
    kernel = "cpu.linear" if dtype == torch.float32 or "float8" in qtype or qtype == "mxfp8" else "cpu.linear_integer"
    assert {layer.kernel for layer in report.layers} == {kernel}
    y = expected(x)
    limit = 1e-4 if dtype == torch.float32 else 0.06
    assert (y - want).abs().max() <= limit * want.abs().max()
    state, other = expected.state_dict(), reference.state_dict()
    assert all(
        torch.equal(t.reshape(-1).view(torch.uint8), other[n].reshape(-1).view(torch.uint8)) for n, t in state.items()
    )
    quanto.save(expected, tmp_path)
    assert torch.equal(quanto.load(tmp_path, build())(x), y)


def test_precision_is_switched_by_name() -> None:
    layer = quanto.freeze(quanto.quantize(nn.Linear(256, 64).to(torch.bfloat16), "int4"))
    x = torch.randn(3, 256).to(torch.bfloat16)
    exact = torch.nn.functional.linear(x.double(), layer.weight.dequantize().double(), layer.bias.double())
    fast = layer(x)
    with kernels.select("cpu.linear"):
        slow = layer(x)
    assert quanto.explain(layer).layers[0].kernel == "cpu.linear_integer"
    scale = exact.square().mean().sqrt()
    assert (slow.double() - exact).abs().max() < 0.01 * scale
    assert 0.001 * scale < (fast.double() - exact).abs().max() < 0.06 * scale


def test_gradients_and_embeddings() -> None:
    layer = quanto.freeze(quanto.quantize(nn.Linear(64, 48), "int8"))
    x = torch.randn(7, 64, requires_grad=True)
    layer(x).square().sum().backward()
    weight = layer.weight.dequantize()
    y = torch.nn.functional.linear(x.detach(), weight, layer.bias)
    torch.testing.assert_close(x.grad, 2 * y @ weight, rtol=1e-4, atol=1e-4)
    table = quanto.freeze(quanto.quantize(nn.Embedding(50, 64), "int4", include="*"))
    indices = torch.tensor([[1, 49], [0, 1]])
    assert quanto.explain(table).layers[0].kernel == "cpu.embedding"
    torch.testing.assert_close(table(indices), table.weight.dequantize()[indices], rtol=1e-6, atol=1e-7)


def test_weights_of_three_dimensions_are_refused() -> None:
    from quanto.kernels import Request

    request = Request("linear", "cpu", torch.float32, "int8", (1, 1, 64), (3, 32, 64))
    refusal = kernels.specs["cpu.canonical.linear"].refusal(request)
    assert refusal == "takes weights of two dimensions, not 3"
